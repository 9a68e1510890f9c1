"""Limits, and the bands that are watched unless told otherwise: each fires where it should, not where it must not."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest

from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.callbacks.bands import DEFAULT_BANDS, Band, Limit, Series, as_state, from_state
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rollout.options import ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions


def series(values):
    made = Series()
    for value in values:
        made.add(value)
    return made


def read(limit, **metrics):
    return limit.reading({name: series(values) for name, values in metrics.items()})


@pytest.mark.parametrize(
    ("limit", "values", "said"),
    [
        (Limit("kl", above=5.0), [1.0, 6.0], "kl is 6 (above 5)"),
        (Limit("kl", above=5.0), [6.0, 5.0], ""),
        (Limit("ev", below=0.0), [-0.25], "ev is -0.25 (below 0)"),
        (Limit("ev", below=0.0), [0.0], ""),
        (Limit("h", below=0.5, view="of_beginning"), [4, 6, 5, 2], "h is 0.4 times what it began with (below 0.5)"),
        (Limit("h", below=0.5, view="of_beginning"), [4, 6, 1], ""),  # still the beginning
        (Limit("h", below=0.5, view="of_beginning"), [0, 0, 0, 0], ""),  # of nothing there is no half
        (Limit("h", above=2.0, view="growth", window=4), [9, 1, 1, 2, 4], "h grew 3-fold within 4 values (above 2)"),
        (Limit("h", above=2.0, view="growth", window=4), [1, 2, 4], ""),
        (Limit("h", above=2.0, view="growth", window=4), [-1, 0, 2, 4], ""),
        (Limit("h", above=0.9, view="trend", window=4), [1, 1, 2, 2], "h moved by 2 standard deviations within 4"),
        (Limit("h", below=-0.9, view="trend", window=4), [2, 2, 1, 1], "h moved by -2 standard deviations within 4"),
        (Limit("h", above=0.9, view="trend", window=4), [1, 2, 1, 2], ""),
        (Limit("h", below=0.9, view="trend", window=4), [1, 1, 1, 1], "h moved by 0 standard deviations within 4"),
        (Limit("h", below=0.9, view="trend", window=4), [1, 1, 1], ""),
    ],
)
def test_a_limit(limit, values, said):
    reading = read(limit, **{limit.metric: values})
    assert reading.startswith(said)
    assert bool(reading) == bool(said)


def test_a_ratio_of_two_metrics():
    limit = Limit("kl", above=1.0, per="length")
    assert read(limit, kl=[30.0], length=[20.0]) == "kl is 1.5 per length (above 1)"
    assert read(limit, kl=[30.0], length=[40.0]) == ""
    assert read(limit, kl=[30.0]) == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limit("kl"), "kl has neither `above` nor `below`"),
        (lambda: Limit("kl", above=1.0, window=7), "kl has a window of 7"),
        (lambda: Limit("kl", above=1.0, window=102), "kl has a window of 102"),
        (lambda: Limit("kl", above=1.0, view="trend", per="length"), "`per` goes with `value`"),
        (lambda: Band("far", [], "mend it"), "'far' has 0 limits"),
        (lambda: Band("far", [Limit("kl", above=1.0)], "mend it", patience=0), "a patience of 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_all_limits_of_a_band_have_to_be_passed():
    band = Band("far", [Limit("kl", above=1.0), Limit("h", below=1.0)], "mend it", after=1)
    assert band.metrics == {"kl", "h"}
    assert band.reading({"kl": series([2, 2]), "h": series([0])}) == "kl is 2 (above 1) and h is 0 (below 1)"
    assert band.reading({"kl": series([2, 2]), "h": series([2])}) == ""
    assert band.reading({"kl": series([2]), "h": series([0])}) == "", "the first value is passed over"


def test_a_series_keeps_its_beginning_and_its_end_through_a_checkpoint():
    made = series(range(500))
    assert made.first == [0, 1, 2]
    assert made.last == list(range(400, 500))
    assert from_state(as_state({"kl": made})) == {"kl": made}


def wave(level, by=0.05):
    """A metric that goes up and down a little, as healthy ones do."""
    return [level * (1 + by * math.sin(2.1 * step)) for step in range(40)]


STEPS = [float(step) for step in range(1, 41)]
LENGTH = {"rollout/length": wave(48)}
HEALTHY = {
    "rollout/score": [0.1 + 0.02 * step for step in STEPS],
    "rollout/kl": [0.5 * step for step in STEPS],
    "rollout/entropy": [2.0 - 0.02 * step for step in STEPS],
    "rollout/finished": wave(0.8),
    "rollout/explained_variance": wave(0.4),
    "rollout/sampler_kl": wave(0.001),
    "train/ratio_max": wave(1.8),
    "train/clip_fraction_low": wave(0.05),
    "train/clip_fraction_high": wave(0.1),
    "train/approx_kl": wave(0.01),
    **LENGTH,
}
SFT = {"train/nll": [1.0 - 0.02 * step for step in STEPS], "val/nll": [1.1 - 0.01 * step for step in STEPS]}
DPO = {"train/rewards/chosen": [0.02 * step for step in STEPS], "train/rewards/rejected": [-0.1 * x for x in STEPS]}
# What each band has to say something about, and what looks like it and is no fault.
ILL = {
    "KL is running away": {"rollout/kl": [3.0 * step for step in STEPS]},
    "KL is accelerating": {"rollout/kl": [0.05 * 1.3**step for step in STEPS]},
    "the reward is probably being gamed": {"rollout/score": wave(0.7)},
    "entropy has collapsed": {"rollout/entropy": [2.0 / step for step in STEPS]},
    "responses no longer end": {"rollout/finished": [max(0.0, 0.8 - 0.03 * step) for step in STEPS]},
    "responses get much longer": {"rollout/length": [40 + 3 * step for step in STEPS]},
    "responses get much shorter": {"rollout/length": [48 / step**0.5 for step in STEPS]},
    "the critic predicts worse than a constant": {"rollout/explained_variance": wave(-0.2)},
    "probability ratios are far from 1": {"train/ratio_max": wave(40.0)},
    "many ratios are clipped from below": {"train/clip_fraction_low": wave(0.4)},
    "many ratios are clipped from above": {"train/clip_fraction_high": wave(0.4)},
    "the policy moves far in one iteration": {"train/approx_kl": wave(0.3)},
    "sampler and trainer disagree": {"rollout/sampler_kl": wave(0.2)},
    "both DPO rewards are falling": {"train/rewards/chosen": [-0.05 * step for step in STEPS]},
    "texts are learnt by heart": {"val/nll": [1.0 + 0.02 * step for step in STEPS]},
}
WELL = {
    "KL is running away": {"rollout/kl": [1.0 * step for step in STEPS]},
    "KL is accelerating": {"rollout/kl": [1.2 * step for step in STEPS]},
    "the reward is probably being gamed": {"rollout/score": wave(0.7), "rollout/kl": wave(15.0)},
    "entropy has collapsed": {"rollout/entropy": [max(0.5, 2.0 - 0.1 * step) for step in STEPS]},
    "responses no longer end": {"rollout/finished": [0.0] * 40},  # they never did
    "responses get much longer": {"rollout/length": [40 + step for step in STEPS]},
    "responses get much shorter": {"rollout/length": [48 - 0.5 * step for step in STEPS]},
    "the critic predicts worse than a constant": {"rollout/explained_variance": [-1.0] * 8 + [0.2] * 32},
    "probability ratios are far from 1": {"train/ratio_max": [30.0, 2.0] * 20},
    "many ratios are clipped from below": {"train/clip_fraction_low": [0.5, 0.5, 0.1, 0.1] * 10},
    "many ratios are clipped from above": {"train/clip_fraction_high": [0.5, 0.5, 0.1, 0.1] * 10},
    "the policy moves far in one iteration": {"train/approx_kl": [0.3, 0.01] * 20},
    "sampler and trainer disagree": {"rollout/sampler_kl": [0.3, 0.001] * 20},
    "both DPO rewards are falling": {"train/rewards/chosen": [-0.02 * step for step in STEPS]},
    "texts are learnt by heart": {"val/nll": [2.0 - 0.01 * step for step in STEPS]},  # other texts, harder ones
}


def fired(metrics, bands=DEFAULT_BANDS):
    """Names of the bands that are left for as long as their patience in 40 iterations."""
    found, history, outside = set(), {}, {}
    for values in zip(*({**HEALTHY, **SFT, **DPO, **metrics}).values(), strict=True):
        for name, value in zip({**HEALTHY, **SFT, **DPO, **metrics}, values, strict=True):
            history.setdefault(name, Series()).add(value)
        for band in bands:
            outside[band.name] = outside.get(band.name, 0) + 1 if band.reading(history) else 0
            if outside[band.name] >= band.patience:
                found.add(band.name)
    return found


def test_a_healthy_run_leaves_no_band():
    assert fired({}) == set()


def test_every_band_is_tried():
    assert [band.name for band in DEFAULT_BANDS] == list(ILL) == list(WELL)


@pytest.mark.parametrize("band", DEFAULT_BANDS, ids=lambda band: band.name)
def test_a_default_band(band):
    assert fired(ILL[band.name], [band]) == {band.name}
    assert fired(WELL[band.name], [band]) == set()
    assert len(band.advice) > 40


KEYS = {
    "kl": KLOptions,
    "updates": UpdateOptions,
    "clipping": ClipOptions,
    "scores": ScoreOptions,
    "critic": CriticOptions,
    "sampling": SamplingOptions,
}


@pytest.mark.parametrize("band", DEFAULT_BANDS, ids=lambda band: band.name)
def test_advice_names_settings_that_exist(band):
    for key in re.findall(r"`([^`]+)`", band.advice):
        part, _, name = key.rpartition(".")
        assert key == "optimizer.lr" or name in inspect.signature(KEYS.get(part, DPOModule)).parameters, key


@pytest.mark.parametrize("band", DEFAULT_BANDS, ids=lambda band: band.name)
def test_the_page_tells_of_every_band_and_its_metrics(band):
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {band.name} |")]
    assert band.metrics <= set(re.findall(r"`([^`]+)`", line))
    assert line.split(" | ")[-1].split()[0] == str(band.patience)
