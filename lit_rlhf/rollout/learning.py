"""Passes over the responses of an iteration: minibatches of micro-batches, one optimizer step per minibatch.

Shape letters: L responses, R tokens of the longest one, N tokens of the responses of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_rlhf.models.micro_batches import Passes, accumulate_gradients, clip_and_step, no_loss
from lit_rlhf.ranks import gather_rows, sum_over_ranks
from lit_rlhf.rollout.averaging import token_weights
from lit_rlhf.rollout.minibatches import split
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, pack, packed_values
from lit_rlhf.rollout.texts import deal_texts, text_weight
from lit_rlhf.types import Forest, Instructions, Rollouts


class TokenLosses(NamedTuple):
    """What an algorithm says of the tokens of a micro-batch.

    Args:
        losses: (N,) of the tokens, with their gradient; or (l,) of the responses, where the algorithm's losses are of
            those.
        kl: (N,) divergence of the policy that wrote the responses from the one that learns, in nats, detached.
        ratios: (N,) or (l,) probability under the policy that learns, in those under the one that wrote; detached.
    """

    losses: Tensor
    kl: Tensor
    ratios: Tensor


class Learnt(NamedTuple):
    """What became of an iteration's passes.

    Args:
        num_updates: optimizer steps.
        ratio_max: () largest ratio of a token, over all ranks.
        grad_norm: () norm of the last step's gradient, before clipping.
    """

    num_updates: int
    ratio_max: Tensor
    grad_norm: Tensor


def learn(
    module: LightningModule,
    rollouts: Rollouts,
    losses_of: Callable[[RolloutMicroBatch], TokenLosses],
    idle: Callable[[Forest], Tensor],
    *,
    updates: UpdateOptions,
    learnt: Tensor,
    key: str,
    per: Literal["token", "response"] = "token",
    together: int = 1,
    texts: Sequence[Instructions] = (),
    text_losses_of: Callable[[Instructions], Tensor] | None = None,
    text_idle: Callable[[Forest], Tensor] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Learnt:
    """Let a policy learn from responses.

    Args:
        module: in manual optimization, attached to a Trainer, with one optimizer.
        rollouts: of this rank.
        losses_of: losses of the tokens (or responses) of a micro-batch; they are averaged here.
        idle: the passes of a micro-batch, as in :class:`lit_rlhf.models.micro_batches.Passes`.
        updates: how often and in what portions.
        learnt: (L, R) bool, True = learnt from.
        key: names the draw of minibatches, such as seed and iteration.
        per: what the losses are of. Those of tokens are averaged as ``updates.average`` says.
        together: responses that are learnt from together, such as 2 where they come in pairs.
        texts: of this rank, dealt out over the minibatches of each pass; each is seen once in a pass.
        text_losses_of: (N,) losses of the tokens of texts, averaged over those of a minibatch on all ranks.
        text_idle: the passes of texts, where they are others.
        progress: told how many optimizer steps are done, and of how many.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite; nothing was updated with it.
    """
    watch = _Watch(module, rollouts)
    grad_norm, num_updates = torch.zeros((), device=module.device), 0
    for number in range(updates.num_epochs):
        minibatches = split(rollouts, updates.num_minibatches, f"{key}:{number}", together)
        mixes = deal_texts(texts, updates.num_minibatches, f"{key}:{number}", module.device)
        for members, mix in zip(minibatches, mixes, strict=True):
            average = "sequences" if per == "response" else updates.average
            weights = token_weights(learnt, members, average, module.device)
            mix_weight = text_weight(mix, module.device)
            forests = pack(rollouts, members, updates.token_budget, together)

            def text_loss_of(text: Instructions, weight: Tensor = mix_weight, is_alone: bool = not forests) -> Tensor:
                assert text_losses_of is not None
                loss = text_losses_of(text).sum() * weight
                # Other ranks wait for the gradients of what texts do not touch, such as a critic.
                return loss + no_loss(module) if is_alone else loss

            def loss_of(micro_batch: RolloutMicroBatch, weights: Tensor = weights) -> Tensor:
                said = losses_of(micro_batch)
                watch.see(said, micro_batch)
                if per == "response":  # a response weighs what its tokens weigh together
                    return (weights[micro_batch.members].sum(1) * said.losses).sum()
                return (packed_values(weights, rollouts, micro_batch) * said.losses).sum()

            accumulate_gradients(module, Passes(mix, text_loss_of, text_idle or idle), Passes(forests, loss_of, idle))
            if updates.max_kl is not None and watch.mean_kl() > updates.max_kl:
                module.optimizers().zero_grad()  # type: ignore[union-attr]
                return Learnt(num_updates, watch.ratio_max(), grad_norm)
            grad_norm = clip_and_step(module, updates.max_grad_norm)
            num_updates += 1
            progress(num_updates, updates.num_epochs * updates.num_minibatches)
    return Learnt(num_updates, watch.ratio_max(), grad_norm)


class _Watch:
    """Sees losses as they pass, and stops at one that is not finite."""

    def __init__(self, module: LightningModule, rollouts: Rollouts) -> None:
        self.module = module
        self.rollouts = rollouts
        self._ratio_max = torch.ones((), dtype=torch.float32, device=module.device)
        self._kl = torch.zeros(2, dtype=torch.float32, device=module.device)

    def see(self, said: TokenLosses, micro_batch: RolloutMicroBatch) -> None:
        if not torch.isfinite(said.losses).all():
            rows = dict.fromkeys(self.rollouts.prompts[member].row for member in micro_batch.members.tolist())
            raise FloatingPointError(
                f"the loss is not finite at step {self.module.global_step}, in one of {', '.join(rows)}; "
                "nothing was updated with it"
            )
        self._ratio_max = torch.maximum(self._ratio_max, said.ratios.max())
        self._kl += torch.stack([said.kl.sum(), said.kl.new_tensor(float(len(said.kl)))])

    def ratio_max(self) -> Tensor:
        """() largest ratio of a token, over all ranks."""
        return gather_rows(self._ratio_max[None, None])[0].max()

    def mean_kl(self) -> float:
        """Divergence per token of the last minibatch, over all ranks."""
        total, count = sum_over_ranks(self._kl).tolist()
        self._kl = torch.zeros_like(self._kl)
        return total / max(count, 1.0)
