"""Minibatches: every response once, equal sizes, another order each time, the same whatever the number of ranks."""

from __future__ import annotations

import ast
import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.rollout.minibatches import split


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 7, 20])
def test_every_response_is_dealt_out_once_and_evenly(make_rollouts, num_minibatches):
    parts = split(make_rollouts(range(7), 2), num_minibatches, "0:3:1")
    assert len(parts) == num_minibatches
    assert sorted(member for part in parts for member in part) == list(range(14))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part) for part in parts)


def test_the_key_names_the_draw(make_rollouts):
    rollouts = make_rollouts(range(7), 2)
    draws = [split(rollouts, 2, key) for key in ("0:0:0", "0:0:1", "0:1:0", "1:0:0")]
    assert split(rollouts, 2, "0:0:0") == draws[0]
    assert len({str(draw) for draw in draws}) == 4


def test_what_is_drawn_for_a_row_does_not_depend_on_its_place(make_rollouts):
    forth, back = (split(make_rollouts(numbers, 2), 2, "0") for numbers in (range(7), range(6, -1, -1)))
    names = [{(6 - member // 2) * 2 + member % 2 for member in part} for part in back]
    assert [set(part) for part in forth] == names


def test_it_is_no_regular_deal(make_rollouts):
    """Over many draws every two responses meet about as often as chance has it."""
    rollouts, together = make_rollouts(range(4), 2), torch.zeros(8, 8)
    for draw in range(400):
        for part in split(rollouts, 2, f"0:{draw}"):
            for member in part:
                together[member, part] += 1
    apart = together[~torch.eye(8, dtype=torch.bool)] / 400
    assert float(apart.mean()) == pytest.approx(3 / 7)
    assert float((apart - 3 / 7).abs().max()) < 0.1


def test_pairs_are_not_parted(make_rollouts):
    parts = split(make_rollouts(range(7), 2), 3, "0", together=2)
    assert sorted(member for part in parts for member in part) == list(range(14))
    for part in parts:
        assert all(other == one + 1 and one % 2 == 0 for one, other in zip(part[::2], part[1::2], strict=True))
    assert sorted(map(len, parts)) == [4, 4, 6]


def test_none_are_dealt_out(make_rollouts):
    assert split(make_rollouts((), 2), 3, "0") == [[], [], []]


SHARES = (range(3), range(3, 7)), (range(7), range(0)), (range(0), range(7))


def deal(rank, path, make_rollouts, together):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    found = [split(make_rollouts(shares[rank], 2), 3, "0", together) for shares in SHARES]
    dist.destroy_process_group()
    (path / f"{rank}").write_text(repr(found))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("together", [1, 2])
def test_two_ranks_deal_as_one(make_rollouts, tmp_path, together):
    """Also where one of them has nothing."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=deal, args=(rank, tmp_path, make_rollouts, together)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    ranks = [ast.literal_eval((tmp_path / f"{rank}").read_text()) for rank in range(2)]
    alone = split(make_rollouts(range(7), 2), 3, "0", together)
    for number, shares in enumerate(SHARES):
        begin = 2 * len(shares[0])
        both = [
            [*first, *(member + begin for member in second)]
            for first, second in zip(ranks[0][number], ranks[1][number], strict=True)
        ]
        assert both == alone
