"""Numbers of the tokens of responses, as models give them.

Shape letters: L responses of this rank, R tokens of the longest one, N tokens of the responses of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.models.layers.linear_logprobs import TokenLogprobs
from lit_rlhf.models.micro_batches import in_step
from lit_rlhf.models.moe.balancing import trains_routers
from lit_rlhf.models.whole import is_sharded
from lit_rlhf.ranks import sum_over_ranks
from lit_rlhf.rollout.first_pass import FirstPass
from lit_rlhf.rollout.minibatches import split
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, pack, padded_values
from lit_rlhf.rollout.routing import Routing
from lit_rlhf.types import Forest, Prompt, Rollouts


class PolicyMeasures(NamedTuple):
    """What policy and reference say of the tokens of responses, (L, R) float32 each, 0 behind a response.

    Args:
        logprobs: log-probabilities under the policy, in nats.
        ref_logprobs: the same under the reference.
        entropy: of the policy, in nats.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor


class Measurer:
    """Asks models about responses, at the temperature that they were drawn at.

    Args:
        updates: in what portions responses are read, and learnt from.
        temperature: of the sampler.

    Attributes:
        first_pass: what was said of the responses that the first step learns from.
        routing: the experts that their tokens have, where the policy is a mixture of experts.
    """

    def __init__(self, updates: UpdateOptions, temperature: float) -> None:
        self.updates = updates
        self.temperature = temperature
        self.routing = Routing(updates.routing)
        self.first_pass: FirstPass[Any] = FirstPass(self.routing)
        self._begun: tuple[Backbone, BegunPrompts] | None = None

    def begin(self, backbone: Backbone, prompts: Sequence[Prompt], most_drawn: int) -> BegunPrompts | None:
        """What a sampler may fill, for the next measurement to go on from.

        Args:
            backbone: of the policy, which measures before anything of it is trained.
            prompts: of this rank.
            most_drawn: most tokens of all their responses together.

        Returns:
            None where the first step learns from less than all responses, or they may not fit one micro-batch.
        """
        self._begun = None
        num_tokens = sum(len(prompt.tokens) for prompt in prompts) + most_drawn
        learns_from_all = self.updates.num_minibatches == 1 and num_tokens <= self.updates.token_budget
        is_whole = not is_sharded(backbone) and not backbone.base.is_gradient_checkpointing
        is_plain = not any(prompt.pictures for prompt in prompts) and not trains_routers(backbone)
        if learns_from_all and is_whole and is_plain:
            self._begun = backbone, BegunPrompts()
        return None if self._begun is None else self._begun[1]

    def _going_on(self) -> AbstractContextManager[None]:
        """What was begun is gone on from inside the context, once."""
        begun, self._begun = self._begun, None
        return nullcontext() if begun is None else begun[0].going_on(begun[1])

    def policy(
        self, backbone: Backbone, micro_batch: RolloutMicroBatch, *, entropy_gradient: bool = False
    ) -> TokenLogprobs:
        """Log-probabilities (N,) and entropies (N,) under the policy, with their gradients where those are on.

        Args:
            backbone: of the policy.
            micro_batch: some responses.
            entropy_gradient: let the entropy carry a gradient.
        """

        def compute(forest: Forest) -> TokenLogprobs:
            states = backbone.hidden_states(forest, read="predictors")
            wanted = {"with_entropy": True, "entropy_gradient": entropy_gradient}
            return backbone.logprobs_of(states, forest, temperature=self.temperature, **wanted)

        return self.first_pass(micro_batch, compute)

    @torch.no_grad()
    def reference(self, backbone: Backbone, micro_batch: RolloutMicroBatch) -> Tensor:
        """(N,) log-probabilities under the reference, in nats."""
        with backbone.role("reference"):
            return backbone.token_logprobs(micro_batch.forest, temperature=self.temperature).logprobs

    def policy_and_reference(
        self, backbone: Backbone, rollouts: Rollouts, *, learnt_by: str | None = None, entropy_gradient: bool = False
    ) -> PolicyMeasures:
        """What both say of responses.

        Args:
            backbone: of both.
            rollouts: of this rank.
            learnt_by: as in :meth:`columns`.
            entropy_gradient: as in :meth:`policy`, by which the policy will learn.
        """

        def read(micro_batch: RolloutMicroBatch) -> Sequence[Tensor]:
            said = self.policy(backbone, micro_batch, entropy_gradient=entropy_gradient)
            return said.logprobs, self.reference(backbone, micro_batch), said.entropy

        return PolicyMeasures(*self.columns(backbone, read, rollouts, num_columns=3, learnt_by=learnt_by))

    @torch.no_grad()
    def columns(
        self,
        model: nn.Module,
        read: Callable[[RolloutMicroBatch], Sequence[Tensor]],
        rollouts: Rollouts,
        *,
        num_columns: int,
        learnt_by: str | None = None,
    ) -> list[Tensor]:
        """What models say of every token of every response.

        Args:
            model: that is read.
            read: gives (N,) numbers of the tokens of a micro-batch, several columns of them.
            rollouts: of this rank.
            num_columns: how many columns.
            learnt_by: names the draw of minibatches by which just these responses will be learnt from; what the first
                of them needs is then computed once. None = they will not be.

        Returns:
            For each column its numbers, (L, R) float32, 0 behind a response.
        """
        first = None if learnt_by is None else self._first_step(model, rollouts, learnt_by)
        self.first_pass.expect(first)
        self.routing.measure(None if learnt_by is None else rollouts)
        begun = [] if first is None else [first]
        early = {member for micro_batch in begun for member in micro_batch.members.tolist()}
        others = [member for member in range(len(rollouts.prompts)) if member not in early]
        micro_batches = [*begun, *pack(rollouts, others, self.updates.token_budget)]
        with self._going_on():
            passes = in_step(model, micro_batches, lambda forest: read(_idle(forest)))
            said = [read(micro_batch) for micro_batch in passes]
        self.routing.learn()
        return [padded_values([columns[k] for columns in said], rollouts, micro_batches) for k in range(num_columns)]

    def _first_step(self, model: nn.Module, rollouts: Rollouts, key: str) -> RolloutMicroBatch | None:
        """All that the first step learns from, where that is one micro-batch at most on every rank.

        Where weights are sharded it is one on every rank: all of them keep a pass, or none does.
        """
        if trains_routers(model):  # which a step hears itself, in a pass of its own
            return None
        members = split(rollouts, self.updates.num_minibatches, f"{key}:0")[0]
        packed = pack(rollouts, members, self.updates.token_budget)
        fits = len(packed) == 1 or (not packed and not is_sharded(model))
        misfits = sum_over_ranks(torch.tensor(int(not fits), device=rollouts.tokens.device))
        return None if misfits or not packed else packed[0]


def _idle(forest: Forest) -> RolloutMicroBatch:
    return RolloutMicroBatch(forest, torch.empty(0, dtype=torch.int64))
