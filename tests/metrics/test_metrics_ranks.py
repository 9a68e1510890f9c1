"""Two processes with uneven shares report what one process reports."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.metrics.calibration import Calibration
from lit_rlhf.metrics.means import Means
from lit_rlhf.metrics.moments import ScoreMoments
from lit_rlhf.metrics.scores import SCORE_METRICS, score_sums

SHARES = (slice(0, 37), slice(37, 40))


def report(*shares):
    """All numbers of the metrics after what lies in ``shares`` of forty pairs; the last three are of another source."""
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 40) + 500
    lengths = torch.randint(1, 300, (2, 40))
    sources = ["a"] * 37 + ["b"] * 3
    means, moments, calibration = Means(SCORE_METRICS), ScoreMoments(), Calibration()
    for share in shares:
        means.update(score_sums(chosen[share], rejected[share], *lengths[:, share], sources[share]))
        moments.update(chosen[share], lengths[0, share], chosen[share], rejected[share])
        calibration.update((chosen - rejected)[share])
    counted, bins = means.counts(), calibration.bins()
    found = {**means.compute(), **moments.compute(), **calibration.compute()}
    assert means.counts() == counted
    assert calibration.bins() == bins
    return {name: float(value) for name, value in found.items()}, counted, bins


def compare(rank, path):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    found, counted, bins = report(*SHARES)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    ours = report(SHARES[rank])
    dist.destroy_process_group()
    assert ours[0] == pytest.approx(found, rel=1e-6)
    assert ours[1] == counted
    for row, wanted in zip(ours[2], bins, strict=True):
        assert row == pytest.approx(wanted, rel=1e-9)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compare, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
