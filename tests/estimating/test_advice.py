"""What to change in a run that does not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lit_rlhf.estimating.advice import advise
from lit_rlhf.estimating.phases import memory
from lit_rlhf.estimating.run import Run, Sampling, Texts
from lit_rlhf.models.options import LoraOptions


def test_what_costs_least_comes_first_and_the_last_change_fits(make_run: Callable[..., Run]):
    run = make_run(texts=Texts(32, 96), batch_size=32)
    peak = memory(run).peak
    first, *_ = advise(run, 0.9 * peak)
    assert first.flags == "--data.token_budget 2048"
    assert first.peak == peak - first.saving < 0.9 * peak
    assert first.peak == memory(make_run(texts=Texts(32, 96), batch_size=32, token_budget=2048)).peak


def test_nothing_is_said_of_a_run_that_fits(make_run: Callable[..., Run]):
    assert list(advise(make_run(), 1e12)) == []


def test_it_ends_where_nothing_helps(make_run: Callable[..., Run], sampling: Sampling, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lit_rlhf.estimating.phases.CONTEXT", 0)  # beside which nothing of a small model is worth while
    run = make_run(algorithm="ppo", sampling=sampling, critic="adapter", reference="base", device="cuda")
    said = list(advise(run, 1.0))
    flags = " ".join(change.flags for change in said)
    for key in ("updates.token_budget", "critic.kind shared", "max_new_tokens", "backbone.dtype bfloat16"):
        assert key in flags
    assert all(change.saving > 0 for change in said)
    assert [change.peak for change in said] == sorted((change.peak for change in said), reverse=True)


def test_all_weights_become_an_adapter_before_they_are_quantised(make_run: Callable[..., Run]):
    run = make_run(
        algorithm="dpo",
        reference="model",
        backbone={"lora": LoraOptions(enabled=False)},
        texts=Texts(8, 8, 2),
        batch_size=1,
    )
    flags = [change.flags for change in advise(run, 1.0)]
    assert flags.index("--model.backbone.lora.enabled true") < flags.index("--model.backbone.quantization nf4")


def test_fewer_responses_at_once_where_drawing_them_is_the_worst(make_run: Callable[..., Run], sampling: Sampling):
    wide = sampling._replace(max_rows=64)
    run = make_run(algorithm="grpo", sampling=wide, texts=Texts(32, 96), batch_size=32, token_budget=128)
    needed = memory(run)
    assert needed.worst == "rollout"
    first, *_ = advise(run, 0.8 * needed.peak)
    assert first.flags.endswith("CachedSampler --model.sampler.max_rows 32")
