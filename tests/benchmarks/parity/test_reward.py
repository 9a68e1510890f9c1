"""RewardModule follows TRL 1.16 at every step; TRL's losses, margins and accuracies are those the script here recorded.

On the embedded model and pairs, and on real ones where they are at hand.
"""

import json
from functools import cache
from pathlib import Path

import pytest

GOLDEN = {
    name: json.loads((Path(__file__).parents[2] / "golden" / f"trl_reward_{name}.json").read_text())
    for name in ("embedded", "hh")
}
STEPS = {"embedded": 8, "hh": 4}
RUNS = [*(("embedded", name) for name in GOLDEN["embedded"]["runs"]), ("hh", "lora_margins"), ("hh", "full_centred")]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/reward.py")


@pytest.fixture(scope="module")
def plans(script, request, tmp_path_factory):
    """What a run in either world is told."""

    def plan(world):
        model = data = None
        if world == "hh":
            shared_data = request.getfixturevalue("shared_data")
            model = str(shared_data / "models" / "stories260k-llama")
            (data,) = (shared_data / "hh_rlhf_harmless").glob("*.jsonl.gz")
        numbers = {**GOLDEN[world]["numbers"], "steps": STEPS[world]}
        return script.make_plan(tmp_path_factory.mktemp(world), model, data, numbers)

    return cache(plan)


def follows(ours, theirs):
    return all(ours[name] == pytest.approx(theirs[name][: len(ours[name])], abs=1e-4) for name in theirs)


@pytest.mark.parametrize(("world", "name"), RUNS)
def test_a_run(script, plans, world, name):
    plan = plans(world)
    ours = script.run(plan, plan["settings"][name]).course
    assert {len(column) for column in ours.values()} == {STEPS[world]}
    assert follows(ours, GOLDEN[world]["runs"][name])


@pytest.mark.parametrize(("name", "value"), [("lr", 1.02e-3), ("max_grad_norm", 100.0), ("rows_with_margins", None)])
def test_a_change_is_seen(script, plans, name, value):
    plan = plans("embedded")
    changed = {name: value or plan["rows"]}
    ours = script.run({**plan, **changed}, {**plan["settings"]["lora_margins"], **changed}).course
    assert not follows(ours, GOLDEN["embedded"]["runs"]["lora_margins"])


def test_the_worst_difference_counts_and_tokens_must_be_equal(script, monkeypatch):
    def watched(name):
        course = script.Course(script.COLUMNS)
        course.course = {"loss": [0.5, 0.5], "margin": [0.0, {"one": 0.25, "other": 0.5}[name]], "accuracy": [1.0, 1.0]}
        course.tokens = {2: {"prompt_ids": [1], "chosen_ids": [4], "rejected_ids": [5]}}
        course.tokens[1] = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
        return course

    monkeypatch.setattr(script, "run", lambda plan, name: watched(name))
    plan = {"settings": {"one": "one", "other": "other"}}
    course = {"loss": [0.5, 0.5], "margin": [0.0, 0.0], "accuracy": [1.0, 0.875]}
    tokens = [{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, {"chosen_ids": [1, 4], "rejected_ids": [1, 5]}]
    theirs = {"one": course, "other": course, "tokens": tokens}
    assert script.compare(plan, theirs) == {"one": 0.25, "other": 0.5}
    with pytest.raises(ValueError, match="on the same tokens"):
        script.compare(plan, {**theirs, "tokens": tokens[::-1]})
