"""Scores as they are learnt from: the order of what is done, by hand, and statistics of all that was ever seen."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.rollout.options import ScoreOptions
from lit_rlhf.rollout.shaping import ScoreShaper
from lit_rlhf.types import Rollouts

LENGTHS, FINISHED = (8, 3, 6, 1), (False, True, True, True)


def rollouts(lengths=LENGTHS, finished=FINISHED):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    mask = torch.arange(8) < lengths[:, None]
    none = torch.zeros(mask.shape)
    ended = torch.tensor(finished, dtype=torch.bool)
    return Rollouts((), lengths, none.long(), mask, none, ended)


def shaped(scores, rolled=None, **options):
    quiet = {"clip": 0.0, "missing_eos_penalty": 0.0, **options}
    return ScoreShaper(ScoreOptions(**quiet))(torch.tensor(scores), rolled or rollouts(), 8).tolist()


SCORES = [1.0, -3.0, 0.5, 20.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SCORES),
        ({"clip": 2.0}, [1.0, -2.0, 0.5, 2.0]),
        ({"missing_eos_penalty": 1.5}, [-0.5, -3.0, 0.5, 20.0]),
        ({"missing_eos_score": -4.0}, [-4.0, -3.0, 0.5, 20.0]),
        ({"missing_eos_score": -4.0, "clip": 2.0}, [-4.0, -2.0, 0.5, 2.0]),
        ({"missing_eos_score": -4.0, "missing_eos_penalty": 1.0}, [-5.0, -3.0, 0.5, 20.0]),
        ({"min_length": 4, "short_penalty": 0.25}, [1.0, -3.25, 0.5, 19.75]),
        ({"min_length": 4, "short_penalty": 0.25, "clip": 2.0}, [1.0, -2.25, 0.5, 1.75]),
        ({"overlong_buffer": 4, "overlong_penalty": 2.0}, [-1.0, -3.0, -0.5, 20.0]),
        ({"overlong_buffer": 4}, [0.0, -3.0, 0.0, 20.0]),
        ({"overlong_buffer": 4, "clip": 1.0}, [0.0, -1.0, 0.0, 1.0]),
    ],
)
def test_by_hand(options, expected):
    assert shaped(SCORES, **options) == pytest.approx(expected)


def test_the_defaults_bound_scores_and_ask_for_an_end():
    scores = ScoreShaper(ScoreOptions())(torch.tensor(SCORES), rollouts(), 8)
    assert scores.tolist() == [0.0, -3.0, 0.5, 10.0]


def test_what_is_penalised_is_not_bounded_again():
    assert shaped([-10.0, 0.0, 0.0, 0.0], clip=10.0, missing_eos_penalty=1.0)[0] == -11.0


def test_running_statistics_are_those_of_everything_seen():
    shaper = ScoreShaper(ScoreOptions(normalise="running", clip=0.0, missing_eos_penalty=0.0))
    seen = torch.empty(0, dtype=torch.float64)
    for round_, size in enumerate((4, 1, 7, 4)):
        scores = 100.0 + 3.0 * torch.randn(size, generator=torch.Generator().manual_seed(round_))
        found = shaper(scores, rollouts(LENGTHS[:1] * size, FINISHED[:1] * size), 8)
        seen = torch.cat([seen, scores.double()])
        count, mean, squares = shaper.moments.tolist()
        assert (count, mean) == (len(seen), pytest.approx(float(seen.mean())))
        assert squares == pytest.approx(float((seen - seen.mean()).square().sum()))
        torch.testing.assert_close(found, scores / seen.std(correction=0).float(), rtol=1e-5, atol=0.0)
    assert found.dtype == torch.float32


def test_running_statistics_go_on_from_a_checkpoint():
    first, second = (ScoreShaper(ScoreOptions(normalise="running")) for _ in range(2))
    first(torch.tensor(SCORES), rollouts(), 8)
    second.load_state_dict(first.state_dict())
    again = [shaper(torch.tensor([2.0, 4.0, 8.0, 9.0]), rollouts(), 8) for shaper in (first, second)]
    assert again[0].equal(again[1])


def test_scores_are_not_moved_by_what_they_are_divided_by():
    """The mean stays; one score, or equal ones, are divided by nothing."""
    assert shaped([5.0], rollouts((3,), (True,)), normalise="running") == [5.0]
    assert shaped([5.0, 5.0], rollouts((3, 3), (True, True)), normalise="running") == [5.0, 5.0]
    assert shaped([2.0, 4.0], rollouts((3, 3), (True, True)), normalise="running") == [2.0, 4.0]


def test_statistics_are_taken_only_where_they_are_asked_for():
    shaper = ScoreShaper(ScoreOptions())
    shaper(torch.tensor(SCORES), rollouts(), 8)
    assert not shaper.moments.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_exact_in_a_module_of_low_precision(dtype):
    """bfloat16 cannot count to 257."""
    shaper = ScoreShaper(ScoreOptions(normalise="running")).to(dtype)
    assert shaper.moments.dtype == torch.float64
    assert shaper.to("meta").moments.device.type == "meta"


def shape(rank, path):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    shaper, found = ScoreShaper(ScoreOptions(normalise="running")), []
    for cut in (1, 4):
        mine = slice(0, cut) if rank == 0 else slice(cut, 4)
        found.append(shaper(torch.tensor(SCORES)[mine], rollouts(LENGTHS[mine], FINISHED[mine]), 8))
    dist.destroy_process_group()
    torch.save([*found, shaper.moments], path / f"{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_ranks_normalise_as_one(tmp_path):
    """Also where one of them has no response."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=shape, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    *first, ours = torch.load(tmp_path / "0.pt", weights_only=True)
    *second, theirs = torch.load(tmp_path / "1.pt", weights_only=True)
    shaper = ScoreShaper(ScoreOptions(normalise="running"))
    for mine, others in zip(first, second, strict=True):
        torch.testing.assert_close(torch.cat([mine, others]), shaper(torch.tensor(SCORES), rollouts(), 8))
    torch.testing.assert_close(ours, shaper.moments)
    assert ours.equal(theirs)
