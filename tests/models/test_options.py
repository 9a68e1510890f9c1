"""Options that contradict each other are refused, saying which and what would be right."""

from __future__ import annotations

import pytest

from lit_rlhf.models.options import BackboneConfig, CriticOptions, LoraOptions, ReferenceOptions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraOptions(r=0), r"lora\.r is 0; it must be at least 1"),
        (lambda: LoraOptions(dropout=1.0), r"lora\.dropout is 1\.0; it must be at least 0"),
        (lambda: LoraOptions(dropout=-0.1), r"lora\.dropout is -0\.1"),
        (
            lambda: BackboneConfig("x", quantization="nf4", lora=LoraOptions(enabled=False)),
            r"quantization 'nf4' freezes.*set quantization to 'none' or lora\.enabled to true",
        ),
        (
            lambda: BackboneConfig("x", adapter="y", lora=LoraOptions(enabled=False)),
            r"backbone\.adapter needs lora\.enabled=true",
        ),
        (lambda: ReferenceOptions(cache=True, sync_steps=3), "choose one"),
        (lambda: ReferenceOptions(sync_steps=-1), "sync_steps is -1"),
        (lambda: ReferenceOptions(mixup=0.0), r"mixup is 0\.0"),
        (lambda: ReferenceOptions(mixup=1.5), r"must lie in \(0, 1\]"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_edges_are_allowed():
    assert LoraOptions(r=1, dropout=0.0).enabled
    assert BackboneConfig("x", lora=LoraOptions(enabled=False)).quantization == "none"
    assert ReferenceOptions(sync_steps=1, mixup=1.0).mixup == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_factor": 0.0}, r"critic\.lr_factor is 0\.0"),
        ({"lr_factor": -1.0}, r"critic\.lr_factor is -1\.0"),
        ({"warmup_iterations": -1}, "warmup_iterations is -1"),
        ({"kind": "shared", "init_from": "some/where"}, r"critic\.init_from is 'some/where' and kind is 'shared'"),
    ],
)
def test_critics_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        CriticOptions(**options)


@pytest.mark.parametrize("init_from", ["reward", "fresh"])
def test_a_shared_critic_may_leave_its_beginning_open(init_from):
    assert CriticOptions("shared", init_from, lr_factor=0.1, warmup_iterations=0).init_from == init_from
