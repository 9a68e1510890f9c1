"""Proximal Policy Optimization with a value head, as a LightningModule.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, for language models as in Ziegler et al.,
arXiv 1909.08593, and Ouyang et al., arXiv 2203.02155. The policy is to maximise

    E[r(x, y)] - beta KL(pi || pi_ref)                                                                            (1)

One ``training_step`` is one iteration of the paper's Algorithm 1:

    prompts -> responses -> scores -> a reward per token, the divergence from the reference in it -> advantages (GAE)
    -> for each pass, for each minibatch: clipped policy loss + value loss -> backward -> clip -> step

Where we depart, and why (docs/algorithms/ppo.md has the reasons at length):

1. Policy, reference, reward model and critic are adapters and heads on one frozen backbone, which may be in 4 bits.
2. Responses and their prompts are packed without padding; a minibatch is cut into micro-batches by tokens, and
   everything is divided by the counts of the whole minibatch over all ranks, so that no cut changes a number.
3. Log-probabilities that ratios are taken to are computed by the trainer, at the temperature of the sampler.
4. What is drawn for a row depends on the seed, the iteration and the row: not on ranks, batches or memory.
5. A checkpoint falls between two iterations, never inside one, and holds all that the next one depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.losses.advantages import gae, length_adaptive_lambda, token_rewards
from lit_rlhf.losses.kl import kl_k3
from lit_rlhf.losses.policy_gradient import clipped_policy_loss
from lit_rlhf.losses.values import clipped_value_loss
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.heads.critic import ActorCritic, PolicyValues, add_critic
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.options import BackboneConfig, CriticOptions
from lit_rlhf.rewards.scores import WeightedReward
from lit_rlhf.rewards.start import reward_start
from lit_rlhf.rollout.averaging import whitened_over_ranks
from lit_rlhf.rollout.batches import RolloutBatch, texts_of
from lit_rlhf.rollout.collecting import ScoredRollouts
from lit_rlhf.rollout.experience import Experience
from lit_rlhf.rollout.iterations import Iterations
from lit_rlhf.rollout.learning import TokenLosses
from lit_rlhf.rollout.options import AdvantageOptions, ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, packed_values
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.schedules import ParameterGroup, WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import Forest, Instructions

_CRITIC, _SAMPLING, _KL = CriticOptions(), SamplingOptions(), KLOptions()
_SCORES, _ADVANTAGES, _CLIPPING, _UPDATES = ScoreOptions(), AdvantageOptions(), ClipOptions(), UpdateOptions()
_WATCHED = (
    *("policy_loss", "value_loss", "approx_kl", "clip_fraction_low", "clip_fraction_high", "dual_clip_fraction"),
    *("value_clip_fraction", "entropy", "kl_loss", "ptx_loss"),
)


class PPOModule(LightningModule):
    """Trains a policy on the scores of its own responses, held to a reference, with a critic's help.

    One batch of prompts is one iteration. ``trainer.max_epochs`` counts passes over the prompts; ``max_steps`` counts
    optimizer steps, of which an iteration has ``num_epochs * num_minibatches``.

    Args:
        backbone: the policy to train; or one that you made yourself (a Hugging Face causal language model, a PEFT
            model, or a Backbone).
        rewards: what scores responses, summed by weight.
        critic: where values come from.
        sampling: how responses are drawn.
        sampler: draws them; None = :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`.
        kl: how the policy is held to its reference.
        scores: what becomes of scores before they are learnt from.
        advantages: how rewards become advantages.
        clipping: how far an iteration may move policy and values.
        updates: how often and in what portions an iteration's responses are learnt from.
        vf_coef: weight of the value loss, 0.1-1 usual; it matters where policy and critic share a trunk.
        entropy_coef: weight of the policy's entropy in the loss, 0-0.01 usual.
        ptx_coef: weight of the loss on texts to imitate, where the data have some (InstructGPT, arXiv 2203.02155,
            eq. 2).
        reference_model: the reference, where it is a model of its own rather than the policy as it begins.
        optimizer: makes the one optimizer, with a group for the policy and one for the critic.
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
        critic: CriticOptions = _CRITIC,
        sampling: SamplingOptions = _SAMPLING,
        sampler: Sampler | None = None,
        kl: KLOptions = _KL,
        scores: ScoreOptions = _SCORES,
        advantages: AdvantageOptions = _ADVANTAGES,
        clipping: ClipOptions = _CLIPPING,
        updates: UpdateOptions = _UPDATES,
        vf_coef: float = 0.5,
        entropy_coef: float = 0.0,
        ptx_coef: float = 0.0,
        reference_model: BackboneConfig | None = None,
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=1e-5, eps=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if ptx_coef < 0:
            raise ValueError(f"ptx_coef is {ptx_coef}; it is not negative, and 0 imitates no texts")
        if min(vf_coef, entropy_coef) < 0.0:
            raise ValueError(f"vf_coef is {vf_coef} and entropy_coef is {entropy_coef}; neither is negative")
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: ActorCritic
        self.reference_model = reference_model
        self.rewards, self.critic, self.kl = rewards, critic, kl
        self.advantages, self.clipping, self.updates = advantages, clipping, updates
        self.vf_coef, self.entropy_coef, self.ptx_coef = vf_coef, entropy_coef, ptx_coef
        self.temperature = sampling.temperature
        self.optimizer, self.lr_scheduler, self.tokenizer = optimizer, lr_scheduler, tokenizer
        self.iterations = Iterations(rewards, sampling, sampler, kl, scores, updates, seed, _WATCHED)
        self.phases, self.measurer = self.iterations.phases, self.iterations.measurer

    def configure_model(self) -> None:
        """Load the backbone with its roles, here and not earlier, so that a Trainer has its devices by then."""
        refuse_combination(self)
        if "model" in self._modules:
            return
        device = root_device(self)
        backbone = build_policy(self.backbone, self.reference_model, device=device)
        config = self.backbone if isinstance(self.backbone, BackboneConfig) else None
        self.model = add_critic(backbone, self.critic, reward_start(self.rewards), config=config, device=device)
        self.iterations.open(self, backbone, self.tokenizer, device)

    def forward(self, forest: Forest) -> Tensor:
        """Values (N,) of the states that the scored tokens of a forest were chosen in."""
        return self.model.values(forest)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """Prompts -> responses -> scores -> token rewards -> advantages -> passes of clipped updates."""
        texts = texts_of(batch, self.ptx_coef)
        scored = self.iterations.collect(self.model.backbone, batch)
        experience = self._experience(scored)
        losses_of = partial(self._losses, experience=experience)
        learnt = self.iterations.learn(
            self, scored.rollouts, losses_of, self.model.idle, texts, self._text_losses, self.model.backbone.idle
        )
        self.iterations.end(self, learnt)

    @torch.no_grad()
    def _experience(self, scored: ScoredRollouts) -> Experience:
        """What is known of responses and their scores to what they teach: rewards of tokens, then advantages."""
        rollouts, mask, options = scored.rollouts, scored.rollouts.response_mask, self.advantages
        with self.phases("score"):
            logprobs, ref_logprobs, values, entropy = self.measurer.columns(
                self.model, self._read, rollouts, num_columns=4, learnt_by=self.iterations.key
            )
        divergence = self.iterations.divergence(logprobs, ref_logprobs)
        shaped = self.iterations.shaped_scores(scored)
        rewards = token_rewards(shaped, divergence, mask, kl_coef=float(self.iterations.kl_coef))
        gae_lambda: float | Tensor = options.gae_lambda
        if options.length_alpha is not None:
            gae_lambda = length_adaptive_lambda(rollouts.lengths, alpha=options.length_alpha)
        advantages, returns = gae(
            rewards, values, mask, gamma=options.gamma, gae_lambda=gae_lambda, value_lambda=options.value_lambda
        )
        more = {"entropy": entropy, "values": values, "returns": returns, "advantages": advantages}
        self.iterations.watch(scored, logprobs, ref_logprobs, **more)
        if options.whiten:
            advantages = whitened_over_ranks(advantages, mask)
        importance = self.iterations.importance(rollouts, logprobs)
        return Experience(rollouts, logprobs, ref_logprobs, values, advantages, returns, importance)

    def _read(self, micro_batch: RolloutMicroBatch) -> Sequence[Tensor]:
        """What policy, reference and critic say of the tokens of a micro-batch."""
        said = self._say(micro_batch)
        reference = self.measurer.reference(self.model.backbone, micro_batch)
        return said.logprobs, reference, said.values, said.entropy

    def _say(self, micro_batch: RolloutMicroBatch) -> PolicyValues:
        """What policy and critic say of the tokens of a micro-batch."""
        options = {"entropy_gradient": self.entropy_coef > 0.0, "head_alone": self._is_warming_up}
        return self.measurer.first_pass(micro_batch, partial(self.model, temperature=self.temperature, **options))

    def _losses(self, micro_batch: RolloutMicroBatch, experience: Experience) -> TokenLosses:
        """Clipped policy loss, clipped value loss, and what is added to them, of each token."""
        pick = partial(packed_values, rollouts=experience.rollouts, micro_batch=micro_batch)
        clipping = self.clipping
        said = self._say(micro_batch)
        old_logprobs = pick(experience.logprobs)
        policy = clipped_policy_loss(
            said.logprobs,
            old_logprobs,
            pick(experience.advantages),
            clip_range=clipping.clip_range,
            clip_range_high=clipping.clip_range_high,
            dual_clip=clipping.dual_clip,
        )
        value = clipped_value_loss(
            said.values, pick(experience.values), pick(experience.returns), clip_range_value=clipping.clip_range_value
        )
        losses = pick(experience.importance) * policy.losses - self.entropy_coef * said.entropy
        if self.kl.loss_coef:
            kl_losses = self.iterations.kl_loss(said.logprobs, pick(experience.ref_logprobs))
            losses = losses + self.kl.loss_coef * kl_losses
            self.iterations.note({"kl_loss": kl_losses})
        moved = kl_k3(old_logprobs, said.logprobs.detach())
        self.iterations.note(
            {
                **{"policy_loss": policy.losses, "value_loss": value.losses, "approx_kl": moved},
                **{"entropy": said.entropy, "value_clip_fraction": value.is_clipped},
                **{"clip_fraction_low": policy.is_clipped_low, "clip_fraction_high": policy.is_clipped_high},
                "dual_clip_fraction": policy.is_dual_clipped,
            }
        )
        self.phases.count("train", micro_batch.forest.num_tokens)
        return TokenLosses(
            float(not self._is_warming_up) * losses + self.vf_coef * value.losses, moved, policy.ratios.detach()
        )

    def _text_losses(self, texts: Instructions) -> Tensor:
        """Negative log-likelihood of the tokens of texts to imitate, by ``ptx_coef``."""
        losses = -self.model.backbone.token_logprobs(texts.forest).logprobs
        self.iterations.note({"ptx_loss": losses})
        return float(not self._is_warming_up) * self.ptx_coef * losses

    @property
    def _is_warming_up(self) -> bool:
        """Whether only the critic learns."""
        return int(self.iterations.number) < self.critic.warmup_iterations

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Responses to held-out prompts, with their scores and divergences."""
        return self.iterations.answer(self.model.backbone, batch)

    def test_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Responses to test prompts, with their scores and divergences."""
        return self.iterations.answer(self.model.backbone, batch)

    def predict_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row per response: prompt, response, score, its parts, divergence and length."""
        return self.iterations.answer(self.model.backbone, batch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer with a group for the policy and one for the critic, and one schedule."""
        groups = [
            ParameterGroup(self.model.policy_parameters),
            ParameterGroup(self.model.critic_parameters, self.critic.lr_factor),
        ]
        return optimization(self, self.optimizer, self.lr_scheduler, groups, self.updates.num_steps)

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
