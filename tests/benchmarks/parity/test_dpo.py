"""DPOModule follows TRL 1.16's losses step by step on real rows; TRL's were recorded by the script tested here."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "trl_dpo_run.json").read_text())
STEPS = 8


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("parity_dpo", ROOT / "benchmarks" / "parity" / "dpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plan(script, shared_data, tmp_path_factory):
    model = str(shared_data / "models" / "stories260k-llama")
    (data,) = (shared_data / "hh_rlhf_harmless").glob("*.jsonl.gz")
    return script.make_plan(tmp_path_factory.mktemp("parity"), model, data, {**GOLDEN["numbers"], "steps": STEPS})


@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_losses_of_a_run(script, plan, name):
    ours = script.run(plan, plan["settings"][name]).losses
    assert ours == pytest.approx(GOLDEN["losses"][name][:STEPS], rel=script.TOLERANCE)


def test_another_learning_rate_is_seen(script, plan):
    ours = script.run({**plan, "lr": 1.02 * plan["lr"]}, plan["settings"]["sigmoid"]).losses
    assert ours != pytest.approx(GOLDEN["losses"]["sigmoid"][:STEPS], rel=script.TOLERANCE)
