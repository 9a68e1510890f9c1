"""A policy and its critic: log-probabilities of responses, and the value of every state on the way.

The critic is an adapter of its own on the policy's backbone, shares the policy's trunk, or is a model of its own. The
value of a state is read where the policy chooses: at the last token of the prompt for the first token of the response.

Shape letters: N scored tokens, H hidden size.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

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
from lit_rlhf.models.heads.head_files import read_head
from lit_rlhf.models.heads.reward_files import local_folder, read_reward_file
from lit_rlhf.models.heads.reward_model import read_score_head
from lit_rlhf.models.heads.value_files import HEAD_FILES
from lit_rlhf.models.heads.value_head import ValueHead, hidden_size
from lit_rlhf.models.loading import drop_lm_head, load_causal_lm, switch_dropout_off
from lit_rlhf.models.options import BackboneConfig, CriticOptions, LoraOptions
from lit_rlhf.models.whole import whole_state
from lit_rlhf.ranks import is_first_rank
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

    def forward(
        self, forest: Forest, *, temperature: float = 1.0, entropy_gradient: bool = False, head_alone: bool = False
    ) -> PolicyValues:
        """Log-probabilities, entropies and values of the scored tokens.

        Args:
            forest: the packed text.
            temperature: what the logits are divided by, as they were when the tokens were drawn.
            entropy_gradient: let the entropy carry a gradient.
            head_alone: keep the gradient of the values out of a trunk that the policy shares.
        """
        states = self.backbone.hidden_states(forest, read="predictors")
        wanted = {"with_entropy": True, **({"entropy_gradient": True} if entropy_gradient else {})}
        policy = self.backbone.logprobs_of(states, forest, temperature=temperature, **wanted)
        if self.kind != "shared":
            return PolicyValues(policy.logprobs, policy.entropy, self.values(forest))
        return PolicyValues(policy.logprobs, policy.entropy, self._read(states.detach() if head_alone else states))

    def idle(self, forest: Forest) -> Tensor:
        """(N,) numbers of a forest that nobody asks for, in step with ranks that have more to compute."""
        said = self(forest)
        return said.logprobs + said.values

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
            adapter = adapters.adapter_parameters(self.backbone.model, adapters.CRITIC)
            own += [parameter for parameter in adapter if parameter.requires_grad]
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
        policy, in ``critic/``, and load so as well. All ranks call this, and the first writes.
        """
        folder = Path(folder)
        self.backbone.save(folder)
        place = folder if self.kind == "shared" else folder / CRITIC_FOLDER
        if self.trunk is not None:
            self.trunk.save(place)
        elif self.kind == "adapter" and isinstance(self.backbone.model, PeftModel):
            adapters.save_adapter(self.backbone.model, adapters.CRITIC, place)
        state = whole_state(self.v_head.state_dict())
        if not is_first_rank():
            return
        place.mkdir(parents=True, exist_ok=True)
        head = {f"v_head.{name}": tensor.cpu().clone() for name, tensor in state.items()}
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
    if options.kind == "adapter" and not isinstance(backbone.model, PeftModel):
        raise ValueError(
            "critic.kind is 'adapter', and all weights of the policy are trained: take 'shared' or 'model'"
        )
    begins = _start(backbone, options, reward)
    start = None if begins is None else local_folder(begins.folder)
    trunk = None
    if options.kind == "model":
        trunk = _own_trunk(backbone, config, start, device)
    elif options.kind == "adapter":
        _add_adapter(backbone, start)
    shape = (trunk or backbone).base.config
    head = ValueHead(shape, summary_dropout_prob=0.0)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)  # random values of the size of the scores would hold the policy up for iterations
    if begins is not None and start is not None:
        _begin_head(head, start, begins)
        rank_zero_info(f"critic: begins as the reward model '{begins.folder}'")
    return ActorCritic(backbone, head, options.kind, trunk)


@torch.no_grad()
def _begin_head(head: ValueHead, start: Path, begins: RewardStart) -> None:
    """Let values be the scores of a reward model, as the policy is given them."""
    found = read_score_head(start, head.summary.in_features)
    assert found is not None
    whole = found.collapsed()
    scale, shift = begins.weight, 0.0
    if begins.normalise and whole.is_measured:
        scale, shift = begins.weight / float(whole.std), -begins.weight * float(whole.mean / whole.std)
    head.summary.weight.copy_(whole.weight * scale)
    head.summary.bias.fill_(shift if whole.bias is None else float(whole.bias) * scale + shift)


def _start(backbone: Backbone, options: CriticOptions, reward: RewardStart | None) -> RewardStart | None:
    """What the critic begins as; None = fresh."""
    if options.init_from == "fresh" or options.kind == "shared":  # a reward model's head reads its own trunk
        return None
    is_named = options.init_from != "reward"
    begins = RewardStart(options.init_from) if is_named else reward
    if begins is None:
        return None
    obstacle = _obstacle(local_folder(begins.folder), backbone, options.kind)
    if obstacle is None:
        return begins
    if is_named:
        raise ValueError(f"the critic cannot begin as critic.init_from '{begins.folder}': it {obstacle}")
    rank_zero_info(f"critic: begins with values of 0, because the reward model '{begins.folder}' {obstacle}")
    return None


def _obstacle(folder: Path, backbone: Backbone, kind: str) -> str | None:
    """Why a critic cannot begin as a reward model; None where it can."""
    try:
        head = read_head(folder, num_objectives=None)
    except ValueError:  # it is of another kind, or its labels have names
        return "is a classifier over labels"
    if head is None:
        return "has no score head"
    if len(head.weight) > 1 and read_reward_file(folder) is None:
        return "is a classifier over labels"
    if kind == "model":
        return None
    if not (folder / CONFIG_NAME).is_file():
        return "is a whole model, which an adapter cannot begin as"
    if head.weight.shape[1] != hidden_size(backbone.base.config) or not adapters.is_same_base(
        adapters.base_of(folder), backbone.base
    ):
        return "was trained on another base"
    if isinstance(backbone.model, PeftModel) and adapters.BEGINNING in backbone.model.peft_config:
        return "was trained on the base as it was before the policy's adapter took its beginning out of it"
    return None


def _add_adapter(backbone: Backbone, start: Path | None) -> None:
    """Put the adapter ``critic`` on the backbone: that of a reward model, or one that changes nothing yet."""
    model = backbone.model
    assert isinstance(model, PeftModel)
    if start is None:
        adapters.add_fresh_adapter(model, str(backbone.policy_adapter), adapters.CRITIC)
    else:
        adapters.add_adapter(model, str(start), adapters.CRITIC)
        adapters.train_adapter(model, adapters.CRITIC)


def _own_trunk(
    backbone: Backbone, config: BackboneConfig | None, start: Path | None, device: torch.device | None
) -> Backbone:
    """A model for the critic alone: that of a reward model, or another one like the policy. Nothing in it drops out."""
    if config is None and start is None:
        trunk = Backbone(deepcopy(backbone.model), None, backbone.attention)
        drop_lm_head(trunk.base)
        return trunk
    own = replace(config or _config_like(backbone), adapter=None)
    if start is None:
        trunk = build_backbone(own, reference="none", device=device, role="critic")
    elif not (start / CONFIG_NAME).is_file():
        own = replace(own, name_or_path=str(start), revision=None)
        trunk = build_backbone(own, reference="none", device=device, role="critic")
    else:
        trained_on = adapters.base_of(start)
        if not adapters.is_same_base(trained_on, backbone.base):
            own = replace(own, name_or_path=trained_on, revision=None)
        trunk = _adapted_trunk(own, start, device)
    switch_dropout_off(trunk)
    return trunk


def _adapted_trunk(own: BackboneConfig, start: Path, device: torch.device | None) -> Backbone:
    """A trunk that begins as an adapter: with the adapter on it, or with its change in the weights, all trained."""
    if own.lora.enabled:
        return build_backbone(replace(own, adapter=str(start)), reference="none", device=device, role="critic")
    model = load_causal_lm(own, device, with_lm_head=False)
    merged = adapters.load_adapter(model, str(start), 0.0, adapters.CRITIC).merge_and_unload()
    return Backbone(merged.requires_grad_(True), None, own.attention)


def _config_like(backbone: Backbone) -> BackboneConfig:
    """Settings of a second model like a policy that was made elsewhere."""
    return BackboneConfig(
        str(backbone.base.name_or_path),
        dtype=cast(Any, str(backbone.base.dtype).removeprefix("torch.")),
        lora=LoraOptions(enabled=isinstance(backbone.model, PeftModel)),
    )
