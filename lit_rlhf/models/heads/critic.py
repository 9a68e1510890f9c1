"""A policy and its critic: log-probabilities of responses, and the value of every state on the way.

The critic is an adapter of its own on the policy's backbone, shares the policy's trunk, or is a model of its own. The
value of a state is read where the policy chooses: at the last token of the prompt for the first token of the response.

Shape letters: N scored tokens, H hidden size.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_files import local_folder
from lit_rlhf.models.heads.reward_model import read_score_head
from lit_rlhf.models.heads.value_files import HEAD_FILES
from lit_rlhf.models.heads.value_head import ValueHead, hidden_size
from lit_rlhf.models.options import BackboneConfig, CriticOptions
from lit_rlhf.types import Forest

CRITIC_FOLDER = "critic"
"""Where the critic lies in the folder of a run, unless it shares the policy's trunk."""


class PolicyValues(NamedTuple):
    """What policy and critic say of the scored tokens of a forest.

    Args:
        logprobs: (N,) log-probabilities in nats, with their gradient.
        entropy: (N,) entropies in nats.
        values: (N,) float32 values of the states that the tokens were chosen in, with their gradient.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class ActorCritic(nn.Module):
    """A policy with its critic. Make one by :func:`add_critic`.

    Args:
        backbone: plays the policy, the reference, and the critic where that is an adapter.
        v_head: reads the critic's hidden states.
        kind: as in :class:`lit_rlhf.models.options.CriticOptions`.
        trunk: the critic's own backbone, where it is a model of its own.
    """

    def __init__(self, backbone: Backbone, v_head: ValueHead, kind: str, trunk: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.v_head = v_head
        self.kind = kind
        self.trunk = trunk

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model of the policy, adapters inside."""
        return self.backbone.base

    def prepare(self) -> None:
        """Choose the layout; only the first call works."""
        self.backbone.prepare()
        if self.trunk is not None:
            self.trunk.prepare()

    def forward(self, forest: Forest, *, temperature: float = 1.0, entropy_gradient: bool = False) -> PolicyValues:
        """Log-probabilities, entropies and values of the scored tokens.

        Args:
            forest: the packed text.
            temperature: what the logits are divided by, as they were when the tokens were drawn.
            entropy_gradient: let the entropy carry a gradient.
        """
        states = self.backbone.hidden_states(forest, read="predictors")
        wanted = {"with_entropy": True, **({"entropy_gradient": True} if entropy_gradient else {})}
        policy = self.backbone.logprobs_of(states, forest, temperature=temperature, **wanted)
        values = self._read(states) if self.kind == "shared" else self.values(forest)
        return PolicyValues(policy.logprobs, policy.entropy, values)

    def values(self, forest: Forest) -> Tensor:
        """(N,) float32 values of the states that the scored tokens were chosen in."""
        if self.trunk is not None:
            return self._read(self.trunk.hidden_states(forest, read="predictors"))
        with self.backbone.role("policy" if self.kind == "shared" else "critic"):
            return self._read(self.backbone.hidden_states(forest, read="predictors"))

    def _read(self, states: Tensor) -> Tensor:
        return self.v_head(states).squeeze(-1)

    @property
    def policy_parameters(self) -> list[nn.Parameter]:
        """What is trained of the policy."""
        critic = {id(parameter) for parameter in self.critic_parameters}
        ours = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return [parameter for parameter in ours if id(parameter) not in critic]

    @property
    def critic_parameters(self) -> list[nn.Parameter]:
        """What is trained of the critic alone: its head, and its adapter or model."""
        own: list[nn.Parameter] = list(self.v_head.parameters())
        if self.trunk is not None:
            own += [parameter for parameter in self.trunk.parameters() if parameter.requires_grad]
        elif self.kind == "adapter" and isinstance(self.backbone.model, PeftModel):
            own += adapters.adapter_parameters(self.backbone.model, adapters.CRITIC)
        return own

    @property
    def checkpointed_names(self) -> set[str]:
        """Names, within this module, of the tensors that a checkpoint must hold: all but frozen weights."""
        parts = {"backbone": self.backbone.checkpointed_names}
        if self.trunk is not None:
            parts["trunk"] = self.trunk.checkpointed_names
        ours = {f"{part}.{name}" for part, names in parts.items() for name in names}
        return ours | {f"v_head.{name}" for name in self.v_head.state_dict()}

    def save(self, folder: str | Path) -> None:
        """Write the policy as Hugging Face and PEFT write it, and the critic as a model with a value head.

        The folder of a shared trunk holds both in one: it loads as
        :class:`lit_rlhf.AutoModelForCausalLMWithValueHead`, and as the policy alone. Other critics lie beside the
        policy, in ``critic/``, and load so as well.
        """
        folder = Path(folder)
        self.backbone.save(folder)
        place = folder if self.kind == "shared" else folder / CRITIC_FOLDER
        place.mkdir(parents=True, exist_ok=True)
        if self.trunk is not None:
            self.trunk.save(place)
        elif self.kind == "adapter" and isinstance(self.backbone.model, PeftModel):
            adapters.save_adapter(self.backbone.model, adapters.CRITIC, place)
        head = {f"v_head.{name}": tensor.detach().cpu().clone() for name, tensor in self.v_head.state_dict().items()}
        is_whole = not isinstance((self.trunk or self.backbone).model, PeftModel)
        for name in HEAD_FILES[: 1 if is_whole else None]:
            save_file(head, place / name, {"format": "pt"})


class RewardStart(NamedTuple):
    """The reward model that a critic begins as, and how its scores are read.

    Args:
        folder: or hub name.
        weight: that its scores are multiplied by.
        normalise: whether they are brought to mean 0 and spread 1 of its validation data before.
    """

    folder: str
    weight: float = 1.0
    normalise: bool = False


def add_critic(
    backbone: Backbone,
    options: CriticOptions,
    reward: RewardStart | None = None,
    *,
    config: BackboneConfig | None = None,
    device: torch.device | None = None,
) -> ActorCritic:
    """Give a policy a critic.

    Args:
        backbone: of the policy.
        options: which critic.
        reward: the first reward model among the rewards, for ``init_from`` "reward"; without one it begins fresh.
        config: what the backbone was made from; None = it was made elsewhere.
        device: where quantised weights are made; None = CPU.

    Raises:
        ValueError: if the critic cannot be what the options ask for.
    """
    begins = _start(backbone, options, reward)
    start = None if begins is None else local_folder(begins.folder)
    trunk = None
    if options.kind == "model":
        trunk = _own_trunk(backbone, config, start, device)
    elif options.kind == "adapter":
        if not isinstance(backbone.model, PeftModel):
            raise ValueError(
                "critic.kind is 'adapter', and all weights of the policy are trained: take 'shared' or 'model'"
            )
        _add_adapter(backbone, start)
    shape = (trunk or backbone).base.config
    head = ValueHead(shape, 0.0, "normal", 1.0 / math.sqrt(hidden_size(shape) + 1))
    with torch.no_grad():
        found = None if start is None else read_score_head(start, head.summary.in_features)
        if found is not None and begins is not None:
            whole = found.collapsed()
            scale, shift = begins.weight, 0.0
            if begins.normalise and whole.is_measured:
                scale, shift = begins.weight / float(whole.std), -begins.weight * float(whole.mean / whole.std)
            head.summary.weight.copy_(whole.weight * scale)
            head.summary.bias.fill_(shift if whole.bias is None else float(whole.bias) * scale + shift)
            rank_zero_info(f"critic: begins as the reward model '{begins.folder}'")
    return ActorCritic(backbone, head, options.kind, trunk)


def _start(backbone: Backbone, options: CriticOptions, reward: RewardStart | None) -> RewardStart | None:
    """What the critic begins as; None = fresh."""
    if options.init_from == "fresh" or options.kind == "shared":  # a reward model's head reads its own trunk
        return None
    if options.init_from != "reward":
        return RewardStart(options.init_from)
    if reward is None:
        return None
    folder = local_folder(reward.folder)
    reason = None
    if read_score_head(folder, hidden_size(backbone.base.config)) is None:
        reason = "has no score head of the policy's width"
    elif options.kind == "adapter" and not (folder / CONFIG_NAME).is_file():
        reason = "is a whole model, which an adapter cannot begin as"
    elif options.kind == "adapter" and not adapters.is_same_base(adapters.base_of(folder), backbone.base):
        reason = "was trained on another base"
    if reason is not None:
        rank_zero_info(f"critic: begins with values near 0, because the reward model '{reward.folder}' {reason}")
        return None
    return reward


def _add_adapter(backbone: Backbone, start: Path | None) -> None:
    """Put the adapter ``critic`` on the backbone: that of a reward model, or one that changes nothing yet."""
    model = backbone.model
    assert isinstance(model, PeftModel)
    if start is not None and (start / CONFIG_NAME).is_file():
        adapters.add_adapter(model, str(start), adapters.CRITIC)
        adapters.train_adapter(model, adapters.CRITIC)
    elif start is not None:
        raise ValueError(
            f"critic.init_from '{start}' is a whole model, which an adapter cannot begin as: take critic.kind 'model', "
            "or init_from 'fresh'"
        )
    else:
        adapters.add_fresh_adapter(model, str(backbone.policy_adapter), adapters.CRITIC)


def _own_trunk(
    backbone: Backbone, config: BackboneConfig | None, start: Path | None, device: torch.device | None
) -> Backbone:
    """A model for the critic alone."""
    if config is None:
        copied = deepcopy(backbone.model)
        return Backbone(copied, None, backbone.attention)
    own = replace(config, adapter=None)
    if start is not None and (start / CONFIG_NAME).is_file():
        own = replace(config, adapter=str(start)) if config.lora.enabled else own
    elif start is not None:
        own = replace(own, name_or_path=str(start))
    return build_backbone(own, reference="none", device=device, role="critic")
