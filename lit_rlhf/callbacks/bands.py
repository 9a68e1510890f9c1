"""What health bands are made of: limits of metrics, and the table of those that are watched unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any, Literal

_BEGINNING = 3
"""Values whose mean is the beginning of a metric."""

_LONGEST = 100
"""Values that are kept: the longest window."""

View = Literal["value", "of_beginning", "growth", "trend"]


@dataclass
class Series:
    """The values of one metric that limits are read from, oldest first.

    Args:
        first: the 3 that the metric began with.
        last: the newest 100.
        num_seen: how many there were.
    """

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    num_seen: int = 0

    def add(self, value: float) -> None:
        """Take in a value."""
        if len(self.first) < _BEGINNING:
            self.first.append(value)
        self.last = [*self.last, value][-_LONGEST:]
        self.num_seen += 1


def _of_beginning(series: Series, window: int) -> float | None:
    beginning = fmean(series.first)
    return series.last[-1] / beginning if series.num_seen > _BEGINNING and beginning > 0 else None


def _growth(series: Series, window: int) -> float | None:
    before, after = _halves(series, window)
    return fmean(after) / fmean(before) if before and fmean(before) > 0 else None


def _trend(series: Series, window: int) -> float | None:
    before, after = _halves(series, window)
    spread = pstdev([*before, *after]) if before else None
    return None if spread is None else (fmean(after) - fmean(before)) / (spread or 1.0)


def _halves(series: Series, window: int) -> tuple[list[float], list[float]]:
    """The older and the newer half of the last values; nothing where there are too few."""
    values = series.last[-window:]
    return (values[: window // 2], values[window // 2 :]) if len(values) == window else ([], [])


VIEWS: dict[View, tuple[Callable[[Series, int], float | None], str]] = {
    "value": (lambda series, window: series.last[-1], "{metric} is {value:.3g}"),
    "of_beginning": (_of_beginning, "{metric} is {value:.3g} times what it began with"),
    "growth": (_growth, "{metric} grew {value:.3g}-fold within {window} values"),
    "trend": (_trend, "{metric} moved by {value:.2g} standard deviations within {window} values"),
}
"""Ways to look at a metric: what a limit compares (None = too early to say), and how that is said."""


@dataclass
class Limit:
    """A metric that lies beyond a limit.

    Args:
        metric: its name in the logs.
        above: the limit that it lies above, or None.
        below: the limit that it lies below, or None.
        view: what is compared. ``value``: the newest value. ``of_beginning``: that, divided by the mean of the first
            three. ``growth``: mean of the newer half of the window divided by that of the older half. ``trend``: their
            difference in standard deviations of the window: 1.7 on a straight way up, -1.7 down, about 0 in noise.
        per: a metric that the value is divided by.
        window: values that growth and trend look at.

    Raises:
        ValueError: without a limit, for a window that is odd or too long, or for a view of a ratio.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    view: View = "value"
    per: str | None = None
    window: int = 10

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ValueError(f"the limit of {self.metric} has neither `above` nor `below`")
        if self.window % 2 or not 2 <= self.window <= _LONGEST:
            raise ValueError(
                f"the limit of {self.metric} has a window of {self.window}; it is even, from 2 to {_LONGEST}"
            )
        if self.per is not None and self.view != "value":
            raise ValueError(f"the limit of {self.metric} has `per` and the view {self.view}; `per` goes with `value`")

    def reading(self, history: Mapping[str, Series]) -> str:
        """What is beyond the limit, in words; empty where nothing is, or where it is too early to say."""
        if self.metric not in history or (self.per is not None and self.per not in history):
            return ""
        look, words = VIEWS[self.view]
        value = look(history[self.metric], self.window)
        if value is None:
            return ""
        if self.per is not None:
            value /= max(history[self.per].last[-1], 1e-9)
        is_above = self.above is not None and value > self.above
        is_below = self.below is not None and value < self.below
        if not is_above and not is_below:
            return ""
        said = words.format(metric=self.metric, value=value, window=self.window)
        limit = f"above {self.above:g}" if is_above else f"below {self.below:g}"
        return f"{said}{f' per {self.per}' if self.per else ''} ({limit})"


@dataclass
class Band:
    """What is out of order when all its limits are passed.

    Args:
        name: what is out of order, in a few words.
        when: the limits. The band is looked at when the metric of the first one is logged.
        advice: what it means, and what to change.
        patience: how often in a row the limits have to be passed.
        after: values of the first metric that are passed over, for what needs to warm up.

    Raises:
        ValueError: without limits, or if ``patience`` is less than 1.
    """

    name: str
    when: list[Limit]
    advice: str
    patience: int = 3
    after: int = 0

    def __post_init__(self) -> None:
        if not self.when or self.patience < 1:
            raise ValueError(
                f"the band '{self.name}' has {len(self.when)} limits and a patience of {self.patience}; "
                "both are at least 1"
            )

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that it reads."""
        return {name for limit in self.when for name in (limit.metric, limit.per) if name is not None}

    def reading(self, history: Mapping[str, Series]) -> str:
        """What is out of order, in words; empty where all is well."""
        if history[self.when[0].metric].num_seen <= self.after:
            return ""
        readings = [limit.reading(history) for limit in self.when]
        return " and ".join(readings) if all(readings) else ""


_TOO_FAR = "Lower `optimizer.lr` or `updates.num_epochs`, or end passes early with `updates.max_kl`."

DEFAULT_BANDS: tuple[Band, ...] = (
    Band(
        "KL is running away",
        [Limit("rollout/kl", above=1.0, per="rollout/length")],
        "The policy is more than a nat per token from its reference: read samples.jsonl, the reward is probably being "
        "gamed. Raise `kl.coef`, or lower `optimizer.lr`.",
    ),
    Band(
        "KL is accelerating",
        [Limit("rollout/kl", above=3.0, view="growth"), Limit("rollout/kl", above=0.2, per="rollout/length")],
        "It grows faster than time does, as it begins to before a collapse: lower `optimizer.lr`, raise `kl.coef`, or "
        "give it a `kl.target`.",
        patience=2,
    ),
    Band(
        "the reward is probably being gamed",
        [
            Limit("rollout/kl", above=1.0, view="trend", window=20),
            Limit("rollout/kl", above=0.1, per="rollout/length"),
            Limit("rollout/score", below=0.3, view="trend", window=20),
        ],
        "The policy goes on leaving its reference, and the score no longer rises for it: judge samples.jsonl yourself, "
        "then stop here, or raise `kl.coef`.",
        patience=5,
    ),
    Band(
        "entropy has collapsed",
        [Limit("rollout/entropy", below=0.2, view="of_beginning")],
        "Responses to a prompt are nearly all the same, and there is nothing left to prefer: go on from an earlier "
        "checkpoint with a higher `kl.coef` or `clipping.clip_range_high`, or a lower `optimizer.lr`.",
    ),
    Band(
        "responses no longer end",
        [Limit("rollout/finished", below=0.5, view="of_beginning")],
        "Fewer than half as many responses end by themselves as at the beginning: raise `scores.missing_eos_penalty` "
        "above what length earns, and check that the stop tokens are those of the chat template.",
    ),
    Band(
        "responses get much longer",
        [Limit("rollout/length", above=2.0, view="of_beginning")],
        "Rewards often favour length for its own sake: compare those of short and long responses, and set "
        "`scores.overlong_buffer`, or lower `sampling.max_new_tokens`.",
    ),
    Band(
        "responses get much shorter",
        [Limit("rollout/length", below=0.4, view="of_beginning")],
        "To end early may have become the safest way to a reward: read samples.jsonl, and set `scores.min_length`.",
    ),
    Band(
        "the critic predicts worse than a constant",
        [Limit("rollout/explained_variance", below=0.0)],
        "Advantages are mostly noise then: raise `critic.lr_factor`, give it `critic.warmup_iterations`, or begin it "
        "as a reward model with `critic.init_from`.",
        patience=5,
        after=10,
    ),
    Band(
        "probability ratios are far from 1",
        [Limit("train/ratio_max", above=10.0)],
        f"Some tokens become more than ten times as likely within an iteration. {_TOO_FAR}",
    ),
    Band(
        "many ratios are clipped from below",
        [Limit("train/clip_fraction_low", above=0.3)],
        f"Much of what an iteration computes teaches nothing. {_TOO_FAR}",
        patience=5,
    ),
    Band(
        "many ratios are clipped from above",
        [Limit("train/clip_fraction_high", above=0.3)],
        f"Much of what an iteration computes teaches nothing. {_TOO_FAR}",
        patience=5,
    ),
    Band(
        "the policy moves far in one iteration",
        [Limit("train/approx_kl", above=0.1)],
        f"Under 0.05 nats per token is healthy. {_TOO_FAR}",
    ),
    Band(
        "sampler and trainer disagree",
        [Limit("rollout/sampler_kl", above=0.1)],
        "Responses are drawn from another policy than the one that learns: let both compute in one precision, or "
        "lower `updates.importance_cap`.",
    ),
    Band(
        "both DPO rewards are falling",
        [
            Limit("train/rewards/chosen", below=-1.0, view="trend"),
            Limit("train/rewards/chosen", below=-1.0),
            Limit("train/rewards/rejected", below=-1.0, view="trend"),
        ],
        "Chosen responses become less likely as well, only more slowly than rejected ones. The DPO loss allows it, and "
        "by itself it is no fault; if answers get worse, add an SFT term to `losses`, raise `beta`, or lower "
        "`optimizer.lr`.",
    ),
    Band(
        "texts are learnt by heart",
        [Limit("val/nll", above=1.5, per="train/nll"), Limit("val/nll", above=1.0, view="trend", window=6)],
        "Held-out texts become less likely while those of training become likelier: end the run earlier, lower "
        "`optimizer.lr`, or give it more rows.",
        patience=2,
    ),
)
"""The bands that are watched unless told otherwise; docs/watching.md says where their limits come from."""


def as_state(history: Mapping[str, Series]) -> dict[str, Any]:
    """Plain values, for a checkpoint."""
    return {name: [series.first, series.last, series.num_seen] for name, series in history.items()}


def from_state(state: Mapping[str, Any]) -> dict[str, Series]:
    """What :func:`as_state` was given."""
    return {name: Series(*values) for name, values in state.items()}
