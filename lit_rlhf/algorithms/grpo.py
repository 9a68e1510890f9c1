"""Group Relative Policy Optimization, as a LightningModule.

Shao et al., "DeepSeekMath", arXiv 2402.03300, section 4.1. Of the G responses to a prompt each is compared with the
others; no critic is needed:

    A_i = (r_i - mean(r)) / std(r)                                                                                (1)
    loss = -1/G sum_i 1/|o_i| sum_t min(ratio A_i, clip(ratio) A_i) + beta KL(pi || pi_ref)                       (2)

One ``training_step`` is one iteration of its Algorithm 1:

    prompts -> G responses each -> scores -> advantages within the group
    -> for each pass, for each minibatch: clipped policy loss + KL loss -> backward -> clip -> step

Where we depart, and why:

1. The KL loss has the value of the paper's estimator (k3) and the gradient of the divergence, which k3 lacks
   (:mod:`lit_rlhf.losses.kl`).
2. One pass over one minibatch, as in the paper's experiments, has ratios of 1, and then clipping does nothing.
3. Dr. GRPO (arXiv 2503.20783), which favours neither short right answers nor prompts of little spread, is
   ``scale: none`` with ``updates.average: tokens``; DAPO (arXiv 2503.14476) is ``updates.average: tokens`` with
   ``clipping.clip_range_high: 0.28`` and ``kl.loss_coef: 0``.
4. Prompts are packed once for all of their responses, and a cut into micro-batches or ranks changes no number.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.losses.advantages import group_advantages
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rewards.scores import WeightedReward
from lit_rlhf.rollout.batches import RolloutBatch, prompts_alone
from lit_rlhf.rollout.collecting import ScoredRollouts
from lit_rlhf.rollout.experience import PolicyExperience
from lit_rlhf.rollout.groups import advantages_over_ranks, require_groups, without_spread
from lit_rlhf.rollout.iterations import POLICY_METRICS, Iterations
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import Forest, PromptBatch

_SAMPLING, _SCORES = SamplingOptions(num_responses=8), ScoreOptions()
_KL = KLOptions(coef=0.0, loss_coef=0.04, loss_estimator="k3+")
_CLIPPING = ClipOptions(dual_clip=None)
_UPDATES = UpdateOptions(num_epochs=1, num_minibatches=1, average="sequences")


class GRPOModule(LightningModule):
    """Trains a policy on how its responses to one prompt compare with each other, without a critic.

    One batch of prompts is one iteration. ``trainer.max_epochs`` counts passes over the prompts; ``max_steps`` counts
    optimizer steps, of which an iteration has ``num_epochs * num_minibatches``.

    Args:
        backbone: the policy to train; or one that you made yourself (a Hugging Face causal language model, a PEFT
            model, or a Backbone).
        rewards: what scores responses, summed by weight.
        sampling: how responses are drawn; at least two to each prompt.
        sampler: draws them; None = :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`.
        kl: how the policy is held to its reference: by ``loss_coef`` in the loss (the paper), by ``coef`` in the score
            of each response, or both.
        scores: what becomes of scores before they are learnt from.
        scale: what advantages are divided by: "group": the standard deviation of the scores of their prompt (the
            paper); "batch": that of all scores; "none" (Dr. GRPO).
        clipping: how far an iteration may move the policy; there are no values to clip.
        updates: how often and in what portions an iteration's responses are learnt from.
        entropy_coef: weight of the policy's entropy in the loss, 0-0.01 usual.
        reference_model: the reference, where it is a model of its own rather than the policy as it begins.
        optimizer: makes the optimizer from the trained parameters.
        lr_scheduler: makes the schedule, stepped once per iteration.
        tokenizer: of the policy, or its name; None = that of the data module, else of the backbone.
        seed: of what is drawn. What a row gets depends on the seed, the iteration and the row alone.

    Raises:
        ValueError: for settings that contradict each other.
    """

    def __init__(
        self,
        backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel,
        rewards: list[WeightedReward],
        sampling: SamplingOptions = _SAMPLING,
        sampler: Sampler | None = None,
        kl: KLOptions = _KL,
        scores: ScoreOptions = _SCORES,
        scale: Literal["group", "batch", "none"] = "group",
        clipping: ClipOptions = _CLIPPING,
        updates: UpdateOptions = _UPDATES,
        entropy_coef: float = 0.0,
        reference_model: BackboneConfig | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_groups(sampling, "GRPO", usual=8)
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: Backbone
        self.reference_model = reference_model
        self.scale, self.clipping, self.entropy_coef = scale, clipping, entropy_coef
        self.optimizer, self.lr_scheduler, self.tokenizer = optimizer, lr_scheduler, tokenizer
        self.iterations = Iterations(rewards, sampling, sampler, kl, scores, updates, seed, POLICY_METRICS)
        self.phases = self.iterations.phases

    def configure_model(self) -> None:
        """Load the backbone, here and not earlier, so that a Trainer has its devices by then."""
        refuse_combination(self)
        if "model" in self._modules:
            return
        device = root_device(self)
        self.model = build_policy(self.backbone, self.reference_model, device=device)
        self.iterations.open(self, self.model, self.tokenizer, device)

    def forward(self, forest: Forest) -> Tensor:
        """Log-probabilities (N,) of the scored tokens of a forest, in nats, at the temperature of the sampler."""
        return self.model.token_logprobs(forest, temperature=self.iterations.sampling.temperature).logprobs

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Prompts -> groups of responses -> scores -> advantages within groups -> passes of clipped updates."""
        scored = self.iterations.collect(self.model, prompts_alone(batch))
        losses_of = partial(
            self.iterations.policy_losses,
            self.model,
            experience=self._experience(scored),
            clipping=self.clipping,
            entropy_coef=self.entropy_coef,
        )
        learnt = self.iterations.learn(self, scored.rollouts, losses_of, self.model.idle)
        self.iterations.end(self, learnt)

    @torch.no_grad()
    def _experience(self, scored: ScoredRollouts) -> PolicyExperience:
        """What is known of responses and their scores to what they teach: every token has its response's advantage."""
        rollouts = scored.rollouts
        measures = self.iterations.measure(self.model, rollouts, entropy_gradient=self.entropy_coef > 0.0)
        scores = self.iterations.regularised_scores(scored, measures)
        of_responses = advantages_over_ranks(group_advantages, scores, rollouts.groups, scale=self.scale)  # eq. 1
        advantages = of_responses[:, None] * rollouts.response_mask
        self.iterations.watch(
            scored,
            measures.logprobs,
            measures.ref_logprobs,
            {"groups_without_spread": without_spread(scored.scores, rollouts.groups)},
            entropy=measures.entropy,
            advantages=advantages,
        )
        importance = self.iterations.importance(rollouts, measures.logprobs)
        return PolicyExperience(rollouts, measures.logprobs, measures.ref_logprobs, advantages, importance)

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Responses to held-out prompts, with their scores and divergences."""
        return self.iterations.answer(self.model, batch)

    def test_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Responses to test prompts, with their scores and divergences."""
        return self.iterations.answer(self.model, batch)

    def predict_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row per response: prompt, response, score, its parts, divergence and length."""
        return self.iterations.answer(self.model, batch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer over what is trained, one schedule stepped with each iteration."""
        return optimization(self, self.optimizer, self.lr_scheduler, steps_per_batch=self.iterations.updates.num_steps)

    def on_fit_start(self) -> None:
        """Choose the layout, and say so."""
        self.model.prepare()

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out prompts."""
        self.iterations.log_held_out(self, "val")

    def on_test_epoch_end(self) -> None:
        """Log the means over all test prompts."""
        self.iterations.log_held_out(self, "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and what the next iteration depends on; leave the frozen base out."""
        drop_frozen(checkpoint, self.model, "model.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks trained weights of this model."""
        self.configure_model()
        refuse_foreign(checkpoint, self.model, "model.")
