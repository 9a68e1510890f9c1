"""Many backward passes in one step: when it is due, what its loss says, what it leaves behind."""

from __future__ import annotations

import lightning
import pytest
import torch

from lit_rlhf.models.micro_batches import (
    Passes,
    StepWindow,
    accumulate_gradients,
    backward_all_but_last,
    clip_and_step,
    gradient_norm,
    in_step,
    no_loss,
)


def idle(forest):
    raise AssertionError("weights are whole: no rank waits for another")


class Squares(lightning.LightningModule):
    """Sum of (weight * x) ** 2 over micro-batches of numbers; gradients are cleared after the step only."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.window = StepWindow()
        self.seen, self.gradients = [], []

    def training_step(self, batch, batch_idx):
        due = self.window.collect(self, batch, batch_idx)
        self.seen.append((due, self.window.is_due))
        if not due:
            return no_loss(self)
        loss = backward_all_but_last(self, Passes(due, lambda x: (self.weight * x) ** 2, idle))
        assert float(loss) == pytest.approx(sum(x * x for x in due) * self.trainer.accumulate_grad_batches)
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(float(self.weight.grad))

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        pass

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(batches, tmp_path, **options):
    module = Squares()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, **{"max_epochs": 1, **quiet, **options}
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    return module


def test_every_batch_is_a_step(tmp_path):
    module = run([[1.0, 2.0, 3.0], [], [4.0]], tmp_path)
    assert module.seen == [([1.0, 2.0, 3.0], True), ([], True), ([4.0], True)]
    assert module.gradients == [28.0, 0.0, 32.0]


def test_accumulated_batches_wait_for_each_other(tmp_path):
    module = run([[1.0], [2.0, 3.0], [], [4.0], [5.0]], tmp_path, accumulate_grad_batches=2)
    waited = [(None, False), ([1.0, 2.0, 3.0], True), (None, False), ([4.0], True), ([5.0], True)]
    assert module.seen == waited
    assert module.gradients == [28.0, 32.0, 50.0]


def test_an_epoch_cut_short_leaves_nothing_waiting(tmp_path):
    module = run([[1.0], [2.0], [3.0]], tmp_path, accumulate_grad_batches=2, max_epochs=2, limit_train_batches=3)
    assert module.gradients == [10.0, 18.0] * 2
    window, other = StepWindow(), Squares()
    other.trainer = lightning.Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=4, max_epochs=1)
    other.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False
    assert window.collect(other, [1.0], 0) is None
    assert window.collect(other, [2.0], 0) is None, "a new epoch"
    assert [window.collect(other, [x], at) for at, x in ((1, 3.0), (2, 4.0))] == [None, None]
    assert window.collect(other, [5.0], 3) == [2.0, 3.0, 4.0, 5.0]


def test_no_loss_touches_everything_that_is_trained(tmp_path):
    module = Squares()
    module.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    loss = no_loss(module)
    loss.backward()
    assert float(loss) == 0.0
    assert float(module.weight.grad) == 0.0


def with_gradients(*gradients, precision="32-true"):
    module = lightning.LightningModule()
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in gradients]
    module.weights = torch.nn.ParameterList(weights)
    module.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, precision=precision)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if gradient is None else torch.tensor(gradient)
    return module


def test_the_gradient_norm_is_over_everything_that_has_one():
    assert float(gradient_norm(with_gradients([3.0, 0.0], None, [0.0, 4.0]))) == 5.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_norm_that_is_not_finite(bad):
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0; nothing was updated"):
        gradient_norm(with_gradients([1.0, bad], [0.0, 4.0]))


class Manual(Squares):
    """The same by hand: passes over micro-batches, then a clipped step."""

    def __init__(self, max_grad_norm):
        super().__init__()
        self.automatic_optimization = False
        self.bias = torch.nn.Parameter(torch.tensor(1.0))
        self.max_grad_norm, self.norms = max_grad_norm, []

    def training_step(self, batch, batch_idx):
        accumulate_gradients(self, Passes(batch, lambda x: (self.weight * x) ** 2 / 2 + self.bias * 0.0, idle))
        self.gradients.append(float(self.weight.grad))
        assert self.bias.grad is not None, "other ranks wait for it"
        self.norms.append(float(clip_and_step(self, self.max_grad_norm)))
        assert not [p for p in self.parameters() if p.grad is not None and p.grad.any()], "cleared"

    def on_before_optimizer_step(self, optimizer):
        self.clipped = float(self.weight.grad)

    def optimizer_zero_grad(self, *args):
        raise AssertionError("that of automatic optimization")

    optimizer_step = lightning.LightningModule.optimizer_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run_by_hand(batches, tmp_path, max_grad_norm, module=None):
    module = module or Manual(max_grad_norm)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_epochs=1, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    assert trainer.global_step == len(batches)
    return module


@pytest.mark.parametrize(("max_grad_norm", "stepped"), [(0.0, 14.0), (100.0, 14.0), (2.0, 2.0)])
def test_gradients_of_many_micro_batches_make_one_clipped_step(tmp_path, max_grad_norm, stepped):
    """The norm that is told is the one before clipping."""
    module = run_by_hand([[1.0, 2.0, 3.0]], tmp_path, max_grad_norm)
    assert module.gradients == module.norms == [14.0]
    assert float(module.weight) == pytest.approx(1.0 - 0.1 * stepped, rel=1e-5)


def test_a_rank_without_micro_batches_touches_everything_that_is_trained(tmp_path):
    module = run_by_hand([[], [2.0]], tmp_path, 1.0)
    assert module.gradients == [0.0, 4.0]
    assert module.norms == [0.0, 4.0]


def test_a_step_that_is_not_finite_is_not_taken(tmp_path):
    module = Manual(1.0)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0; nothing was updated"):
        run_by_hand([[float("inf")]], tmp_path, 1.0, module)
    assert float(module.weight) == 1.0


def test_only_sharded_weights_need_idle_passes():
    assert [*in_step(Squares(), [1, 2], idle)] == [1, 2]
