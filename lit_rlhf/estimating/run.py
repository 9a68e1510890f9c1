"""What a run is, as far as its memory and its time depend on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from transformers import PretrainedConfig

from lit_rlhf.models.options import BackboneConfig


class Texts(NamedTuple):
    """The texts that a run is estimated for.

    Args:
        prompt: tokens of a prompt.
        response: tokens of a response.
        per_prompt: responses that share a prompt in one row.
    """

    prompt: int
    response: int
    per_prompt: int = 1

    @property
    def tree(self) -> int:
        """Tokens of a prompt with its responses."""
        return self.prompt + self.per_prompt * self.response


class Sampling(NamedTuple):
    """How responses are drawn, and how often they are learnt from.

    Args:
        num_responses: to each prompt.
        max_new_tokens: most tokens of a response.
        max_rows: most responses at once.
        max_cache_tokens: most tokens that the cache has room for.
        max_copy_bytes: room for copies of weights, on a CPU in float32.
        num_epochs: passes over the responses of an iteration.
        num_minibatches: portions of a pass.
    """

    num_responses: int
    max_new_tokens: int
    max_rows: int
    max_cache_tokens: int
    max_copy_bytes: int
    num_epochs: int
    num_minibatches: int


class Beside(NamedTuple):
    """A frozen model beside the policy, such as a reward model on a base of its own.

    Args:
        name: of it, as it is shown.
        config: of its base; None = it cannot be read, and that of the policy is taken.
        quantization: as in BackboneConfig.
        dtype: as in BackboneConfig.
    """

    name: str
    config: PretrainedConfig | None
    quantization: str
    dtype: str


@dataclass(frozen=True)
class Run:
    """A run.

    Args:
        algorithm: its word: sft, reward, dpo, ppo, grpo, rloo, reinforce or online_dpo.
        backbone: what is trained.
        config: of its model.
        texts: that it is estimated for.
        token_budget: most tokens of a forward pass.
        batch_size: rows, pairs or prompts of a step or an iteration, over all ranks.
        reference: the base alone, an adapter, a model of its own, or none.
        is_reference_cached: whether what it says is computed once.
        critic: as in CriticOptions; none outside of PPO.
        num_reward_adapters: reward models that lie on the backbone.
        beside: models beside it.
        sampling: of algorithms that draw responses.
        moments: numbers that the optimizer keeps of each trained number, in bytes of its type or alone.
        moment_bytes: bytes of such a number; None = those of the trained number.
        device: cuda or cpu.
        is_autocast: whether the trainer's precision is mixed.
        num_ranks: processes.
        is_sharded: whether weights are parted among them.
        num_rows: of the data; None = nobody knows.
        num_epochs: over the data.
    """

    algorithm: str
    backbone: BackboneConfig
    config: PretrainedConfig
    texts: Texts
    token_budget: int
    batch_size: int
    reference: Literal["none", "base", "adapter", "model"] = "none"
    is_reference_cached: bool = False
    critic: Literal["none", "adapter", "shared", "model"] = "none"
    num_reward_adapters: int = 0
    beside: tuple[Beside, ...] = field(default=())
    sampling: Sampling | None = None
    moments: int = 2
    moment_bytes: int | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    is_autocast: bool = False
    num_ranks: int = 1
    is_sharded: bool = False
    num_rows: int | None = None
    num_epochs: int = 1

    @property
    def step_tokens(self) -> int:
        """Tokens that one rank learns from in one optimizer step."""
        rows = -(-self.batch_size // self.num_ranks)
        if self.sampling is None:
            return rows * self.texts.tree
        responses = -(-rows * self.sampling.num_responses // self.sampling.num_minibatches)
        prompts = -(-responses // self.texts.per_prompt)
        return prompts * self.texts.prompt + responses * self.texts.response

    @property
    def pass_tokens(self) -> int:
        """T: tokens of the largest forward pass of training; a text that is longer than the budget has one alone."""
        whole = self.texts.prompt + self.texts.response * (self.texts.per_prompt if self.sampling is None else 1)
        return max(whole, min(self.token_budget, self.step_tokens))

    @property
    def pass_scored(self) -> int:
        """N: tokens of such a pass whose hidden states are read."""
        if self.algorithm == "reward":
            return max(1, self.pass_tokens * self.texts.per_prompt // self.texts.tree)
        return max(1, self.pass_tokens * self.texts.per_prompt * self.texts.response // self.texts.tree)

    @property
    def num_passes(self) -> int:
        """Forward passes, each with its backward pass, of one optimizer step."""
        return max(1, -(-self.step_tokens // self.pass_tokens))

    @property
    def keeps_prompts(self) -> bool:
        """Whether prompts are kept with their graph while responses are drawn, for the first step to go on from."""
        if self.sampling is None or self.sampling.num_minibatches > 1 or self.is_sharded:
            return False
        rows = -(-self.batch_size // self.num_ranks)
        longest = self.texts.prompt + self.sampling.num_responses * self.sampling.max_new_tokens
        return rows * longest <= self.token_budget and not self.backbone.gradient_checkpointing
