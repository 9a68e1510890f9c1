"""Online DPO, as a LightningModule.

Guo et al., "Direct Language Model Alignment from Online AI Feedback", arXiv 2402.04792: the pairs that DPO learns from
are the policy's own responses of the moment, put in order by the rewards,

    loss = -log sigmoid(beta log pi(y+|x)/pi_ref(y+|x) - beta log pi(y-|x)/pi_ref(y-|x))                          (1)

One ``training_step`` is one iteration of its Algorithm 1:

    prompts -> responses -> scores -> the best and the worst to each prompt
    -> for each pass, for each minibatch: DPO's loss of the pairs -> backward -> clip -> step

Where we depart, and why:

1. There may be more than two responses to a prompt; the best and the worst are the pair. Where all score alike there is
   none, which is counted.
2. Log-probabilities are taken at the temperature of the sampler, as what is trained is what responds.
3. A pair shares its prompt and is never cut apart; other cuts, into micro-batches or ranks, change no number.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.losses.kl import kl_k3
from lit_rlhf.losses.terms import LossTerm, PairLogprobs, pair_logprobs, part_names, reward_scale
from lit_rlhf.metrics.pairs import PAIR_METRICS, pair_sums
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rewards.scores import WeightedReward
from lit_rlhf.rollout.batches import RolloutBatch, prompts_alone
from lit_rlhf.rollout.collecting import ScoredRollouts
from lit_rlhf.rollout.groups import best_and_worst, require_groups, require_whole_responses, select
from lit_rlhf.rollout.iterations import Iterations
from lit_rlhf.rollout.learning import TokenLosses
from lit_rlhf.rollout.measuring import PolicyMeasures
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, packed_values
from lit_rlhf.rollout.sampling.request import Sampler, SamplingOptions
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import Forest, PromptBatch, Rollouts

_SAMPLING, _SCORES = SamplingOptions(num_responses=2), ScoreOptions()
_UPDATES = UpdateOptions(num_epochs=1, num_minibatches=1)


class _Pairs(NamedTuple):
    """What an iteration learns from: B pairs, whose chosen and rejected responses stand one after another.

    Args:
        rollouts: the 2 B responses.
        logprobs: (2 B, R) under the policy that wrote them, by the trainer.
        ref_logprobs: (2 B, R) under the reference.
        margins: (B,) by how much the chosen response scored better.
    """

    rollouts: Rollouts
    logprobs: Tensor
    ref_logprobs: Tensor
    margins: Tensor


class OnlineDPOModule(LightningModule):
    """Trains a policy by DPO on pairs of its own responses, which the rewards put in order.

    One batch of prompts is one iteration. ``trainer.max_epochs`` counts passes over the prompts; ``max_steps`` counts
    optimizer steps, of which an iteration has ``num_epochs * num_minibatches``.

    Args:
        backbone: the policy to train; or one that you made yourself (a Hugging Face causal language model, a PEFT
            model, or a Backbone).
        rewards: what scores responses, summed by weight.
        sampling: how responses are drawn; at least two to each prompt.
        sampler: draws them; None = :class:`lit_rlhf.rollout.sampling.cached_sampler.CachedSampler`.
        losses: parts of the loss, summed by weight; None = plain DPO (the sigmoid loss).
        beta: strength of the pull to the reference, 0.1-0.5 usual; towards 0 the reference is ignored. None = each
            loss's own default.
        scores: what becomes of scores before pairs are chosen by them; responses that ``ignore_unfinished`` leaves out
            are in no pair.
        updates: how often and in what portions an iteration's pairs are learnt from. Losses are averaged over pairs;
            those that DPOModule averages over chosen tokens, over the tokens of each chosen response before.
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
        losses: list[LossTerm] | None = None,
        beta: float | None = 0.1,
        scores: ScoreOptions = _SCORES,
        updates: UpdateOptions = _UPDATES,
        reference_model: BackboneConfig | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_groups(sampling, "online DPO", usual=2)
        require_whole_responses(updates, "online DPO")
        if updates.routing == "replay":
            raise ValueError(
                "updates.routing is 'replay', for ratios to the policy that wrote the responses; online DPO has none, "
                "as its pairs are learnt from by ratios to the reference: leave it 'free'"
            )
        self.losses = losses or [LossTerm()]
        for term in self.losses:
            if term.is_whole_batch:
                raise ValueError(f"losses: {term.name} compares pairs of a whole batch by rank, which DPOModule can do")
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: Backbone
        self.reference_model = reference_model
        self.beta, self.reward_scale = beta, reward_scale(self.losses, beta)
        self.parts, self.temperature = part_names(self.losses), sampling.temperature
        self.optimizer, self.lr_scheduler, self.tokenizer = optimizer, lr_scheduler, tokenizer
        watched = ("loss", "approx_kl", *self.parts, *PAIR_METRICS)
        self.iterations = Iterations(rewards, sampling, sampler, KLOptions(coef=0.0), scores, updates, seed, watched)
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
        """Prompts -> responses -> scores -> the best and the worst to each prompt -> DPO's loss of these pairs."""
        scored = self.iterations.collect(self.model, prompts_alone(batch))
        with self.phases("score"):
            measures = self.iterations.measurer.policy_and_reference(self.model, scored.rollouts)
        pairs = self._pairs(scored, measures)
        losses_of = partial(self._losses, pairs=pairs)
        learnt = self.iterations.learn(self, pairs.rollouts, losses_of, self.model.idle, per="response", together=2)
        self.iterations.end(self, learnt)

    def _pairs(self, scored: ScoredRollouts, measures: PolicyMeasures) -> _Pairs:
        """The best and the worst response to each prompt."""
        rollouts, options = scored.rollouts, self.iterations.scores
        scores = self.iterations.shaped_scores(scored)
        is_allowed = rollouts.finished if options.ignore_unfinished else torch.ones_like(rollouts.finished)
        both = best_and_worst(scores, rollouts.groups, is_allowed)
        self.iterations.watch(
            scored,
            measures.logprobs,
            measures.ref_logprobs,
            {"ties": ~torch.isin(rollouts.groups, rollouts.groups[both])},
            entropy=measures.entropy,
        )
        members, (chosen, rejected) = both.flatten(), scores[both].unbind(1)
        return _Pairs(
            select(rollouts, members), measures.logprobs[members], measures.ref_logprobs[members], chosen - rejected
        )

    def _losses(self, micro_batch: RolloutMicroBatch, pairs: _Pairs) -> TokenLosses:
        """The losses of the pairs of a micro-batch, each given to both of its responses."""
        forest, pick = micro_batch.forest, partial(packed_values, rollouts=pairs.rollouts, micro_batch=micro_batch)
        said = self.model.token_logprobs(forest, with_entropy=True, temperature=self.temperature)
        reference, logratios = pick(pairs.ref_logprobs), said.logprobs.detach() - pick(pairs.logprobs)
        chosen = torch.arange(0, len(micro_batch.members), 2, device=reference.device)
        margins = pairs.margins[micro_batch.members[chosen] // 2]
        read = pair_logprobs(said.logprobs, reference, forest.sequences, chosen, chosen + 1, margins)
        losses = torch.stack([self._loss(term, read) for term in self.losses])  # eq. 1
        total = losses.new_tensor([term.weight for term in self.losses]) @ losses
        moved = kl_k3(pick(pairs.logprobs), said.logprobs.detach())
        self.iterations.means.update(
            pair_sums(read, said.logprobs.detach() - reference, said.entropy, beta=self.reward_scale)
        )
        parts = dict(zip(self.parts, losses, strict=True)) if len(losses) > 1 else {}
        self.iterations.note({"loss": total, "approx_kl": moved, **parts})
        self.phases.count("train", forest.num_tokens)
        return TokenLosses(total.repeat_interleave(2), moved, logratios.exp())

    def _loss(self, term: LossTerm, pairs: PairLogprobs) -> Tensor:
        """(B,) one part of the loss."""
        losses = term(pairs, self.beta)
        return losses / pairs.chosen_lengths if term.is_averaged_over_chosen_tokens else losses

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
