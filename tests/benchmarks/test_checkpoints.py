"""The benchmark of checkpoints: its states have the sizes of the models that they stand for."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("checkpoints.py")


def test_the_states_have_the_sizes_of_real_ones(script):
    hidden, layers, mlp, vocabulary = 512, 8, 1376, 4800
    shapes = dict(script.shapes("proxy", is_lora=False))
    count = sum(rows * columns for rows, columns in shapes.values())
    assert count == layers * (4 * hidden**2 + 3 * hidden * mlp) + 2 * vocabulary * hidden
    adapter = dict(script.shapes("proxy", is_lora=True))
    assert len(adapter) == 2 * 7 * layers
    assert adapter["model.layers.0.down_proj.lora_A.policy.weight"] == (16, mlp)


def test_both_ways_are_measured(script, tmp_path, monkeypatch):
    class Pipe(list):
        send = list.append

    monkeypatch.setattr(script, "REPEATS", 1)
    rows = Pipe()
    for way in script.WAYS:
        script.measure("proxy, LoRA", way, tmp_path, rows)
    assert [row["way"] for row in rows] == ["lit_rlhf", "Lightning"]
    assert rows[0]["megabytes"] == pytest.approx(rows[1]["megabytes"], rel=0.01)
    assert script.table(list(rows)).count("\n") == 4
