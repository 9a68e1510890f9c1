"""In which unit training is counted."""

from __future__ import annotations

from lightning.pytorch import Callback

from lit_rlhf.callbacks.iterations import iterations_done, moment, steps_done


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append((moment(trainer), steps_done(trainer), trainer.global_step))

    def on_validation_end(self, trainer, *args):
        self.seen.append(iterations_done(trainer))


def test_an_iteration_has_many_steps(iterate, rollouts):
    watch = Watch()
    iterate(rollouts(), watch, num=2, max_epochs=2, limit_val_batches=1, num_sanity_val_steps=1)
    assert watch.seen == [
        0,
        ("iteration 1", 1, 2),
        ("iteration 2", 2, 4),
        2,
        ("iteration 3", 3, 6),
        ("iteration 4", 4, 8),
        4,
    ]


def test_other_algorithms_are_counted_in_steps(train, policy):
    watch = Watch()
    train(policy(), watch, accumulate_grad_batches=2, limit_val_batches=0)
    assert watch.seen == [("step 0", 0, 0), ("step 1", 1, 1), ("step 2", 2, 2)]
