"""Supervised fine-tuning (instruction tuning), as a LightningModule.

Ouyang et al., "Training language models to follow instructions with human feedback", arXiv 2203.02155, section 3.5,
step 1: the model imitates demonstrations y of answers to prompts x, token by token,

    loss = - mean over the scored tokens of log pi(y_t | x, y_<t)

Where we depart, and why:

1. A batch is a forest: texts lie one after another in a row without padding, and none sees another. The numbers are
   those of padded rows.
2. One step's texts are cut into micro-batches by tokens; the mean is over the tokens (or texts) of the whole step, over
   all micro-batches, accumulated batches and ranks, so that no cut changes the loss.
3. Only the scored tokens reach the language-model head, and no tensor of tokens x vocabulary is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lit_rlhf.losses.likelihood import sequence_shares, smoothed_nll, token_shares
from lit_rlhf.losses.terms import refuse_nonfinite
from lit_rlhf.metrics.data import data_sums
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.texts import TEXT_METRICS, text_rows, text_sums
from lit_rlhf.metrics.throughput import Throughput
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import open_backbone
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.layers.linear_logprobs import TokenLogprobs
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.micro_batches import Passes, StepWindow, backward_all_but_last, gradient_norm, in_step, no_loss
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.ranks import num_ranks, sum_over_ranks
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import InstructionBatch, Instructions, num_sequence_tokens

Average = Literal["tokens", "sequences"]
_SHARES: dict[Average, Callable[[Tensor], Tensor]] = {"tokens": token_shares, "sequences": sequence_shares}


class SFTModule(LightningModule):
    """Trains a model to imitate texts: the first step, which reward models, DPO and PPO go on from.

    Args:
        backbone: the model to train; or one that you made yourself (a Hugging Face causal language model, a PEFT model,
            or a Backbone).
        average: tokens: every trained token of a step weighs the same. sequences: every text does, long or short.
        label_smoothing: mass of the target that is spread over all words, 0-1; 0 = plain likelihood.
        optimizer: makes the optimizer from the trained parameters.
        lr_scheduler: makes the schedule, stepped once per optimizer step.

    Raises:
        ValueError: for settings that cannot be.
    """

    def __init__(
        self,
        backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel,
        average: Average = "tokens",
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "optimizer", "lr_scheduler"])
        if average not in _SHARES:
            raise ValueError(f"average is '{average}'; it is one of {', '.join(get_args(Average))}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}; it lies from 0 to below 1")
        self.shares = _SHARES[average]
        self.label_smoothing = label_smoothing
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: Backbone
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.train_means = Means(TEXT_METRICS)
        self.eval_means = Means(TEXT_METRICS)
        self._window = StepWindow[Instructions]()
        self._total = torch.zeros(())
        self._throughput = Throughput()

    def configure_model(self) -> None:
        """Load the backbone, here and not earlier, so that a Trainer has its devices by then."""
        refuse_combination(self)
        if "model" in self._modules:
            return
        self.model = open_backbone(self.backbone, reference="none", device=root_device(self))

    def forward(self, texts: Instructions) -> TokenLogprobs:
        """Log-probabilities (N,) of the scored tokens, in nats, and what is watched beside them."""
        states = self.model.hidden_states(texts.forest, read="predictors")
        return self.model.logprobs_of(states, texts.forest, with_entropy=True, with_leads=self.label_smoothing > 0)

    def training_step(self, batch: InstructionBatch, batch_idx: int) -> Tensor:
        """Log-probabilities -> losses of tokens -> one share of the step's loss per micro-batch."""
        self.train_means.update(data_sums(batch.notes, num_texts(batch)))
        micro_batches = self._window.collect(self, batch.micro_batches, batch_idx)
        if micro_batches is None:
            return no_loss(self)
        self._total = self._step_total(micro_batches)
        loss = backward_all_but_last(self, Passes(micro_batches, self._share, self.model.idle))
        if (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self._log_training()
        return loss

    def _share(self, texts: Instructions) -> Tensor:
        """What a micro-batch adds to the loss of the step."""
        self._throughput.add(num_sequence_tokens(texts.forest))
        return self._weighted_loss(texts, self.train_means) / self._total

    def _weighted_loss(self, texts: Instructions, means: Means) -> Tensor:
        """Loss of a micro-batch, summed by the weights of its tokens; its metrics are added to ``means``."""
        read, sequences = self(texts), texts.forest.sequences
        losses = smoothed_nll(read.logprobs, read.leads, label_smoothing=self.label_smoothing)
        by_text = torch.bincount(sequences, losses.detach(), minlength=len(texts.rows))
        refuse_nonfinite(by_text[None], texts.rows, self.global_step)
        weights = self.shares(sequences)
        loss = (weights * losses).sum()
        sums = text_sums(texts, read.logprobs.detach(), read.is_likeliest, read.entropy)
        means.update({**sums, "loss": (loss.detach(), weights.sum())})
        return loss

    def _step_total(self, micro_batches: list[Instructions]) -> Tensor:
        """() what the loss is divided by: the weights of all tokens of the step, over all ranks."""
        weights = [self.shares(texts.forest.sequences).sum() for texts in micro_batches]
        total = torch.stack(weights).sum() if weights else torch.zeros((), dtype=torch.float32, device=self.device)
        # Strategies average gradients over ranks, which is undone here; a step without scored tokens adds nothing.
        return sum_over_ranks(total).clamp(min=1.0) / num_ranks()

    def validation_step(self, batch: InstructionBatch, batch_idx: int) -> None:
        """Loss and metrics of held-out texts."""
        self._evaluate(batch)

    def test_step(self, batch: InstructionBatch, batch_idx: int) -> None:
        """Loss and metrics of test texts."""
        self._evaluate(batch)

    def predict_step(self, batch: InstructionBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Log-likelihood of every text, in nats, over its trained tokens."""
        read = [(texts, self(texts)) for texts in in_step(self.model, batch.micro_batches, self.model.idle)]
        return [row for texts, seen in read for row in text_rows(texts, seen.logprobs, seen.is_likeliest)]

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
        """Log the means over all held-out texts."""
        self._log_means("val", self.eval_means)

    def on_test_epoch_end(self) -> None:
        """Log the means over all test texts."""
        self._log_means("test", self.eval_means)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter, or all weights where all are trained, and the metrics; leave the frozen base out."""
        drop_frozen(checkpoint, self.model, "model.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks trained weights of this model."""
        self.configure_model()
        refuse_foreign(checkpoint, self.model, "model.")

    def _evaluate(self, batch: InstructionBatch) -> None:
        self.eval_means.update(data_sums(batch.notes, num_texts(batch)))
        for texts in in_step(self.model, batch.micro_batches, self.model.idle):
            self._weighted_loss(texts, self.eval_means)

    def _log_training(self) -> None:
        """The means since the last time. Logged before the step ends, so that a checkpoint finds them reset."""
        self._log_means("train", self.train_means, prog_bar=True)
        rate = sum_over_ranks(torch.tensor(self._throughput.rate(), device=self.device))
        self.log_dict({"train/lr": self.trainer.optimizers[0].param_groups[0]["lr"], "train/tokens_per_second": rate})

    def _log_means(self, stage: str, means: Means, prog_bar: bool = False) -> None:
        values = means.compute()
        means.reset()
        if "nll" in values:
            values["perplexity"] = values["nll"].exp()
        shown = ("loss", "token_accuracy")
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=prog_bar and name in shown)


def num_texts(batch: InstructionBatch) -> int:
    """Texts over all micro-batches."""
    return sum(len(texts.rows) for texts in batch.micro_batches)
