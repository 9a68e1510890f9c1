"""DPOModule follows TRL 1.16 on pairs about pictures, step by step; TRL's were recorded by the script tested here."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "trl_vision_dpo_run.json").read_text())
STEPS = 4


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/vision_dpo.py")


@pytest.fixture(scope="module")
def plan(script, shared_data, tmp_path_factory):
    data = shared_data / "nlvr" / "color_pairs_dev.jsonl"
    plan = script.make_plan(tmp_path_factory.mktemp("parity"), data, GOLDEN["numbers"])
    return {**plan, "steps": STEPS}


@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_losses_and_logprobs_of_a_run(script, plan, name):
    ours = script.run(plan, plan["settings"][name]).course
    for column, theirs in GOLDEN["runs"][name].items():
        assert ours[column] == pytest.approx(theirs[:STEPS], rel=1e-4), column


def test_other_pictures_are_seen(script, plan, tmp_path):
    grey = io.BytesIO()
    Image.new("RGB", (400, 100), "grey").save(grey, "PNG")
    rows = [json.loads(line) for line in Path(plan["rows"]).read_text().splitlines()]
    for row in rows:
        row["images"] = [{"bytes": base64.b64encode(grey.getvalue()).decode()}]
    blind = {**plan, "rows": script.write_rows(rows, tmp_path / "rows.jsonl")}
    ours, theirs = script.run(blind, plan["settings"]["decoder"]).course, GOLDEN["runs"]["decoder"]
    assert all(script.farthest(ours[column], theirs[column][:STEPS]) > 1e-3 for column in ours)


def test_too_few_pictures_are_refused(script, shared_data, tmp_path):
    numbers = {**GOLDEN["numbers"], "steps": 10_000}
    with pytest.raises(ValueError, match=r"pictures, 40000 are needed"):
        script.make_plan(tmp_path, shared_data / "nlvr" / "color_pairs_dev.jsonl", numbers)
