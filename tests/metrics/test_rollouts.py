"""Means over rollouts, against a slow computation over lists of numbers."""

from __future__ import annotations

import math
import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.metrics.rollouts import RolloutMeter

TOKENS = ("kl", "kl_k3", "entropy", "values", "returns", "advantages")


def responses(seed=0, lengths=(3, 1, 5, 2), offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    tokens = {name: torch.randn(mask.shape, generator=generator) + offset for name in TOKENS}
    tokens = {name: torch.where(mask, values, float("nan")) for name, values in tokens.items()}  # garbage in pads
    return mask, {"score": torch.randn(len(lengths), generator=generator)}, tokens


def slow(batches):
    """The same over plain lists."""
    found, num_tokens = {}, sum(int(mask.sum()) for mask, _, _ in batches)
    scores = [float(score) for _, of_responses, _ in batches for score in of_responses["score"]]
    found["num_responses"], found["length"] = len(scores), num_tokens / len(scores)
    found["score"] = mean = sum(scores) / len(scores)
    found["score_std"] = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    flat = {name: torch.cat([tokens[name][mask] for mask, _, tokens in batches]).double() for name in TOKENS}
    for name, values in flat.items():
        found[name] = float(values.sum()) / (len(scores) if name.startswith("kl") else num_tokens)
    found["advantages_std"] = float(flat["advantages"].std(correction=0))
    errors = flat["returns"] - flat["values"]
    found["explained_variance"] = 1.0 - float(errors.var(correction=0) / flat["returns"].var(correction=0))
    return found


def compute(batches):
    meter = RolloutMeter()
    for batch in batches:
        meter.add(*batch)
    return {name: float(value) for name, value in meter.compute().items()}


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_against_plain_lists(offset):
    batches = [responses(0, offset=offset), responses(1, (1,), offset), responses(2, (6, 6), offset)]
    found, expected = compute(batches), slow(batches)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_how_responses_come_makes_no_difference():
    mask, of_responses, tokens = responses()
    halves = [
        (mask[cut], {"score": of_responses["score"][cut]}, {name: values[cut] for name, values in tokens.items()})
        for cut in (slice(0, 1), slice(1, 4))
    ]
    assert compute(halves) == pytest.approx(compute([(mask, of_responses, tokens)]), rel=1e-6)


def test_it_begins_anew():
    meter = RolloutMeter()
    assert meter.compute() == {}
    meter.add(*responses(0))
    meter.compute()
    assert meter.compute() == {}
    meter.add(*responses(1))
    assert float(meter.compute()["score"]) == pytest.approx(slow([responses(1)])["score"])


@pytest.mark.parametrize("values", [0.0, 1.0])
def test_returns_that_do_not_differ_are_not_explained(values):
    """What rounding makes of equal numbers is no spread."""
    mask = torch.ones(7, 33, dtype=torch.bool)
    for number in range(60):
        level = float(torch.randn(1, generator=torch.Generator().manual_seed(number))) * 10.0 ** (number % 7)
        returns = torch.full(mask.shape, level)
        guesses = returns * values + torch.randn(mask.shape)
        found = compute([(mask, {}, {"values": guesses, "returns": returns})])
        assert found["explained_variance"] == 0.0, level


def test_what_explained_variance_says():
    mask = torch.ones(1, 4, dtype=torch.bool)
    returns = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for values, expected in ((returns, 1.0), (returns + 7.0, 1.0), (torch.zeros(1, 4), 0.0), (-returns, -3.0)):
        found = compute([(mask, {}, {"values": values, "returns": returns})])
        assert found["explained_variance"] == pytest.approx(expected, abs=1e-6)


def test_nothing_is_told_of_what_was_not_given():
    mask, _, tokens = responses()
    found = compute([(mask, {"finished": torch.ones(4)}, {"entropy": tokens["entropy"], "values": tokens["values"]})])
    assert set(found) == {"num_responses", "length", "finished", "entropy", "values"}


def test_no_responses_tell_nothing():
    assert compute([responses(0, ())]) == {}


def meet(rank, path):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    found = [compute([responses(rank)]), compute([responses(5, (2, 3) if rank else ())]), compute([responses(0, ())])]
    dist.destroy_process_group()
    expected = [slow([responses(0), responses(1)]), slow([responses(5, (2, 3))]), {}]
    for ours, wanted in zip(found, expected, strict=True):
        assert ours == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_ranks_say_the_same_as_one(tmp_path):
    """Also where one of them had no response."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=meet, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
