"""DPOModule follows TRL 1.16's losses of a Mixtral, load-balancing loss included; TRL's were recorded by the script."""

import json
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "trl_moe_run.json").read_text())
STEPS = 3


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/moe.py")


@pytest.fixture(scope="module")
def plan(script, shared_data, tmp_path_factory):
    model = str(shared_data / "models" / "stories260k-mixtral-upcycled")
    (data,) = (shared_data / "hh_rlhf_harmless").glob("*.jsonl.gz")
    return script.make_plan(tmp_path_factory.mktemp("parity"), model, data, {**GOLDEN["numbers"], "steps": STEPS})


@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_losses_of_a_run(script, plan, name):
    ours = script.run(plan, plan["settings"][name]).losses
    assert ours == pytest.approx(GOLDEN["runs"][name][:STEPS], rel=1e-4)


def test_another_coefficient_is_seen(script, plan):
    ours = script.run(plan, {"router_aux_loss_coef": 0.201}).losses
    assert ours != pytest.approx(GOLDEN["runs"]["balanced"][:STEPS], rel=1e-4)
