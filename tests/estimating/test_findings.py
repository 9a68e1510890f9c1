"""All that is estimated, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Callable

from lit_rlhf.estimating.findings import findings
from lit_rlhf.estimating.gpus import Device, device
from lit_rlhf.estimating.run import Run


def test_everything_is_json_and_sums_up(make_run: Callable[..., Run]):
    found = findings(make_run(num_rows=80), [device("cpu")], ["a guess"])
    assert json.loads(json.dumps(found)) == found
    told = found["memory"]
    assert told["static"] == sum(told["roles"].values())
    assert told["peak"] == told["phases"][told["worst_phase"]]["peak"]
    (cpu,) = found["devices"]
    assert cpu["fits"]
    assert cpu["run_seconds"] == 10 * cpu["step_seconds"]
    assert found["notes"][0] == "a guess"


def test_a_device_that_is_too_small_comes_with_advice(make_run: Callable[..., Run]):
    found = findings(make_run(), [Device("small", 0.001, 1, 1)])
    (small,) = found["devices"]
    assert not small["fits"]
    assert small["advice"]
    assert small["run_seconds"] is None
