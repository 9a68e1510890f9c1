"""SFTModule follows TRL 1.16's losses step by step on real rows; TRL's were recorded by the script tested here."""

import json
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "trl_sft_run.json").read_text())
STEPS = 8


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/sft.py")


@pytest.fixture(scope="module")
def plan(script, shared_data, tmp_path_factory):
    model = str(shared_data / "models" / "stories260k-llama")
    (data,) = (shared_data / "hh_rlhf_harmless").glob("*.jsonl.gz")
    return script.make_plan(tmp_path_factory.mktemp("parity"), model, data, {**GOLDEN["numbers"], "steps": STEPS})


@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_losses_of_a_run(script, plan, name):
    ours = script.run(plan, plan["settings"][name]).losses
    assert ours == pytest.approx(GOLDEN["runs"][name][:STEPS], rel=1e-5)


def test_another_learning_rate_is_seen(script, plan):
    ours = script.run({**plan, "lr": 1.02 * plan["lr"]}, plan["settings"]["plain"]).losses
    assert ours != pytest.approx(GOLDEN["runs"]["plain"][:STEPS], rel=1e-5)
