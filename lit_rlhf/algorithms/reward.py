"""Reward models, as a LightningModule.

Stiennon et al., "Learning to summarize from human feedback", arXiv 2009.01325, eq. 1, after Bradley and Terry:

    loss = -log sigmoid(r(x, y_w) - r(x, y_l) - margin)

Where we depart, and why:

1. A batch is a forest: what responses share is computed once for all of them. The numbers are those of padded rows.
2. One step's examples are cut into micro-batches by tokens; everything is divided by the counts of the whole step, over
   all micro-batches, accumulated batches and ranks, so that no cut changes the loss.
3. The score is read at the last token of a response, which the forest knows, never by looking for a pad token. The head
   computes in float32 and is trained whatever the adapters are.
4. How scores spread on the validation data is part of the model, so that PPO can begin from a known scale.
5. Several objectives have an output each and learn from their own grades; the score is their weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lit_rlhf.losses.reward_terms import (
    RewardTerm,
    ScoredExamples,
    graded_examples,
    pair_examples,
    refuse_missing,
    step_examples,
)
from lit_rlhf.losses.terms import part_names
from lit_rlhf.metrics.calibration import ReliabilityBin
from lit_rlhf.metrics.data import data_sums
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.reward import Evaluation, RewardMicroBatch, score_rows, watched
from lit_rlhf.metrics.scores import SCORE_METRICS, SumsAndCounts
from lit_rlhf.metrics.throughput import Throughput
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.heads.reward_model import RewardModel, build_reward_model, wrap_reward_model
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.micro_batches import Passes, StepWindow, backward_all_but_last, gradient_norm, in_step, no_loss
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.ranks import num_ranks, sum_over_ranks
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import (
    GradedBatch,
    GradedResponses,
    JudgedSteps,
    JudgedStepsBatch,
    PreferenceBatch,
    PreferencePairs,
    num_sequence_tokens,
)

RewardBatch = PreferenceBatch | GradedBatch | JudgedStepsBatch
_KINDS: dict[type, str] = {PreferencePairs: "pairs", GradedResponses: "graded", JudgedSteps: "steps"}
"""The ``data.kind`` that each type of micro-batch comes from."""


class RewardModule(LightningModule):
    """Trains a reward model: what people said of responses becomes a score.

    Args:
        backbone: the model to train; or one that you made yourself (a Hugging Face causal language model, a PEFT model,
            or a Backbone). ``backbone.adapter`` may be that of an SFT or DPO run, or of a reward model to go on from.
        losses: parts of the loss, summed by weight; None = Bradley-Terry on pairs.
        objectives: name -> weight in the score; the head has one output each. With ``data.kind: graded`` and several
            objectives each learns from its own grades, which ``data.objectives`` names in the same order.
        optimizer: makes the optimizer from the trained parameters.
        lr_scheduler: makes the schedule, stepped once per optimizer step.

    Raises:
        ValueError: for settings that contradict each other.
    """

    def __init__(
        self,
        backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel,
        losses: list[RewardTerm] | None = None,
        objectives: dict[str, float] | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "losses", "optimizer", "lr_scheduler"])
        self.losses = losses or [RewardTerm()]
        self.objectives = objectives or {"score": 1.0}
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: RewardModel
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.parts = part_names(self.losses)
        self.train_means = Means((*self.parts, *SCORE_METRICS))
        self.evaluation = Evaluation(self.parts)
        self.reliability: list[ReliabilityBin] = []
        self._window = StepWindow[RewardMicroBatch]()
        self._totals = torch.zeros(len(self.losses))
        self._throughput = Throughput()

    def configure_model(self) -> None:
        """Load the backbone, here and not earlier, so that a Trainer has its devices by then."""
        refuse_combination(self)
        if "model" in self._modules:
            return
        if isinstance(self.backbone, BackboneConfig):
            self.model = build_reward_model(self.backbone, self.objectives, device=root_device(self))
        else:
            self.model = wrap_reward_model(self.backbone, self.objectives)

    def forward(self, micro_batch: RewardMicroBatch) -> ScoredExamples:
        """Scores of the examples of a micro-batch: what every loss reads."""
        return self._examples(micro_batch, self._scores(micro_batch))

    def training_step(self, batch: RewardBatch, batch_idx: int) -> Tensor:
        """Scores -> losses -> one share of the step's loss per micro-batch."""
        self.train_means.update(data_sums(batch.notes, num_examples(batch)))
        micro_batches = self._window.collect(self, batch.micro_batches, batch_idx)
        if micro_batches is None:
            return no_loss(self)
        self._totals = self._step_totals(micro_batches)
        loss = backward_all_but_last(self, Passes(micro_batches, self._share, self.model.objective_scores))
        if (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self._log_training()
        return loss

    def _share(self, micro_batch: RewardMicroBatch) -> Tensor:
        """What a micro-batch adds to the loss of the step."""
        losses, sums = self._judge(micro_batch, self._scores(micro_batch))
        self.train_means.update(sums)
        self._throughput.add(num_sequence_tokens(micro_batch.forest))
        shares = torch.stack([loss.sum() for loss in losses]) / self._totals
        return (shares.new_tensor([term.weight for term in self.losses]) * shares).sum()

    def _scores(self, micro_batch: RewardMicroBatch) -> Tensor:
        """(L, K) scores of responses by objective, or (N,) of judged steps."""
        if isinstance(micro_batch, JudgedSteps):
            scores = self.model.step_scores(micro_batch.forest)
        else:
            scores = self.model.objective_scores(micro_batch.forest)
        if not torch.isfinite(scores).all():
            rows = ", ".join(dict.fromkeys(micro_batch.rows))
            raise FloatingPointError(f"a score is not finite at step {self.global_step}, in one of {rows}")
        return scores

    def _examples(self, micro_batch: RewardMicroBatch, scores: Tensor) -> ScoredExamples:
        """What the losses read of a micro-batch whose responses or steps have these scores."""
        refuse_missing(self.losses, _KINDS[type(micro_batch)])
        if isinstance(micro_batch, PreferencePairs):
            chosen, rejected, margins = micro_batch.chosen, micro_batch.rejected, micro_batch.margins
            return pair_examples(self.model.score.combine(scores), chosen, rejected, margins)
        if isinstance(micro_batch, GradedResponses):
            if micro_batch.grades.shape[1] != len(self.objectives):
                raise ValueError(
                    f"data.objectives names {micro_batch.grades.shape[1]} columns of grades, and model.objectives are "
                    f"{', '.join(self.objectives)}; give one column for each"
                )
            return graded_examples(scores, micro_batch.groups, micro_batch.ranks, micro_batch.grades)
        return step_examples(scores, micro_batch.labels)

    def _judge(self, micro_batch: RewardMicroBatch, scores: Tensor) -> tuple[list[Tensor], SumsAndCounts]:
        """Each loss of each of its units, and the sums and counts of all that is watched."""
        examples = self._examples(micro_batch, scores)
        losses = [term(examples) for term in self.losses]
        is_regression = any("grades" in term.signature.inputs for term in self.losses)
        sums = watched(micro_batch, self._whole(scores), scores if is_regression else None)
        for name, loss in zip(self.parts, losses, strict=True):
            sums[name] = loss.detach().sum(), len(loss)
        return losses, sums

    def _whole(self, scores: Tensor) -> Tensor:
        """(L,) the score that the objectives make together; a step has one anyway."""
        return self.model.score.combine(scores) if scores.dim() == 2 else scores

    def _step_totals(self, micro_batches: list[RewardMicroBatch]) -> Tensor:
        """(terms,) what each loss is divided by: its units of the step, over all ranks."""
        counts = torch.zeros(len(self.losses), device=self.device)
        for part in micro_batches:
            scores = torch.zeros(part.forest.num_sequences, len(self.objectives), device=self.device)
            examples = self._examples(part, torch.zeros_like(part.labels) if isinstance(part, JudgedSteps) else scores)
            counts += torch.tensor([term.count(examples) for term in self.losses], device=self.device)
        # Strategies average gradients over ranks, which is undone here; a loss without units adds nothing.
        return sum_over_ranks(counts).clamp(min=1.0) / num_ranks()

    def validation_step(self, batch: RewardBatch, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Losses and metrics of held-out examples; returns the scores of every row."""
        return self._evaluate(batch)

    def test_step(self, batch: RewardBatch, batch_idx: int) -> None:
        """Losses and metrics of test examples."""
        self._evaluate(batch)

    def predict_step(self, batch: RewardBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Scores of every pair, response or step."""
        passes: Iterator[RewardMicroBatch] = in_step(self.model, batch.micro_batches, self.model.objective_scores)
        return [row for part in passes for row in score_rows(part, self._whole(self._scores(part)))]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer over what is trained, one schedule stepped with it."""
        return optimization(self, self.optimizer, self.lr_scheduler)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: when Lightning calls this, all micro-batches but the last have left their gradients."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Watch the gradient's norm, before clipping."""
        self.log("train/grad_norm", gradient_norm(self))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step and clear the gradients."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def on_fit_start(self) -> None:
        """Choose the layout, and say so."""
        self.model.prepare()
        self._throughput = Throughput()

    def on_validation_start(self) -> None:
        """Validation is not training time."""
        self._throughput.pause()

    def on_validation_end(self) -> None:
        """Training time goes on."""
        self._throughput.go_on()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all held-out examples, and remember how scores spread."""
        found = self._log_evaluation("val")
        if "scores/std" in found:
            self.model.score.measure(*(found[f"scores/{name}"] for name in ("mean", "std", "num_responses")))

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all test examples."""
        for source, count in self.evaluation.num_pairs().items():
            self.log(f"test/pairs/{source}", count)
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep adapters and head, or all weights where all are trained, and the metrics; leave the frozen base out."""
        drop_frozen(checkpoint, self.model, "model.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks trained weights of this model."""
        self.configure_model()
        refuse_foreign(checkpoint, self.model, "model.")

    def _evaluate(self, batch: RewardBatch) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        self.evaluation.count(batch.notes, num_examples(batch))
        passes: Iterator[RewardMicroBatch] = in_step(self.model, batch.micro_batches, self.model.objective_scores)
        for part in passes:
            scores = self._scores(part)
            _, sums = self._judge(part, scores)
            self.evaluation.add(part, self._whole(scores), sums)
            rows += score_rows(part, self._whole(scores))
        return rows

    def _log_training(self) -> None:
        """The means since the last time. Logged before the step ends, so that a checkpoint finds them reset."""
        found = self.train_means.compute()
        self.train_means.reset()
        self._log("train", found, prog_bar=True)
        rate = sum_over_ranks(torch.tensor(self._throughput.rate(), device=self.device))
        self.log_dict({"train/lr": self.trainer.optimizers[0].param_groups[0]["lr"], "train/tokens_per_second": rate})

    def _log_evaluation(self, stage: str) -> dict[str, Tensor]:
        found, self.reliability = self.evaluation.compute(), self.evaluation.bins()
        self.evaluation.reset()
        self._log(stage, found)
        return found

    def _log(self, stage: str, found: dict[str, Tensor], prog_bar: bool = False) -> None:
        known = [term.weight * found[part] for part, term in zip(self.parts, self.losses, strict=True) if part in found]
        if known:
            self.log(f"{stage}/loss", torch.stack(known).sum(), prog_bar=prog_bar)
        shown = ("scores/accuracy", "scores/margin", "steps/accuracy")
        for name in found if len(self.parts) > 1 else sorted(set(found) - set(self.parts)):
            self.log(f"{stage}/{name}", found[name], prog_bar=prog_bar and name in shown)


def num_examples(batch: RewardBatch) -> int:
    """Pairs, responses or sequences of judged steps in a batch."""
    return sum(len(part.rows) for part in batch.micro_batches)
