"""REINFORCE Leave-One-Out, as a LightningModule.

Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv 2402.14740. A response is one action,
and what is expected of it is the mean of the other k - 1 responses to its prompt (section 3.2):

    R(y) = r(x, y) - beta log pi(y|x)/pi_ref(y|x)                                                                 (1)
    gradient = 1/k sum_i [R(y_i) - 1/(k-1) sum_(j != i) R(y_j)] grad log pi(y_i|x)                                (2)

One ``training_step`` is one iteration:

    prompts -> k responses each -> scores, minus the divergence from the reference -> minus the mean of the others
    -> for each pass, for each minibatch: loss of whole responses -> backward -> clip -> step

Where we depart, and why:

1. The loss is the ratio of the policy to the one that wrote the response, times the advantage. In the one pass that is
   the paper's and our default the ratio is 1 and the gradient is that of (2); in further ones it is clipped, as PPO's.
2. Prompts are packed once for all of their responses, and a cut into micro-batches or ranks changes no number.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.losses.advantages import leave_one_out_advantages
from lit_rlhf.losses.kl import kl_k3
from lit_rlhf.losses.policy_gradient import clipped_policy_loss
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rewards.scores import WeightedReward
from lit_rlhf.rollout.batches import RolloutBatch, prompts_alone
from lit_rlhf.rollout.collecting import ScoredRollouts
from lit_rlhf.rollout.groups import advantages_over_ranks, require_groups, require_whole_responses, without_spread
from lit_rlhf.rollout.iterations import POLICY_METRICS, Iterations
from lit_rlhf.rollout.learning import TokenLosses
from lit_rlhf.rollout.measuring import PolicyMeasures
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, packed_values, response_sums
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import Forest, PromptBatch, Rollouts

_SAMPLING, _KL, _SCORES = SamplingOptions(num_responses=4), KLOptions(), ScoreOptions()
_CLIPPING, _UPDATES = ClipOptions(dual_clip=None), UpdateOptions(num_epochs=1, num_minibatches=1)


class RLOOModule(LightningModule):
    """Trains a policy on whole responses, each compared with the others to its prompt, without a critic.

    One batch of prompts is one iteration. ``trainer.max_epochs`` counts passes over the prompts; ``max_steps`` counts
    optimizer steps, of which an iteration has ``num_epochs * num_minibatches``.

    Args:
        backbone: the policy to train; or one that you made yourself (a Hugging Face causal language model, a PEFT
            model, or a Backbone).
        rewards: what scores responses, summed by weight.
        sampling: how responses are drawn; at least two to each prompt.
        sampler: draws them; None = :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`.
        kl: how the policy is held to its reference: ``coef`` is the paper's beta.
        scores: what becomes of scores before they are learnt from.
        clipping: how far an iteration of several steps may move the probability of a whole response; there are no
            values to clip.
        updates: how often and in what portions an iteration's responses are learnt from. Losses are averaged over
            responses.
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
        clipping: ClipOptions = _CLIPPING,
        updates: UpdateOptions = _UPDATES,
        reference_model: BackboneConfig | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_groups(sampling, "RLOO", usual=4)
        require_whole_responses(updates, "RLOO")
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: Backbone
        self.reference_model = reference_model
        self.clipping, self.temperature = clipping, sampling.temperature
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
        return self.model.token_logprobs(forest, temperature=self.temperature).logprobs

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Prompts -> groups of responses -> scores -> advantages over the others -> losses of whole responses."""
        scored = self.iterations.collect(self.model, prompts_alone(batch))
        measures = self.iterations.measure(self.model, scored.rollouts)
        losses_of = partial(
            self._losses,
            rollouts=scored.rollouts,
            measures=measures,
            advantages=self._advantages(scored, measures),
            importance=self.iterations.importance(scored.rollouts, measures.logprobs, per="response"),
        )
        learnt = self.iterations.learn(self, scored.rollouts, losses_of, self.model.idle, per="response")
        self.iterations.end(self, learnt)

    def _advantages(self, scored: ScoredRollouts, measures: PolicyMeasures) -> Tensor:
        """(L,) by how much each response is better than the mean of the others to its prompt."""
        mask, groups = scored.rollouts.response_mask, scored.rollouts.groups
        scores = self.iterations.regularised_scores(scored, measures)  # eq. 1
        advantages = advantages_over_ranks(leave_one_out_advantages, scores, groups)  # eq. 2, the bracket
        self.iterations.watch(
            scored,
            measures.logprobs,
            measures.ref_logprobs,
            {"groups_without_spread": without_spread(scored.scores, groups)},
            entropy=measures.entropy,
            advantages=advantages[:, None] * mask,
        )
        return advantages

    def _losses(
        self,
        micro_batch: RolloutMicroBatch,
        rollouts: Rollouts,
        measures: PolicyMeasures,
        advantages: Tensor,
        importance: Tensor,
    ) -> TokenLosses:
        """Clipped policy loss of each response, and what is added to it."""
        pick = partial(packed_values, rollouts=rollouts, micro_batch=micro_batch)
        sums = partial(response_sums, micro_batch=micro_batch)
        said = self.iterations.measurer.policy(self.model, micro_batch)
        old_logprobs = pick(measures.logprobs)
        policy = clipped_policy_loss(
            sums(said.logprobs),
            sums(old_logprobs),
            advantages[micro_batch.members],
            clip_range=self.clipping.clip_range,
            clip_range_high=self.clipping.clip_range_high,
            dual_clip=self.clipping.dual_clip,
        )
        kl = self.iterations.kl_loss(said.logprobs, pick(measures.ref_logprobs))
        moved = kl_k3(old_logprobs, said.logprobs.detach())
        self.iterations.note(
            {
                **{"policy_loss": policy.losses, "kl_loss": kl, "approx_kl": moved, "entropy": said.entropy},
                **{"clip_fraction_low": policy.is_clipped_low, "clip_fraction_high": policy.is_clipped_high},
                "dual_clip_fraction": policy.is_dual_clipped,
            }
        )
        self.phases.count("train", micro_batch.forest.num_tokens)
        losses = importance[micro_batch.members] * policy.losses + self.iterations.kl.loss_coef * sums(kl)
        return TokenLosses(losses, moved, policy.ratios)

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
