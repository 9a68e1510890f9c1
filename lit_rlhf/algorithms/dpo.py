"""Direct Preference Optimization and its relatives, as a LightningModule.

Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, eq. 7:

    loss = -log sigmoid(beta log pi(y_w|x)/pi_ref(y_w|x) - beta log pi(y_l|x)/pi_ref(y_l|x))

Where we depart, and why:

1. A batch is a forest: the prompt of a pair is computed once for both responses. The numbers are those of padded rows.
2. One step's pairs are cut into micro-batches by tokens; everything is divided by the counts of the whole step, over
   all micro-batches, accumulated batches and ranks, so that no cut changes the loss.
3. The backbone's own dropout is off (a policy that drops out differs from its reference); LoRA's is the user's choice.
4. A loss that compares pairs with each other sees all pairs of the step: it is evaluated once on log-probabilities
   computed without a graph, and its gradients are then carried into the micro-batches.
5. With adapters, the moving reference of TR-DPO mixes A and B apart, which is not the mix of their products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lit_rlhf.losses.divergences import bind_alpha, reverse_kl_scores
from lit_rlhf.losses.terms import (
    LossTerm,
    PairLogprobs,
    check_terms,
    couple,
    coupled_values,
    pair_logprobs,
    part_names,
    refuse_nonfinite,
    reward_scale,
)
from lit_rlhf.losses.weighting import wpo_weights
from lit_rlhf.metrics.data import data_sums
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.pairs import PAIR_METRICS, pair_rows, pair_sums
from lit_rlhf.metrics.throughput import Throughput
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import ReferenceKind, open_backbone
from lit_rlhf.models.checkpoints import drop_frozen, refuse_foreign
from lit_rlhf.models.loading import root_device
from lit_rlhf.models.micro_batches import Passes, StepWindow, backward_all_but_last, gradient_norm, in_step, no_loss
from lit_rlhf.models.options import BackboneConfig, ReferenceOptions
from lit_rlhf.models.reference import Reference
from lit_rlhf.ranks import gather_rows, num_ranks, sum_over_ranks
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.types import Forest, PreferenceBatch, PreferencePairs, num_sequence_tokens

_FIXED_LIVE = ReferenceOptions()


class _Coupled(NamedTuple):
    """A micro-batch, and what the losses that need the whole step said of it (one entry per term, or None)."""

    pairs: PreferencePairs
    terms: Sequence[tuple[Tensor, PairLogprobs] | None]

    @property
    def forest(self) -> Forest:
        """Of the micro-batch."""
        return self.pairs.forest


class _Scored(NamedTuple):
    """What a micro-batch came to: what its losses read, the (K, B) losses, and each metric's sum and count."""

    pairs: PairLogprobs
    losses: Tensor
    sums: dict[str, tuple[Tensor, Tensor | float]]


class DPOModule(LightningModule):
    """Trains a policy on preference pairs, held to a reference.

    Args:
        backbone: the model to train; or one that you made yourself (a Hugging Face causal language model, a PEFT model,
            or a Backbone).
        losses: parts of the loss, summed by weight; None = plain DPO (the sigmoid loss).
        beta: strength of the pull to the reference, 0.1-0.5 usual; towards 0 the reference is ignored. None = each
            loss's own default (0.1 for most, 2 for SimPO); implicit rewards then go by the first loss that has one.
        divergence: what takes the log-ratio's place, by import path: ``lit_rlhf.losses.reverse_kl_scores``,
            ``forward_kl_scores``, ``js_scores`` or ``alpha_scores``.
        divergence_alpha: of the alpha-divergence; ignored by the others.
        ld_alpha: weight of tokens past the length that both responses of a pair share, 0-1 (LD-DPO); 1 = plain.
        use_weighting: weigh each pair by how likely the policy is to write its responses (WPO).
        reference: live or kept, fixed or moving.
        optimizer: makes the optimizer from the trained parameters.
        lr_scheduler: makes the schedule, stepped once per optimizer step.

    Raises:
        ValueError: for settings that contradict each other.
    """

    def __init__(
        self,
        backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel,
        losses: list[LossTerm] | None = None,
        beta: float | None = None,
        divergence: Callable[..., Tensor] = reverse_kl_scores,
        divergence_alpha: float = 0.5,
        ld_alpha: float = 1.0,
        use_weighting: bool = False,
        reference: ReferenceOptions = _FIXED_LIVE,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "losses", "divergence", "reference", "optimizer", "lr_scheduler"])
        self.losses = losses or [LossTerm()]
        self.beta = beta
        self.reward_scale = reward_scale(self.losses, beta)
        self.scores = bind_alpha(divergence, divergence_alpha)
        self.ld_alpha = ld_alpha
        self.use_weighting = use_weighting
        self.reference = reference
        self.needs_reference = any(term.needs_reference for term in self.losses)
        check_terms(self.losses, divergence, ld_alpha=ld_alpha, use_weighting=use_weighting)
        if reference.sync_steps and not self.needs_reference:
            raise ValueError("reference.sync_steps moves a reference, and none of the losses reads one")
        self.backbone: BackboneConfig | Backbone | PreTrainedModel | PeftModel
        self.__dict__["backbone"] = backbone  # unregistered: its weights are those of self.model
        self.model: Backbone
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.strict_loading = False  # a checkpoint holds what was trained, not the frozen base
        self.parts = part_names(self.losses)
        self.train_means = Means((*self.parts, *PAIR_METRICS))
        self.eval_means = Means((*self.parts, *PAIR_METRICS))
        self._reference: Reference | None = None
        self._window = StepWindow[PreferencePairs]()
        self._totals = torch.zeros(len(self.losses))
        self._throughput = Throughput()

    def configure_model(self) -> None:
        """Load the backbone, here and not earlier, so that a Trainer has its devices by then."""
        refuse_combination(self)
        if "model" in self._modules:
            return
        kind: ReferenceKind = "none" if not self.needs_reference else "moving" if self.reference.sync_steps else "fixed"
        self.model = open_backbone(self.backbone, reference=kind, device=root_device(self))

    def forward(self, pairs: PreferencePairs) -> PairLogprobs:
        """Log-probabilities of each pair's responses under policy and reference: what every loss reads."""
        return self._score(pairs).pairs

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Policy and reference log-probabilities -> losses -> one share of the step's loss per micro-batch."""
        self.train_means.update(data_sums(batch.notes, batch.num_pairs))
        micro_batches = self._window.collect(self, batch.micro_batches, batch_idx)
        if micro_batches is None:
            return no_loss(self)
        self._totals = self._step_totals(micro_batches)
        loss = backward_all_but_last(self, Passes(self._coupled(micro_batches), self._share, self._idle))
        if (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self._log_training()
        return loss

    def _share(self, micro_batch: _Coupled) -> Tensor:
        """What a micro-batch adds to the loss of the step."""
        scored = self._score(micro_batch.pairs, micro_batch.terms)
        refuse_nonfinite(scored.losses, micro_batch.pairs.rows, self.global_step)
        self.train_means.update(scored.sums)
        self._throughput.add(num_sequence_tokens(micro_batch.pairs.forest))
        weights = scored.losses.new_tensor([term.weight for term in self.losses])
        return (weights * scored.losses.sum(1) / self._totals).sum()

    def _idle(self, forest: Forest) -> Tensor:
        """The passes of a micro-batch without its losses, in their order, by which a rank that has fewer takes part."""
        logprobs = self.model.token_logprobs(forest).logprobs
        if self.needs_reference:
            self._open_reference().idle(forest)
        return logprobs

    def _score(
        self, pairs: PreferencePairs, coupled: Sequence[tuple[Tensor, PairLogprobs] | None] | None = None
    ) -> _Scored:
        """Policy and reference log-probabilities of one micro-batch, its losses and its metrics."""
        forest = pairs.forest
        policy = self.model.token_logprobs(forest, with_entropy=True, with_log_sum_squares=self.use_weighting)
        ref = self._open_reference().logprobs(pairs) if self.needs_reference else torch.zeros_like(policy.logprobs)
        read = pair_logprobs(
            policy.logprobs,
            ref,
            forest.sequences,
            pairs.chosen,
            pairs.rejected,
            pairs.margins,
            num_sequences=forest.num_sequences,
            scores=self.scores,
            ld_alpha=self.ld_alpha,
        )
        losses = torch.stack(
            [
                term(read, self.beta) if known is None else coupled_values(*known, read)
                for term, known in zip(self.losses, coupled or [None] * len(self.losses), strict=True)
            ]
        )
        if self.use_weighting:
            lengths = torch.bincount(forest.sequences, minlength=forest.num_sequences)
            weights = wpo_weights(policy.logprobs, policy.log_sum_squares, forest.sequences, lengths)
            losses = losses * weights[pairs.chosen] * weights[pairs.rejected]
        logratios = policy.logprobs.detach() - ref
        sums = pair_sums(read, logratios, policy.entropy, pairs.sources, beta=self.reward_scale)
        for name, term, column in zip(self.parts, self.losses, losses.detach(), strict=True):
            per_token = term.is_averaged_over_chosen_tokens
            sums[name] = column.sum(), read.chosen_lengths.sum() if per_token else len(column)
        return _Scored(read, losses, sums)

    @torch.no_grad()
    def _coupled(self, micro_batches: list[PreferencePairs]) -> list[_Coupled]:
        """Micro-batches with the word of the losses that compare pairs of the whole step, over all ranks."""
        whole = [term.is_whole_batch for term in self.losses]
        if not any(whole) or (len(micro_batches) == 1 and num_ranks() == 1):
            return [_Coupled(pairs, [None] * len(whole)) for pairs in micro_batches]
        seen = [torch.empty(0, len(PairLogprobs._fields), device=self.device)]
        seen += [torch.stack(self._score(pairs).pairs, 1) for pairs in in_step(self.model, micro_batches, self._idle)]
        rows, at = gather_rows(torch.cat(seen))
        everything = PairLogprobs(*rows.unbind(1))
        words = [couple(term, everything, self.beta) if term.is_whole_batch else None for term in self.losses]
        result = []
        for pairs in micro_batches:
            mine = slice(at, at := at + len(pairs.rows))
            terms = [
                None if word is None else (word[0][mine], PairLogprobs(*(column[mine] for column in word[1])))
                for word in words
            ]
            result.append(_Coupled(pairs, terms))
        return result

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[override]
        """Losses and metrics of held-out pairs; returns the implicit rewards of every row."""
        return self._evaluate(batch)

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Losses and metrics of test pairs."""
        self._evaluate(batch)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Implicit rewards beta * (log pi - log pi_ref) of every row, in nats times beta."""
        passes = in_step(self.model, batch.micro_batches, self._idle)
        return [row for pairs in passes for row in pair_rows(pairs, self(pairs), beta=self.reward_scale)]

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
        """Step, clear the gradients, and move the reference when it is due: all before a checkpoint may be saved."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()
        if self.needs_reference:
            self._open_reference().move_if_due(self.global_step + 1)

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
        """Log the means over all held-out pairs."""
        self._log_means("val", self.eval_means)

    def on_test_epoch_end(self) -> None:
        """Log the means over all test pairs."""
        self._log_means("test", self.eval_means)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep adapters, or all weights where all are trained, and the metrics' state; leave the frozen base out."""
        self.teardown("fit")
        drop_frozen(checkpoint, self.model, "model.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks trained weights of this model."""
        self.configure_model()
        refuse_foreign(checkpoint, self.model, "model.")

    def teardown(self, stage: str) -> None:
        """Write the reference's log-probabilities that are not on disk yet."""
        if self._reference is not None:
            self._reference.flush()

    def _evaluate(self, batch: PreferenceBatch) -> list[dict[str, Any]]:
        self.eval_means.update(data_sums(batch.notes, batch.num_pairs))
        seen = [(pairs, self._score(pairs)) for pairs in in_step(self.model, batch.micro_batches, self._idle)]
        for _, scored in seen:
            self.eval_means.update(scored.sums)
        return [row for pairs, scored in seen for row in pair_rows(pairs, scored.pairs, beta=self.reward_scale)]

    def _log_training(self) -> None:
        """The means since the last time. Logged before the step ends, so that a checkpoint finds them reset."""
        self._log_means("train", self.train_means, prog_bar=True)
        rate = sum_over_ranks(torch.tensor(self._throughput.rate(), device=self.device))
        self.log_dict({"train/lr": self.trainer.optimizers[0].param_groups[0]["lr"], "train/tokens_per_second": rate})

    def _log_means(self, stage: str, means: Means, prog_bar: bool = False) -> None:
        values = means.compute()
        means.reset()
        if all(part in values for part in self.parts):
            loss = sum(term.weight * values[part] for part, term in zip(self.parts, self.losses, strict=True))
            self.log(f"{stage}/loss", loss, prog_bar=prog_bar)
        shown = ("rewards/accuracy", "rewards/margin")
        for name in values if len(self.parts) > 1 else sorted(set(values) - set(self.parts)):
            self.log(f"{stage}/{name}", values[name], prog_bar=prog_bar and name in shown)

    def _step_totals(self, micro_batches: list[PreferencePairs]) -> Tensor:
        """(K,) what each loss is divided by: pairs or chosen tokens of the step, over all ranks."""
        pairs = sum(len(part.rows) for part in micro_batches)
        tokens = sum(int((part.forest.sequences[:, None] == part.chosen).sum()) for part in micro_batches)
        counts = torch.tensor([pairs, tokens], dtype=torch.float32, device=self.device)
        counts = sum_over_ranks(counts) / num_ranks()  # strategies average gradients over ranks, which is undone here
        return torch.stack([counts[int(term.is_averaged_over_chosen_tokens)] for term in self.losses])

    def _open_reference(self) -> Reference:
        if self._reference is None:
            folder = self.trainer.default_root_dir if self.reference.cache else "."
            self._reference = Reference(self.model, self.reference, folder, self.global_rank)
        return self._reference
