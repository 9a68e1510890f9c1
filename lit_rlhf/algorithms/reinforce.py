"""REINFORCE with a baseline, as a LightningModule.

Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", Machine Learning
8, 1992: a token becomes likelier as far as what came of it is better than usual,

    gradient = E sum_t (R_t - b) grad log pi(y_t),    R_t = sum_(s >= t) gamma^(s - t) r_s                          (1)

where the last token's reward is the score, and every token pays for leaving the reference. One ``training_step`` is one
iteration:

    prompts -> responses -> scores -> a reward per token, the divergence from the reference in it -> returns
    -> minus a baseline -> for each pass, for each minibatch: clipped policy loss -> backward -> clip -> step

What is usual is the mean of the iteration, or of those before it; no critic is needed, and one response to a prompt is
enough. REINFORCE++ (Hu et al., arXiv 2501.03262) is ``whiten: true``, with several passes where wanted.

Where we depart, and why:

1. The loss is the ratio of the policy to the one that wrote the response, times the advantage. In the one pass that is
   our default the ratio is 1 and the gradient is that of (1); in further ones it is clipped, as PPO's.
2. The moving baseline is that of the iterations before, so that no response is compared with itself.
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

from lit_rlhf.losses.advantages import discounted_returns, token_rewards
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.ranks import sum_over_ranks
from lit_rlhf.rewards.scores import WeightedReward
from lit_rlhf.rollout.averaging import whitened_over_ranks
from lit_rlhf.rollout.baselines import MovingMean
from lit_rlhf.rollout.batches import RolloutBatch, prompts_alone
from lit_rlhf.rollout.collecting import ScoredRollouts
from lit_rlhf.rollout.experience import PolicyExperience
from lit_rlhf.rollout.iterations import POLICY_METRICS, Iterations
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import Forest, PromptBatch

_SAMPLING, _KL, _SCORES = SamplingOptions(), KLOptions(), ScoreOptions()
_CLIPPING, _UPDATES = ClipOptions(dual_clip=None), UpdateOptions(num_epochs=1, num_minibatches=1)


class REINFORCEModule(LightningModule):
    """Trains a policy on how much better its responses turn out than usual, without a critic.

    One batch of prompts is one iteration. ``trainer.max_epochs`` counts passes over the prompts; ``max_steps`` counts
    optimizer steps, of which an iteration has ``num_epochs * num_minibatches``.

    Args:
        backbone: the policy to train; or one that you made yourself (a Hugging Face causal language model, a PEFT
            model, or a Backbone).
        rewards: what scores responses, summed by weight.
        sampling: how responses are drawn; one to each prompt is enough.
        sampler: draws them; None = :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`.
        kl: how the policy is held to its reference: by ``coef`` in the reward of each token, by ``loss_coef`` in the
            loss, or both.
        scores: what becomes of scores before they are learnt from.
        baseline: what returns are compared with: "batch": their mean over the tokens of the iteration; "moving": an
            average of the means of the iterations before; "none".
        momentum: of the moving baseline, 0-1: the share of the past in it.
        gamma: discount per token; 1 = a score counts the same for the first token and the last.
        whiten: scale the advantages of all responses, over all ranks, to standard deviation 1 (REINFORCE++).
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
        baseline: Literal["batch", "moving", "none"] = "batch",
        momentum: float = 0.9,
        gamma: float = 1.0,
        whiten: bool = False,
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
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma is {gamma}; it lies in 0-1")
        if whiten and baseline != "batch":
            raise ValueError(f"whiten takes the mean of the iteration off, which is baseline 'batch', not '{baseline}'")
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: Backbone
        self.reference_model = reference_model
        self.baseline, self.gamma, self.whiten = baseline, gamma, whiten
        self.clipping, self.entropy_coef = clipping, entropy_coef
        self.optimizer, self.lr_scheduler, self.tokenizer = optimizer, lr_scheduler, tokenizer
        self.iterations = Iterations(rewards, sampling, sampler, kl, scores, updates, seed, POLICY_METRICS)
        self.phases = self.iterations.phases
        self.moving_mean = MovingMean(momentum)

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
        """Prompts -> responses -> scores -> token rewards -> returns -> advantages -> passes of clipped updates."""
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
        """What is known of responses and their scores to what they teach: rewards of tokens, then advantages."""
        rollouts, mask = scored.rollouts, scored.rollouts.response_mask
        measures = self.iterations.measure(self.model, rollouts, entropy_gradient=self.entropy_coef > 0.0)
        divergence = self.iterations.divergence(measures.logprobs, measures.ref_logprobs)
        shaped = self.iterations.shaped_scores(scored)
        rewards = token_rewards(shaped, divergence, mask, kl_coef=float(self.iterations.kl_coef))
        returns = discounted_returns(rewards, mask, gamma=self.gamma)
        advantages = (returns - self._usual(returns, mask)) * mask  # eq. 1
        self.iterations.watch(
            scored,
            measures.logprobs,
            measures.ref_logprobs,
            entropy=measures.entropy,
            returns=returns,
            advantages=advantages,
        )
        if self.whiten:
            advantages = whitened_over_ranks(advantages, mask)
        importance = self.iterations.importance(rollouts, measures.logprobs)
        return PolicyExperience(rollouts, measures.logprobs, measures.ref_logprobs, advantages, importance)

    def _usual(self, returns: Tensor, mask: Tensor) -> Tensor:
        """() what is usual, for the mean of all tokens of all ranks."""
        total, count = sum_over_ranks(torch.stack([(returns * mask).sum(), mask.sum().float()]))
        mean = total / count.clamp(min=1.0)
        if self.baseline == "moving" and count:
            return self.moving_mean(mean)
        return mean if self.baseline == "batch" else torch.zeros_like(mean)

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
