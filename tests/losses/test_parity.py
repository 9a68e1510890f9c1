"""Equal numbers and gradients to TRL 1.16, recorded by ``benchmarks/parity/losses.py`` from TRL's own code."""

import inspect
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from lit_rlhf import losses
from lit_rlhf.losses.divergences import alpha_scores, forward_kl_scores, js_scores, reverse_kl_scores

RECORDING = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text())
MASK = torch.tensor(RECORDING["inputs"]["completion_mask"])[:, 1:].bool()
REF, SQUARED = (torch.tensor(RECORDING["inputs"][name])[MASK] for name in ("ref", "squared"))
POLICY = torch.tensor(RECORDING["inputs"]["policy"])
LENGTHS = MASK.sum(1)
SEQUENCES = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
SHARED = torch.minimum(*LENGTHS.chunk(2)).repeat(2)

DIVERGENCES = {
    "reverse_kl": reverse_kl_scores,
    "forward_kl": forward_kl_scores,
    "js_divergence": js_scores,
    "alpha_divergence": partial(alpha_scores, alpha=0.5),
}


def named(case):
    settings = dict(case["settings"])
    return "-".join([*settings.pop("loss_types"), *(f"{key}={value}" for key, value in settings.items())])


def sums(logprobs, weights=1.0):
    """Token log-probabilities (N,) to sums, chosen (B,) and rejected (B,)."""
    return torch.zeros(len(LENGTHS)).index_add(0, SEQUENCES, weights * logprobs).chunk(2)


def available(logprobs, divergence, ld_alpha):
    """Every tensor a loss may ask for, by name."""
    weights = 1.0 if ld_alpha is None else losses.ld_token_weights(SEQUENCES, LENGTHS, SHARED, ld_alpha=ld_alpha)
    chosen, rejected = sums(logprobs, weights)
    ref_chosen, ref_rejected = sums(REF, weights)
    chosen_lengths, rejected_lengths = LENGTHS.float().chunk(2)
    return {
        "chosen_logratios": DIVERGENCES[divergence](chosen - ref_chosen),
        "rejected_logratios": DIVERGENCES[divergence](rejected - ref_rejected),
        "chosen_logprobs": chosen,
        "rejected_logprobs": rejected,
        "ref_chosen_logprobs": ref_chosen,
        "ref_rejected_logprobs": ref_rejected,
        "chosen_lengths": chosen_lengths,
        "rejected_lengths": rejected_lengths,
    }


def evaluate(name, tensors, settings):
    """One loss, called as an algorithm calls it: tensors and scalars by the names of its parameters."""
    loss = getattr(losses, f"{name}_loss")
    wanted = inspect.signature(loss).parameters
    given = {key: value for key, value in {**tensors, **settings}.items() if key in wanted}
    count = tensors["chosen_lengths"].sum() if losses.is_averaged_over_chosen_tokens(loss) else len(LENGTHS) // 2
    return loss(**given), count


@pytest.mark.parametrize("case", RECORDING["dpo"], ids=named)
def test_dpo_losses_and_gradients_by_token(case):
    settings = dict(case["settings"])
    names, factors = settings.pop("loss_types"), settings.pop("loss_weights", [1.0])
    policy = POLICY.clone().requires_grad_()
    logprobs = policy[MASK]
    tensors = available(logprobs, settings.pop("f_divergence_type", "reverse_kl"), settings.pop("ld_alpha", None))
    pair_weights = 1.0
    if settings.pop("use_weighting", False):
        chosen, rejected = losses.wpo_weights(logprobs, SQUARED, SEQUENCES, LENGTHS).chunk(2)
        pair_weights = chosen * rejected
    settings = {"beta": 0.1, **settings}

    total = 0.0
    for name, factor in zip(names, factors, strict=True):
        values, count = evaluate(name, tensors, settings)
        total = total + factor * (pair_weights * values).sum() / count
    total.backward()

    torch.testing.assert_close(total.detach(), torch.tensor(case["loss"]), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(policy.grad * MASK, torch.tensor(case["gradient"]) * MASK, rtol=1e-5, atol=1e-7)


def test_all_fifteen_are_recorded():
    assert len({name for case in RECORDING["dpo"] for name in case["settings"]["loss_types"]}) == 15


@pytest.mark.parametrize("name", RECORDING["reference_free"])
def test_reference_free_terms(name):
    settings = {
        "cpo": {"beta": 0.1, "label_smoothing": 0.1, "nll_coef": 0.0},
        "simpo": {"beta": 2.0, "gamma": 0.5},
        "orpo": {"beta": 0.25, "nll_coef": 0.0},
    }[name]
    values, _ = evaluate(name, available(POLICY[MASK], "reverse_kl", None), settings)
    torch.testing.assert_close(values, torch.tensor(RECORDING["reference_free"][name]), rtol=2e-6, atol=1e-7)
