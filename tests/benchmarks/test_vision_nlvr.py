"""The benchmark of looking: what a right answer is, its tables, and all of it once on a few strips."""

from __future__ import annotations

import json
import sys

import pytest

from tests.tiny_vision import draw

COLOURS = ("yellow", "blue")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("vision_nlvr.py")


@pytest.fixture
def strips(tmp_path):
    """Two splits of two strips of three boxes."""
    for split in ("dev", "test"):
        rows = []
        for number, colour in enumerate(COLOURS):
            draw(tmp_path / "nlvr" / f"{split}-{number}.png", (400, 100))
            other = COLOURS[1 - number]
            prompt = {"prompt": "Which colour?", "image": f"{split}-{number}.png"}
            rows.append({**prompt, "chosen": f"{colour}.", "rejected": f"{other}."})
        (tmp_path / "nlvr" / f"color_pairs_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "nlvr"


def test_a_right_answer_is_the_better_one_and_nothing_else(script):
    assert script.is_right(" yellow. ", "yellow.") == 1.0
    assert script.is_right("yellow. blue.", "yellow.") == 0.0


def test_the_tables(script):
    rewards = [{"images": images, "best": best} for images, best in (("see", 0.9), ("see", 0.8), ("ignore", 0.5))]
    learnt = [{"dpo": [{}, {"val/rewards/accuracy": 0.75}], "ppo": [{"val/score": 0.25}, {"val/score": 0.5}]}]
    lines = script.summary(rewards, learnt).splitlines()
    assert lines[2:4] == ["| looks | 0.900, 0.800 | 0.850 |", "| blind | 0.500 | 0.500 |"]
    assert lines[-2:] == ["| DPO, `val/rewards/accuracy` | nan | 0.750 |", "| PPO, `val/score` | 0.250 | 0.500 |"]


@pytest.mark.filterwarnings("ignore")
def test_all_of_it_and_a_gate_that_is_missed(script, strips, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "REWARD_GATE", 1.1)
    steps = json.dumps({"sft": 2, "dpo": 2, "ppo": 4})
    words = ["--nlvr", strips, "--model", tiny_llama(), "--out", tmp_path / "out", "--seeds", "3"]
    words += ["--reward_steps", "2", "--steps", steps]
    monkeypatch.setattr(sys, "argv", ["vision_nlvr.py", *map(str, words)])
    with pytest.raises(SystemExit, match=r"below 1\.1"):
        script.main()
    results = json.loads((tmp_path / "out" / "vision_nlvr.json").read_text())
    assert [(run["images"], run["seed"]) for run in results["reward"]] == [("see", 3), ("ignore", 3)]
    (learnt,) = results["answers"]
    assert ["val/score" in look for look in learnt["ppo"]] == [True, True]
    assert learnt["dpo"][-1].keys() >= {"val/rewards/accuracy"}
