"""The folder of a reward model: one artefact that this package, transformers and PEFT read as it is.

With an adapter it is a PEFT adapter for sequence classification: ``adapter_model.safetensors`` holds the LoRA weights
and the score head side by side. After full fine-tuning it is a Hugging Face sequence classifier. ``reward_model.json``
holds what neither has a place for: the objectives' names and weights, the spread of scores on the validation data, and
the bias of a head that came with one.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.score_head import ScoreHead
from lit_rlhf.models.loading import local_or_hub
from lit_rlhf.models.whole import whole_state
from lit_rlhf.ranks import is_first_rank

REWARD_FILE = "reward_model.json"
_IN_ADAPTER = "base_model.model.score.weight"
_HEADS = ["classifier", "score"]
"""Modules that PEFT trains and saves whole for sequence classification."""


class RewardFile(NamedTuple):
    """What ``reward_model.json`` holds.

    Args:
        objectives: name -> weight in the score, in the order of the head's outputs.
        mean: mean score over the validation data; None until measured.
        std: standard deviation of the same scores.
        num_responses: how many they were.
        bias: of the head, one per objective; None for a head without.
    """

    objectives: dict[str, float]
    mean: float | None = None
    std: float | None = None
    num_responses: int = 0
    bias: list[float] | None = None

    @classmethod
    def of(cls, num_objectives: int) -> RewardFile:
        """What is assumed of a head that came without the file."""
        names = ["score"] if num_objectives == 1 else [f"score_{number}" for number in range(num_objectives)]
        return cls(dict.fromkeys(names, 1.0 / num_objectives))


def read_reward_file(folder: Path) -> RewardFile | None:
    """``reward_model.json`` of a folder; None if there is none.

    Raises:
        ValueError: if it is not as this package writes it.
    """
    file = folder / REWARD_FILE
    if not file.is_file():
        return None
    try:
        known = RewardFile(**json.loads(file.read_text(encoding="utf-8")))
        objectives = {str(name): float(weight) for name, weight in known.objectives.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not what this package writes: {error}") from error
    return known._replace(objectives=objectives)


def write_reward_model(backbone: Backbone, score: ScoreHead, folder: Path) -> None:
    """Write a reward model; all ranks call this, and the first writes.

    Args:
        backbone: plays the role ``reward``.
        score: its head.
        folder: is made if need be.
    """
    head = whole_state(score.state_dict())
    if isinstance(backbone.model, PeftModel):
        with backbone.role("reward"):
            adapters.save_adapter(backbone.model, str(backbone.model.active_adapter), folder)
        if is_first_rank():
            _add_head(folder, head["weight"])
    else:
        write_classifier(backbone.model, score.weight, folder)
    if not is_first_rank():
        return
    known = RewardFile(score.objectives, bias=head["bias"].tolist() if "bias" in head else None)
    if score.is_measured:
        known = known._replace(mean=float(score.mean), std=float(score.std), num_responses=int(score.num_responses))
    (folder / REWARD_FILE).write_text(json.dumps(known._asdict(), indent=2) + "\n", encoding="utf-8")


def write_classifier(model: PreTrainedModel, weight: Tensor, folder: Path, pad_token_id: int | None = None) -> None:
    """Write a Hugging Face sequence classifier, or, for a kind of model that has none, the backbone with the head.

    All ranks call this, and the first writes.

    Args:
        model: a causal language model without its ``lm_head``.
        weight: (K, H) of the score head.
        folder: is made if need be.
        pad_token_id: of rows of a batch; it must not end a text, as the classifier reads the token before it.
    """
    weights = whole_state({**model.state_dict(), "score.weight": weight})
    if not is_first_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = deepcopy(model.config)
    config.num_labels = len(weight)
    config.architectures = None
    if pad_token_id is not None:
        config.pad_token_id = pad_token_id
    classifier = _empty_classifier(config)
    if classifier is None or set(classifier.state_dict()) != set(weights):
        rank_zero_info(f"transformers has no classifier of type {config.model_type}: lit_rlhf alone can load this one")
        model.save_pretrained(folder, state_dict=weights)
        return
    classifier.load_state_dict(weights, assign=True)
    classifier.save_pretrained(folder)


def _empty_classifier(config: PretrainedConfig) -> PreTrainedModel | None:
    """A classifier without memory; None if there is none of that kind."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError:
        return None


def _add_head(folder: Path, weight: Tensor) -> None:
    """Turn a saved adapter into one for sequence classification, the head beside the LoRA weights."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    weights = {**load_file(file), _IN_ADAPTER: weight.cpu().contiguous()}
    save_file(weights, file, {"format": "pt"})
    config = LoraConfig.from_pretrained(str(folder))
    config.task_type = "SEQ_CLS"
    config.modules_to_save = sorted({*(config.modules_to_save or []), *_HEADS})
    config.inference_mode = True
    config.save_pretrained(str(folder))


def local_folder(name: str, revision: str | None = None) -> Path:
    """The folder ``name``, or the small files and adapters of a hub name, downloaded.

    Raises:
        ValueError: if there is no such folder or hub name.
    """
    place = local_or_hub(name)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"'{name}' is no folder here, and the hub does not give it: {error}") from error
