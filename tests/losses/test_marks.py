"""Marks: which losses carry which, that a partial keeps them, that new losses can carry them."""

from functools import partial
from inspect import isfunction

import torch

import lit_rlhf.losses
from lit_rlhf.losses import marks

LOSSES = {name: loss for name, loss in vars(lit_rlhf.losses).items() if name.endswith("_loss") and isfunction(loss)}


def test_there_are_all_losses():
    assert len(LOSSES) == 34


def test_who_carries_which():
    assert {name for name, loss in LOSSES.items() if marks.is_whole_batch(loss)} == {"aot_loss", "aot_unpaired_loss"}
    assert {name for name, loss in LOSSES.items() if marks.is_averaged_over_chosen_tokens(loss)} == {"sft_loss"}
    assert {name for name, loss in LOSSES.items() if marks.is_divergence_allowed(loss)} == {
        "sigmoid_loss",
        "sigmoid_norm_loss",
        "hinge_loss",
        "ipo_loss",
        "exo_pair_loss",
        "robust_loss",
        "discopop_loss",
        "sft_loss",
        "conservative_loss",
        "odpo_loss",
    }


def test_bound_settings_keep_the_marks():
    bound = partial(partial(lit_rlhf.losses.aot_loss, beta=0.2), label_smoothing=0.1)
    assert marks.is_whole_batch(bound)
    assert not marks.is_divergence_allowed(bound)


def test_a_decorated_loss_is_the_same_function_marked():
    def loss(chosen_logprobs):
        return -chosen_logprobs

    assert not marks.is_averaged_over_chosen_tokens(loss)
    assert marks.averaged_over_chosen_tokens(loss) is loss
    assert marks.is_averaged_over_chosen_tokens(loss)
    assert loss(torch.ones(1)).tolist() == [-1.0]
