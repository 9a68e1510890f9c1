"""A run of iterations: what is drawn, judged and learnt in each, and what one leaves to the next.

An algorithm that learns from rollouts has one of these and says what the losses are; all the rest is the same for each
of them.

Shape letters: L responses of this rank, R tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_rlhf.losses.kl import adapted_kl_coef, kl_k1, kl_k2, kl_k3
from lit_rlhf.losses.policy_gradient import importance_weights
from lit_rlhf.metrics.data import DATA_METRICS, data_sums
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.phases import Phases
from lit_rlhf.metrics.rollouts import RolloutMeter
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.tokenizers import policy_tokenizer
from lit_rlhf.rewards import WeightedReward
from lit_rlhf.rollout.cached_sampler import CachedSampler
from lit_rlhf.rollout.collecting import Collector, ScoredRollouts, response_rows, watched_responses
from lit_rlhf.rollout.learning import Learnt, TokenLosses, learn
from lit_rlhf.rollout.measuring import measure_policy
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch
from lit_rlhf.rollout.sampling import Sampler, SamplingOptions
from lit_rlhf.rollout.shaping import ScoreShaper
from lit_rlhf.types import InstructionBatch, Instructions, PromptAndTextBatch, PromptBatch, Rollouts

_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}

RolloutBatch = PromptBatch | PromptAndTextBatch
"""What an iteration reads."""


class Iterations(nn.Module):
    """The iterations of a run. Its buffers are part of checkpoints.

    Args:
        rewards: judge responses, in a weighted sum.
        sampling: how responses are drawn.
        sampler: draws them; None = :class:`lit_rlhf.rollout.cached_sampler.CachedSampler`.
        kl: how the policy is held to its reference.
        scores: what becomes of scores before they are learnt from.
        updates: how often and in what portions responses are learnt from.
        seed: of what is drawn.
        watched: names of the quantities that the algorithm tells ``means`` of.

    Attributes:
        number: () int64, iterations that are complete.
        kl_coef: () price of a nat of divergence from the reference, which moves where a target is set.
        means: of the losses of an iteration.
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
        self.kl, self.scores, self.updates, self.seed = kl, scores, updates, seed
        self.phases = Phases()
        self.collector = Collector(sampler or CachedSampler(), sampling, rewards, seed, self.phases)
        self.shaper = ScoreShaper(scores)
        self.means = Means((*watched, *DATA_METRICS))
        self.meter, self.held_out = RolloutMeter(), RolloutMeter()
        self.number: Tensor
        self.kl_coef: Tensor
        self.register_buffer("number", torch.tensor(0))
        self.register_buffer("kl_coef", torch.tensor(kl.coef))

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

    def collect(self, backbone: Backbone, batch: RolloutBatch) -> ScoredRollouts:
        """Answer the prompts of an iteration, and judge the answers."""
        prompts = prompts_of(batch)
        self.means.update(data_sums(prompts.notes, len(prompts.prompts)))
        return self.collector(backbone, prompts.prompts, f"iteration {int(self.number)}")

    def shaped_scores(self, scored: ScoredRollouts) -> Tensor:
        """(L,) scores as they are learnt from: normalised, bounded and penalised."""
        return self.shaper(scored.scores, scored.rollouts, self.sampling.max_new_tokens)

    def divergence(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """(L, R) divergence of each token from the reference, in nats, by ``kl.estimator``."""
        return of_tokens(_ESTIMATORS[self.kl.estimator], logprobs, ref_logprobs)

    def importance(self, rollouts: Rollouts, logprobs: Tensor) -> Tensor:
        """(L, R) weights of tokens that correct for a sampler that computes otherwise than the trainer; 1 for ours."""
        cap = self.updates.importance_cap or (None if self.collector.sampler.is_exact else 2.0)
        if cap is None:
            return torch.ones_like(logprobs)
        return of_tokens(importance_weights, logprobs, rollouts.logprobs, cap=cap)

    def watch(self, scored: ScoredRollouts, logprobs: Tensor, ref_logprobs: Tensor, **more: Tensor) -> None:
        """Take in the responses of an iteration.

        Args:
            scored: the responses.
            logprobs: (L, R) under the policy.
            ref_logprobs: (L, R) under the reference.
            **more: (L, R) each, such as ``entropy``, ``values`` and ``returns``.
        """
        k1, k3 = of_tokens(kl_k1, logprobs, ref_logprobs), of_tokens(kl_k3, logprobs, ref_logprobs)
        gap = scored.rollouts.logprobs - logprobs
        columns = {"kl": k1, "kl_k3": k3, "sampler_kl": gap, **more}
        self.meter.add(scored.rollouts.response_mask, watched_responses(scored), columns)

    def learn(
        self,
        module: LightningModule,
        rollouts: Rollouts,
        losses_of: Callable[[RolloutMicroBatch], TokenLosses],
        texts: InstructionBatch | None = None,
        text_losses_of: Callable[[Instructions], Tensor] | None = None,
    ) -> Learnt:
        """Pass over the responses, minibatch by minibatch; the arguments are those of :func:`learn`."""
        mask = rollouts.response_mask
        with self.phases("update"):
            return learn(
                module,
                rollouts,
                losses_of,
                updates=self.updates,
                learnt=mask & rollouts.finished[:, None] if self.scores.ignore_unfinished else mask,
                key=f"{self.seed}:{int(self.number)}",
                texts=() if texts is None else texts.micro_batches,
                text_losses_of=text_losses_of,
            )

    def end(self, module: LightningModule, learnt: Learnt) -> None:
        """Log, and move the KL coefficient and the schedule; all before a checkpoint may be saved."""
        found = {f"rollout/{name}": value for name, value in self.meter.compute().items()}
        train = {f"train/{name}": value for name, value in self.means.compute().items()}
        self.means.reset()
        shown = {name: found.pop(name) for name in ("rollout/score", "rollout/kl") if name in found}
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

    def answer(self, backbone: Backbone, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Answer prompts that are not learnt from, with the same random numbers each time.

        Args:
            backbone: of policy and reference.
            batch: of held-out prompts.
            batch_idx: of the batch.

        Returns:
            One row per response: prompt, response, score, rewards, kl, length and finished.
        """
        scored = self.collector(backbone, prompts_of(batch).prompts, f"held-out {batch_idx}")
        measures = measure_policy(
            backbone,
            scored.rollouts,
            token_budget=self.updates.token_budget,
            temperature=self.sampling.temperature,
        )
        mask = scored.rollouts.response_mask
        kl = of_tokens(kl_k1, measures.logprobs, measures.ref_logprobs)
        self.held_out.add(mask, watched_responses(scored), {"kl": kl, "entropy": measures.entropy})
        self.phases.report()  # the clock of an iteration runs for what is learnt from
        return response_rows(scored, (kl * mask).sum(1))

    def log_held_out(self, module: LightningModule, stage: str) -> None:
        """Log the means over all held-out responses as ``<stage>/<name>``."""
        for name, value in self.held_out.compute().items():
            module.log(f"{stage}/{name}", value, prog_bar=name in ("score", "kl"))


def prompts_of(batch: RolloutBatch) -> PromptBatch:
    """The prompts of a batch, with or without texts beside them."""
    return batch.prompts if isinstance(batch, PromptAndTextBatch) else batch


def texts_of(batch: RolloutBatch) -> InstructionBatch | None:
    """The texts to imitate of a batch; None where it has prompts alone."""
    return batch.texts if isinstance(batch, PromptAndTextBatch) else None


def of_tokens(function: Callable[..., Tensor], *columns: Tensor, **options: Any) -> Tensor:
    """(L, R) a function of tokens, (N,) to (N,), of padded numbers."""
    return function(*(column.flatten() for column in columns), **options).view_as(columns[0])
