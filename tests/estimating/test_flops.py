"""Operations, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lit_rlhf.estimating.anatomy import anatomy
from lit_rlhf.estimating.flops import forward_flops, work
from lit_rlhf.estimating.run import Run, Sampling, Texts
from lit_rlhf.models.options import LoraOptions

LAYERS = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 352)


def test_a_token_costs_two_operations_per_number_and_attention(make_run: Callable[..., Run]):
    run = make_run(texts=Texts(32, 96))
    assert forward_flops(run, anatomy(run.config), 10) == 10 * (2 * LAYERS + 4 * 128 * 64 * 4)


def step(run: Run) -> float:
    return sum(work(run, anatomy(run.config), 1000, 10).flops.values())


def test_what_each_setting_adds(make_run: Callable[..., Run]):
    run = make_run(texts=Texts(32, 96), batch_size=2)
    body, head = forward_flops(run, anatomy(run.config), 256), 2 * 500 * 128 * 192
    assert step(run) == pytest.approx(2 * body + 2 * head)
    texts = {"texts": Texts(32, 96), "batch_size": 2}
    assert step(make_run(**texts, backbone={"gradient_checkpointing": True})) == pytest.approx(3 * body + 2 * head)
    full = make_run(**texts, backbone={"lora": LoraOptions(enabled=False)})
    assert step(full) == pytest.approx(3 * body + 4 * head)
    assert step(make_run(**texts, reference="base")) == pytest.approx(3 * body + 3 * head)
    assert step(make_run(**texts, reference="base", is_reference_cached=True)) == step(run)
    assert step(make_run(**texts, algorithm="reward")) == pytest.approx(2 * body)


def test_drawing_reads_all_weights_for_every_token(make_run: Callable[..., Run], sampling: Sampling):
    run = make_run(algorithm="ppo", sampling=sampling, texts=Texts(32, 96), batch_size=8, num_rows=24, num_epochs=2)
    found = work(run, anatomy(run.config), 1000, 10)
    assert found.decode_bytes == 2 * 96 * (1000 + 8 * (32 / 2 + 96 / 2) * 10)  # 16 responses, 8 at once
    assert found.num_steps == 6
    assert set(found.flops) == {"rollout", "score", "update"}
