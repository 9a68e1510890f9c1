"""A run of iterations: what is drawn, judged and learnt in each, and what one leaves to the next.

An algorithm that learns from rollouts has one of these and says what the losses are; all the rest is the same for each
of them.

Shape letters: L responses of this rank, R tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_rlhf.losses.kl import adapted_kl_coef, kl_k1, kl_k2, kl_k2_loss, kl_k3, kl_k3_loss
from lit_rlhf.losses.policy_gradient import clipped_policy_loss, importance_weights
from lit_rlhf.metrics.data import DATA_METRICS, data_sums
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.phases import Phases
from lit_rlhf.metrics.rollouts import RolloutMeter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.float32 import without_cast
from lit_rlhf.models.tokenizers import policy_tokenizer
from lit_rlhf.rewards.scores import WeightedReward
from lit_rlhf.rollout.batches import RolloutBatch, prompts_of
from lit_rlhf.rollout.collecting import Collector, ScoredRollouts, response_rows, watched_responses
from lit_rlhf.rollout.experience import PolicyExperience
from lit_rlhf.rollout.learning import Learnt, TokenLosses, learn
from lit_rlhf.rollout.measuring import Measurer, PolicyMeasures
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, packed_values
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.rollout.shaping import ScoreShaper
from lit_rlhf.types import Forest, InstructionBatch, Instructions, Rollouts

_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
_KL_LOSSES = {"k2": kl_k2_loss, "k3+": kl_k3_loss}
_NOTHING_MORE: Mapping[str, Tensor] = MappingProxyType({})

POLICY_METRICS = (
    *("policy_loss", "kl_loss", "approx_kl", "clip_fraction_low", "clip_fraction_high", "dual_clip_fraction"),
    "entropy",
)
"""Names of the means that :meth:`Iterations.policy_losses` tells of."""


class Iterations(nn.Module):
    """The iterations of a run. Its buffers are part of checkpoints.

    Args:
        rewards: judge responses, in a weighted sum.
        sampling: how responses are drawn.
        sampler: draws them; None = :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`.
        kl: how the policy is held to its reference.
        scores: what becomes of scores before they are learnt from.
        updates: how often and in what portions responses are learnt from.
        seed: of what is drawn.
        watched: names of the quantities that the algorithm tells ``means`` of.

    Attributes:
        number: () int64, iterations that are complete.
        kl_coef: () price of a nat of divergence from the reference, which moves where a target is set.
        means: of the losses of an iteration.
        measurer: asks the policy and its reference about them.
        meter: of its responses.
        phases: what is being done, and how long it takes.

    Raises:
        ValueError: if there is no reward, two have the same name, or nothing is random about the responses.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        sampling: SamplingOptions,
        sampler: Sampler | None,
        kl: KLOptions,
        scores: ScoreOptions,
        updates: UpdateOptions,
        seed: int,
        watched: Iterable[str],
    ) -> None:
        super().__init__()
        if sampling.temperature <= 0.0:
            raise ValueError("sampling.temperature is 0, so nothing would be tried out; it must be above 0, 1 usual")
        if scores.overlong_buffer > sampling.max_new_tokens:
            raise ValueError(
                f"scores.overlong_buffer is {scores.overlong_buffer}, and responses are cut at "
                f"sampling.max_new_tokens={sampling.max_new_tokens}; it is at most that"
            )
        self.kl, self.scores, self.updates, self.seed = kl, scores, updates, seed
        self.phases = Phases()
        self.collector = Collector(sampler or CachedSampler(), sampling, rewards, seed, self.phases)
        self.shaper = ScoreShaper(scores)
        self.means = Means(dict.fromkeys((*watched, *DATA_METRICS)))
        self.meter, self.held_out = RolloutMeter(), RolloutMeter()
        self.measurer = Measurer(updates, sampling.temperature)
        self.number: Tensor
        self.kl_coef: Tensor
        self.register_buffer("number", torch.tensor(0))
        self.register_buffer("kl_coef", torch.tensor(kl.coef))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move between devices, but stay in float32: in bfloat16 the KL coefficient would be too coarse to move."""
        return super()._apply(without_cast(fn), recurse)

    @property
    def sampling(self) -> SamplingOptions:
        """How responses are drawn."""
        return self.collector.sampling

    def open(
        self,
        module: LightningModule,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase | str | None,
        device: torch.device | None = None,
    ) -> None:
        """Get to know the policy; once, before its optimizer is made.

        Args:
            module: with a Trainer or without one.
            backbone: of the policy.
            tokenizer: of the policy, or its name; None = that of the data module, else of the backbone.
            device: where quantised weights of reward models are made.

        Raises:
            ValueError: if there is no tokenizer, nothing would end a response, or a reward does not fit the policy.
        """
        self.collector.open(backbone, policy_tokenizer(module, tokenizer, backbone), device)
        self.measurer.routing.open(backbone)

    def collect(self, backbone: Backbone, batch: RolloutBatch) -> ScoredRollouts:
        """Answer the prompts of an iteration, and judge the answers."""
        prompts = prompts_of(batch)
        self.means.update(data_sums(prompts.notes, len(prompts.prompts)))
        most_drawn = len(prompts.prompts) * self.sampling.num_responses * self.sampling.max_new_tokens
        begun = self.measurer.begin(backbone, prompts.prompts, most_drawn)
        return self.collector(backbone, prompts.prompts, f"iteration {int(self.number)}", begun=begun)

    def shaped_scores(self, scored: ScoredRollouts) -> Tensor:
        """(L,) scores as they are learnt from: normalised, bounded and penalised."""
        return self.shaper(scored.scores, scored.rollouts, self.sampling.max_new_tokens)

    def measure(self, backbone: Backbone, rollouts: Rollouts, *, entropy_gradient: bool = False) -> PolicyMeasures:
        """What policy and reference say of responses that will be learnt from.

        Args:
            backbone: of both.
            rollouts: of this rank.
            entropy_gradient: whether the entropy is part of the loss.
        """
        with self.phases("score"):
            return self.measurer.policy_and_reference(
                backbone, rollouts, learnt_by=self.key, entropy_gradient=entropy_gradient
            )

    @property
    def key(self) -> str:
        """Names the draws of minibatches of this iteration."""
        return f"{self.seed}:{int(self.number)}"

    def regularised_scores(self, scored: ScoredRollouts, measures: PolicyMeasures) -> Tensor:
        """(L,) shaped scores minus the price of leaving the reference, which is paid once for the whole response."""
        divergence = self.divergence(measures.logprobs, measures.ref_logprobs) * scored.rollouts.response_mask
        return self.shaped_scores(scored) - self.kl_coef * divergence.sum(1)

    def divergence(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """(L, R) divergence of each token from the reference, in nats, by ``kl.estimator``."""
        return of_tokens(_ESTIMATORS[self.kl.estimator], logprobs, ref_logprobs)

    def importance(self, rollouts: Rollouts, logprobs: Tensor, per: Literal["token", "response"] = "token") -> Tensor:
        """Weights that correct for a sampler that computes otherwise than the trainer; 1 for ours.

        Args:
            rollouts: the responses.
            logprobs: (L, R) by the trainer.
            per: whether tokens are weighed, (L, R), or whole responses, (L,).
        """
        theirs = rollouts.logprobs
        if per == "response":
            logprobs, theirs = ((column * rollouts.response_mask).sum(1) for column in (logprobs, theirs))
        cap = self.updates.importance_cap or (None if self.collector.sampler.is_exact else 2.0)
        if cap is None:
            return torch.ones_like(logprobs)
        return of_tokens(importance_weights, logprobs, theirs, cap=cap)

    def watch(
        self,
        scored: ScoredRollouts,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        of_responses: Mapping[str, Tensor] = _NOTHING_MORE,
        /,
        **more: Tensor,
    ) -> None:
        """Take in the responses of an iteration.

        Args:
            scored: the responses.
            logprobs: (L, R) under the policy.
            ref_logprobs: (L, R) under the reference.
            of_responses: (L,) each, beside scores and lengths.
            **more: (L, R) each, such as ``entropy``, ``values`` and ``returns``.
        """
        k1, k3 = of_tokens(kl_k1, logprobs, ref_logprobs), of_tokens(kl_k3, logprobs, ref_logprobs)
        gap = scored.rollouts.logprobs - logprobs
        columns = {"kl": k1, "kl_k3": k3, "sampler_kl": gap, **more}
        self.meter.add(scored.rollouts.response_mask, {**watched_responses(scored), **of_responses}, columns)

    def policy_losses(
        self,
        backbone: Backbone,
        micro_batch: RolloutMicroBatch,
        experience: PolicyExperience,
        *,
        clipping: ClipOptions,
        entropy_coef: float = 0.0,
    ) -> TokenLosses:
        """The clipped policy loss of each token, with the parts that are added to it, by an algorithm without a critic.

        Args:
            backbone: of the policy.
            micro_batch: of the experience.
            experience: what is learnt from.
            clipping: how far the policy may move.
            entropy_coef: weight of the policy's entropy.
        """
        pick = partial(packed_values, rollouts=experience.rollouts, micro_batch=micro_batch)
        said = self.measurer.policy(backbone, micro_batch, entropy_gradient=entropy_coef > 0.0)
        old_logprobs = pick(experience.logprobs)
        policy = clipped_policy_loss(
            said.logprobs,
            old_logprobs,
            pick(experience.advantages),
            clip_range=clipping.clip_range,
            clip_range_high=clipping.clip_range_high,
            dual_clip=clipping.dual_clip,
        )
        kl = self.kl_loss(said.logprobs, pick(experience.ref_logprobs))
        moved = kl_k3(old_logprobs, said.logprobs.detach())
        self.note(
            {
                **{"policy_loss": policy.losses, "kl_loss": kl, "approx_kl": moved, "entropy": said.entropy},
                **{"clip_fraction_low": policy.is_clipped_low, "clip_fraction_high": policy.is_clipped_high},
                "dual_clip_fraction": policy.is_dual_clipped,
            }
        )
        self.phases.count("train", micro_batch.forest.num_tokens)
        losses = pick(experience.importance) * policy.losses + self.kl.loss_coef * kl - entropy_coef * said.entropy
        return TokenLosses(losses, moved, policy.ratios)

    def kl_loss(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """(N,) divergence from the reference as a loss, in nats, by ``kl.loss_estimator``."""
        return _KL_LOSSES[self.kl.loss_estimator](logprobs, ref_logprobs)

    def note(self, columns: Mapping[str, Tensor]) -> None:
        """Take in quantities of a micro-batch, (N,) or (l,) each, for their means."""
        self.means.update({name: (column.detach().sum(), len(column)) for name, column in columns.items()})

    def learn(
        self,
        module: LightningModule,
        rollouts: Rollouts,
        losses_of: Callable[[RolloutMicroBatch], TokenLosses],
        idle: Callable[[Forest], Tensor],
        texts: InstructionBatch | None = None,
        text_losses_of: Callable[[Instructions], Tensor] | None = None,
        text_idle: Callable[[Forest], Tensor] | None = None,
        *,
        per: Literal["token", "response"] = "token",
        together: int = 1,
    ) -> Learnt:
        """Pass over the responses, minibatch by minibatch; the arguments are those of :func:`learn`."""
        mask = rollouts.response_mask
        with self.phases("update"):
            return learn(
                module,
                rollouts,
                losses_of,
                idle,
                updates=self.updates,
                learnt=mask & rollouts.finished[:, None] if self.scores.ignore_unfinished else mask,
                key=self.key,
                texts=() if texts is None else texts.micro_batches,
                text_losses_of=text_losses_of,
                text_idle=text_idle,
                per=per,
                together=together,
                progress=self.phases.progress,
            )

    def end(self, module: LightningModule, learnt: Learnt) -> None:
        """Log, and move the KL coefficient and the schedule; all before a checkpoint may be saved."""
        found = {f"rollout/{name}": value for name, value in self.meter.compute().items()}
        means = {**self.means.compute(), **self.measurer.routing.mismatch(module.device)}
        train = {f"train/{name}": value for name, value in means.items()}
        self.means.reset()
        shown: dict[str, Any] = {name: found.pop(name) for name in ("rollout/score", "rollout/kl") if name in found}
        module.log_dict(shown, prog_bar=True)
        module.log_dict(
            {
                **{**found, "rollout/kl_coef": self.kl_coef.clone(), **train, **self.phases.report()},
                **{"train/num_updates": float(learnt.num_updates), "train/ratio_max": learnt.ratio_max},
                **{"train/grad_norm": learnt.grad_norm, "train/lr": module.trainer.optimizers[0].param_groups[0]["lr"]},
            }
        )
        if self.kl.target is not None and shown:
            self.kl_coef.fill_(
                adapted_kl_coef(
                    float(self.kl_coef),
                    float(shown["rollout/kl"]),
                    target=self.kl.target,
                    num_responses=int(found["rollout/num_responses"]),
                    horizon=self.kl.horizon,
                )
            )
        cast(Any, module.lr_schedulers()).step()
        self.number += 1

    def answer(self, backbone: Backbone, batch: RolloutBatch) -> list[dict[str, Any]]:
        """Answer prompts that are not learnt from, once each, with the same random numbers each time.

        Args:
            backbone: of policy and reference.
            batch: of held-out prompts. What a row is answered does not depend on the rows beside it.

        Returns:
            One row per response: prompt, response, score, rewards, kl, length and finished.
        """
        sampling = replace(self.sampling, num_responses=1)
        scored = self.collector(backbone, prompts_of(batch).prompts, "held-out", sampling)
        with self.phases("score"):
            measures = self.measurer.policy_and_reference(backbone, scored.rollouts)
        mask = scored.rollouts.response_mask
        kl = of_tokens(kl_k1, measures.logprobs, measures.ref_logprobs)
        self.held_out.add(mask, watched_responses(scored), {"kl": kl, "entropy": measures.entropy})
        self.phases.report()  # the clock of an iteration runs for what is learnt from
        return response_rows(scored, (kl * mask).sum(1))

    def log_held_out(self, module: LightningModule, stage: str) -> None:
        """Log the means over all held-out responses as ``<stage>/<name>``."""
        for name, value in self.held_out.compute().items():
            module.log(f"{stage}/{name}", value, prog_bar=name in ("score", "kl"))


def of_tokens(function: Callable[..., Tensor], *columns: Tensor, **options: Any) -> Tensor:
    """A function of tokens, (N,) to (N,), of numbers of any one shape, such as (L, R)."""
    return function(*(column.flatten() for column in columns), **options).view_as(columns[0])
