"""What a user may say about learning from rollouts: whatever is out of range is refused by its name."""

from __future__ import annotations

import pytest

from lit_rlhf.rollout.options import AdvantageOptions, ClipOptions, KLOptions, ScoreOptions, UpdateOptions

WRONG = [
    (KLOptions, "kl", {"coef": -0.1}),
    (KLOptions, "kl", {"loss_coef": -0.1}),
    (KLOptions, "kl", {"horizon": 0}),
    (KLOptions, "kl", {"target": 0.0}),
    (KLOptions, "kl", {"target": -6.0}),
    (KLOptions, "kl", {"target": 6.0, "coef": 0.0}),
    (KLOptions, "kl", {"estimator": "k4"}),
    (KLOptions, "kl", {"loss_estimator": "k3"}),
    *((AdvantageOptions, "advantages", {name: bad}) for name in ("gamma", "gae_lambda") for bad in (-0.1, 1.1)),
    *((AdvantageOptions, "advantages", {"value_lambda": bad}) for bad in (-0.1, 1.1)),
    *((AdvantageOptions, "advantages", {"length_alpha": bad}) for bad in (0.0, -1.0)),
    *((ClipOptions, "clipping", {name: 0.0}) for name in ("clip_range", "clip_range_high", "clip_range_value")),
    *((ClipOptions, "clipping", {name: -0.2}) for name in ("clip_range", "clip_range_high", "clip_range_value")),
    *((ClipOptions, "clipping", {"dual_clip": bad}) for bad in (1.0, 0.5)),
    (ScoreOptions, "scores", {"normalise": "batch"}),
    *((ScoreOptions, "scores", {name: -1}) for name in ("clip", "missing_eos_penalty", "min_length", "short_penalty")),
    *((ScoreOptions, "scores", {name: -1}) for name in ("overlong_buffer", "overlong_penalty")),
    *((UpdateOptions, "updates", {name: 0}) for name in ("num_epochs", "num_minibatches", "token_budget")),
    (UpdateOptions, "updates", {"max_grad_norm": -1.0}),
    *((UpdateOptions, "updates", {"max_kl": bad}) for bad in (0.0, -1.0)),
    *((UpdateOptions, "updates", {"importance_cap": bad}) for bad in (-1.0, 0.0, 0.9)),
    (UpdateOptions, "updates", {"average": "batch"}),
]


@pytest.mark.parametrize(("kind", "key", "wrong"), WRONG, ids=lambda part: str(part) if isinstance(part, dict) else "")
def test_what_cannot_be_is_refused_by_name(kind, key, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"{key}\.") as refused:
        kind(**wrong)
    assert name in str(refused.value)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "edges"),
    [
        (KLOptions, {"coef": 0.0, "loss_coef": 0.0, "horizon": 1, "target": None}),
        (KLOptions, {"estimator": "k3", "loss_estimator": "k3+", "target": 0.1}),
        (AdvantageOptions, {"gamma": 0.0, "gae_lambda": 1.0, "value_lambda": 0.0, "length_alpha": 0.05}),
        (ClipOptions, {"clip_range_high": None, "dual_clip": None, "clip_range_value": None}),
        (ScoreOptions, {"clip": 0.0, "missing_eos_penalty": 0.0, "min_length": 0, "missing_eos_score": -5.0}),
        (UpdateOptions, {"num_epochs": 1, "num_minibatches": 1, "token_budget": 1, "max_grad_norm": 0.0}),
        (UpdateOptions, {"average": "sequences", "max_kl": 0.01, "importance_cap": 2.0}),
    ],
)
def test_the_edges_are_allowed(kind, edges):
    made = kind(**edges)
    assert {name: vars(made)[name] for name in edges} == edges


def test_steps_of_an_iteration():
    assert UpdateOptions(num_epochs=3, num_minibatches=4).num_steps == 12
