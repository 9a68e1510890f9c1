"""A reward model: a backbone in the role ``reward`` and a score head; text to numbers.

A score is read at the last token of a response, which the forest knows; no token id is ever compared with that of a
pad token, so that a tokenizer whose pad token ends texts too does no harm.

Shape letters: L sequences, N marked tokens, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_backbone, wrap_model
from lit_rlhf.models.heads.head_files import check_head, read_head
from lit_rlhf.models.heads.reward_files import RewardFile, local_folder, read_reward_file, write_reward_model
from lit_rlhf.models.heads.score_head import ScoreHead
from lit_rlhf.models.heads.value_head import hidden_size
from lit_rlhf.models.loading import load_causal_lm
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.types import Forest

_NO_HEAD = "holds no score head (score.weight or v_head.summary.weight), so it is no reward model"


class RewardModel(nn.Module):
    """Scores sequences. Make one by :func:`build_reward_model` or :func:`load_reward_model`.

    Args:
        backbone: plays the role ``reward``.
        score: reads its hidden states.

    Raises:
        ValueError: if their widths differ.
    """

    def __init__(self, backbone: Backbone, score: ScoreHead) -> None:
        super().__init__()
        if score.in_features != _width(backbone):
            raise ValueError(
                f"the score head reads {score.in_features} numbers, and the backbone '{backbone.base.name_or_path}' "
                f"gives {_width(backbone)}"
            )
        self.backbone = backbone
        self.score = score

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model, adapters inside."""
        return self.backbone.base

    def prepare(self) -> None:
        """Choose the layout; only the first call works."""
        self.backbone.prepare()

    def objective_scores(self, forest: Forest) -> Tensor:
        """(L, K) float32, the score of every sequence by every objective."""
        with self.backbone.role("reward"):
            return self.score(self.backbone.hidden_states(forest, read="ends"))

    def scores(self, forest: Forest, *, normalise: bool = False) -> Tensor:
        """(L,) float32, one score per sequence: the weighted sum of its objectives.

        Args:
            forest: the packed text.
            normalise: in standard deviations from the mean of the validation data.

        Raises:
            ValueError: if the spread on the validation data is not known.
        """
        scores = self.score.combine(self.objective_scores(forest))
        return self.score.normalise(scores) if normalise else scores

    def step_scores(self, forest: Forest) -> Tensor:
        """(N,) float32, a score at every marked (scored) token of the forest."""
        with self.backbone.role("reward"):
            states = self.backbone.hidden_states(forest)
        return self.score.combine(self.score(states.index_select(0, forest.targets)))

    @property
    def checkpointed_names(self) -> set[str]:
        """Names, within this module, of the tensors that a checkpoint must hold: all but the frozen base."""
        ours = {f"backbone.{name}" for name in self.backbone.checkpointed_names}
        return ours | {f"score.{name}" for name in self.score.state_dict()}

    def save(self, folder: str | Path) -> None:
        """Write backbone and head as Hugging Face and PEFT write them, and what they have no place for beside it."""
        write_reward_model(self.backbone, self.score, Path(folder))


def build_reward_model(
    config: BackboneConfig, objectives: Mapping[str, float], *, device: torch.device | None = None
) -> RewardModel:
    """Load a backbone to be trained as a reward model.

    Where the backbone or the adapter that it starts from has a score head for as many objectives, training goes on
    from that one.

    Args:
        config: what to load.
        objectives: name -> weight in the score.
        device: where quantised weights are made; None = CPU.

    Raises:
        ValueError: for what the backbone refuses, or a head that does not fit it.
    """
    backbone = build_backbone(config, reference="none", device=device, role="reward")
    head = None
    if config.adapter or Path(config.name_or_path).is_dir() or _is_classifier(backbone):
        folder = local_folder(config.adapter or config.name_or_path, config.revision)
        head = read_score_head(folder, _width(backbone), objectives)
    if head is not None:
        rank_zero_info(f"score head: going on from that of '{config.adapter or config.name_or_path}'")
    return RewardModel(backbone, head or _new_head(backbone, objectives))


def wrap_reward_model(model: PreTrainedModel | PeftModel | Backbone, objectives: Mapping[str, float]) -> RewardModel:
    """Put a fresh score head on a model that you made yourself."""
    backbone = model if isinstance(model, Backbone) else wrap_model(model, reference="none")
    return RewardModel(backbone, _new_head(backbone, objectives))


def load_reward_model(
    name: str | Path,
    base: str | None = None,
    dtype: str = "auto",
    quantization: str = "none",
    device: torch.device | None = None,
) -> RewardModel:
    """Load a finished reward model.

    One of this package, a PEFT adapter for sequence classification, a Hugging Face sequence classifier, or a value-head
    model of LLaMA-Factory or TRL.

    Args:
        name: its folder or hub name.
        base: takes the place of the base that an adapter names.
        dtype: as in :class:`BackboneConfig`.
        quantization: as in :class:`BackboneConfig`.
        device: where quantised weights are made; None = CPU.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        ValueError: if there is no such model, it has no head, or head and backbone do not fit.
    """
    folder = local_folder(str(name))
    settings = {"dtype": dtype, "quantization": quantization}
    if (folder / "adapter_config.json").is_file():
        config = BackboneConfig(base or adapters.base_of(folder), str(folder), **settings)  # type: ignore[arg-type]
        backbone = build_backbone(config, reference="none", device=device, role="reward")
    else:
        config = BackboneConfig(str(folder), **settings)  # type: ignore[arg-type]
        backbone = Backbone(load_causal_lm(config, device, with_lm_head=False))
    head = read_score_head(folder, _width(backbone))
    if head is None:
        raise ValueError(f"'{name}' {_NO_HEAD}")
    model = RewardModel(backbone, head)
    model.requires_grad_(False)
    return model.eval()


def add_reward_model(backbone: Backbone, name: str | Path) -> RewardModel:
    """Let the backbone of a policy play a finished reward model too: its adapter and head, no second base.

    Args:
        backbone: with a policy adapter, on the base that the reward model was trained on.
        name: folder or hub name of the reward model.

    Returns:
        The reward model, frozen; it computes on ``backbone``, whose active role stays what it is.

    Raises:
        ValueError: if the backbone has no adapters, or adapter, head and backbone do not fit.
    """
    folder = local_folder(str(name))
    if not isinstance(backbone.model, PeftModel):
        raise ValueError("a policy without adapters cannot carry a reward model; load that with a base of its own")
    trained_on = adapters.base_of(folder)
    if not adapters.is_same_base(trained_on, backbone.base):
        rank_zero_warn(
            f"the reward model '{name}' was trained on '{trained_on}', and the policy's base is "
            f"'{backbone.base.name_or_path}': its scores mean nothing unless they are the same weights"
        )
    head = read_score_head(folder, _width(backbone))
    if head is None:
        raise ValueError(f"'{name}' {_NO_HEAD}")
    adapters.add_adapter(backbone.model, str(folder), adapters.REWARD)
    return RewardModel(backbone, head.requires_grad_(False))


def _is_classifier(backbone: Backbone) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in backbone.base.config.architectures or ())


def _width(backbone: Backbone) -> int:
    """Numbers per hidden state (H)."""
    return hidden_size(backbone.base.config)


def _new_head(backbone: Backbone, objectives: Mapping[str, float]) -> ScoreHead:
    return ScoreHead(_width(backbone), objectives)


def read_score_head(folder: Path, width: int, objectives: Mapping[str, float] | None = None) -> ScoreHead | None:
    """The head that lies in a folder, with what is known about it; None if there is none.

    Raises:
        ValueError: if it does not fit the width or the objectives.
    """
    found = read_head(folder, num_objectives=None)
    if found is None:
        return None
    check_head(found, width, str(folder))
    known = read_reward_file(folder) or RewardFile.of(len(found.weight))
    if objectives is not None and len(objectives) != len(found.weight):
        raise ValueError(
            f"{found.file}: its head has {len(found.weight)} outputs, for {', '.join(known.objectives)}, and "
            f"objectives are {', '.join(objectives)}"
        )
    bias = known.bias or (None if found.bias is None else found.bias.tolist())
    head = ScoreHead(width, objectives or known.objectives, bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(found.weight)
        if bias is not None:
            head.bias.copy_(torch.tensor(bias))
    if known.std is not None and known.mean is not None:
        head.measure(known.mean, known.std, known.num_responses)
    return head
