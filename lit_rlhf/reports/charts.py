"""Drawings as SVG inside the page: lines, spreads, paths, calibration, shares. Colours come from the style sheet.

Each is a figure with a title, a legend in words and marks, a description for those who do not see it, and (lines and
shares) its numbers as a table, so that nothing is lost without a pointer, scripts or colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from lit_rlhf.reports.axes import Scale, is_drawable, scale, ticks, written
from lit_rlhf.reports.curves import Lines, Point, thinned
from lit_rlhf.reports.markup import Html, el, join, prose, table

WIDTH, HEIGHT = 360.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 8.0, 8.0, 36.0
_MOST_ROWS, _MOST_STOPS, _MOST_POINTS = 12, 80, 300
"""Rows of the table below a drawing, points of a path, and points of one name where they are no path."""

_COLOURS = {
    "train": 0,
    "val": 1,
    "rollout": 2,
    "chosen": 3,
    "rejected": 4,
    "before": 0,
    "after": 1,
    "test": 5,
    "score": 2,
}
"""Number of the colour of what has one of its own."""

_WHILE_TRAINING = ("train", "rollout", "time")
"""First words of lines that are measured at every step."""

_Item = TypeVar("_Item")

_PALETTE = (2, 1, 5, 6, 3, 7, 4, 0)
"""Numbers of the colours of all others, in this order."""

Spread = Mapping[str, Sequence[float]]
"""Values by the name of what they are of."""


def colour(name: str, others: Sequence[str] = ()) -> int:
    """Number of the colour of a line: its own, or one that the same part has in training and held out.

    Args:
        name: such as ``val`` or ``train chosen``.
        others: all lines of the drawing.
    """
    split, _, side = name.partition(" ")
    parts = sorted({other.partition(" ")[2] or other for other in others})
    place = _PALETTE[parts.index(side or name) % len(_PALETTE)] if name in others else _PALETTE[0]
    return _COLOURS.get(side or split, place)


def line_chart(title: str, lines: Lines, note: str = "", colours: Mapping[str, int] | None = None) -> Html | None:
    """Values by step; those that are not of every step have dots.

    Args:
        title: name of what is drawn.
        lines: points by name.
        note: what healthy looks like.
        colours: of lines that do not have their usual ones.

    Returns:
        The figure; None without a finite value.
    """
    kept = {name: points for name, all_points in lines.items() if (points := thinned(all_points))}
    if not kept:
        return None
    across = scale((step for points in kept.values() for step, _ in points), _LEFT, WIDTH - _RIGHT)
    up = scale((value for points in kept.values() for _, value in points), HEIGHT - _BOTTOM, _TOP, room=0.05)
    known = {name: (colours or {}).get(name, colour(name, list(kept))) for name in kept}
    drawn = [_line(name, points, across, up, known[name]) for name, points in kept.items()]
    said = "; ".join(
        f"{name} from {written(points[0][1])} to {written(points[-1][1])}" for name, points in kept.items()
    )
    picture = _svg(
        f"{title} by step: {said}",
        _axes(across, up, "step"),
        *drawn,
        data_across=_data(across),
        data_up=_data(up),
    )
    return _figure(title, picture, known, note, _numbers(title, kept), kind="lines")


def spread_chart(
    title: str, values: Spread, note: str = "", within: Sequence[float] = (), label: str = "", bins: int = 24
) -> Html | None:
    """How values spread: a histogram of each name, over one another, as shares of its own.

    Args:
        title: name of the values.
        values: by name.
        note: what healthy looks like.
        within: values that the axis holds as well, so that drawings can be compared.
        label: of the axis.
        bins: of the axis.

    Returns:
        The figure; None without a finite value.
    """
    kept = {name: found for name, some in values.items() if (found := [*filter(is_drawable, some)])}
    if not kept:
        return None
    across = scale([*filter(is_drawable, within), *(x for some in kept.values() for x in some)], _LEFT, WIDTH - _RIGHT)
    shares = {name: _shares(some, across, bins) for name, some in kept.items()}
    up = scale([0.0, *(share for some in shares.values() for share in some)], HEIGHT - _BOTTOM, _TOP)
    known = {name: colour(name, list(kept)) for name in kept}
    width = (across.end - across.start) / bins
    bars = [
        el("path", class_=f"bars s{known[name]}", d=_steps(some, across.start, width, up))
        for name, some in shares.items()
    ]
    means = {name: sum(some) / len(some) for name, some in kept.items()}
    said = "; ".join(f"{name}: mean {written(means[name])} of {len(some)}" for name, some in kept.items())
    marks = [
        el("path", class_=f"mean s{known[name]}", d=f"M{across(mean):.1f},{_TOP}V{up.start:.1f}")
        for name, mean in means.items()
    ]
    picture = _svg(f"Spread of {title}: {said}", _axes(across, up, label, percent=True), *bars, *marks)
    named = {f"{name}, mean {written(means[name])}": number for name, number in known.items()}
    return _figure(title, picture, named, note)


def point_chart(
    title: str,
    points: Mapping[str, Sequence[Point]],
    axes: tuple[str, str],
    note: str = "",
    *,
    is_path: bool = False,
    colours: Mapping[str, int] | None = None,
) -> Html | None:
    """Points in a plane, also as the path from each to the next, which begins at a ring.

    Args:
        title: of the drawing.
        points: by name.
        axes: what is to the right and what is up.
        note: what healthy looks like.
        is_path: join them; later points are larger.
        colours: of names that do not have their usual ones.

    Returns:
        The figure; None with fewer than two finite points.
    """
    finite = {name: [point for point in some if all(map(is_drawable, point))] for name, some in points.items()}
    kept = {name: _evenly(some, _MOST_STOPS if is_path else _MOST_POINTS) for name, some in finite.items() if some}
    everything = [point for some in kept.values() for point in some]
    if len(everything) < 2:
        return None
    across = scale((x for x, _ in everything), _LEFT, WIDTH - _RIGHT, room=0.04)
    up = scale((y for _, y in everything), HEIGHT - _BOTTOM, _TOP, room=0.06)
    known = {name: (colours or {}).get(name, colour(name, list(kept))) for name in kept}
    drawn = []
    for name, some in kept.items():
        at = [(across(x), up(y)) for x, y in some]
        if is_path:
            drawn.append(el("path", class_=f"line thin s{known[name]}", d=_d(at)))
        dots = [
            el("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{2 + 2 * number / len(at):.1f}" if is_path else "2")
            for number, (x, y) in enumerate(at)
        ]
        drawn.append(el("g", *dots, class_=f"dots{'' if is_path else ' faint'} s{known[name]}"))
    if is_path:
        ends = [(across(some[0][0]), up(some[0][1])) for some in kept.values()]
        drawn += [el("circle", class_="ring", cx=f"{x:.1f}", cy=f"{y:.1f}", r="5") for x, y in ends]
    picture = _svg(
        f"{title}: {len(everything)} points, {axes[1]} against {axes[0]}", _axes(across, up, axes[0]), *drawn
    )
    return _figure(title, picture, known, note, up_is="" if axes[1] == title else axes[1])


def reliability_chart(title: str, bins: Sequence[Mapping[str, float]], note: str = "") -> Html | None:
    """Share that is ordered rightly where the model is that sure; the bars below are the pairs of each bin.

    Args:
        title: of the drawing.
        bins: ``low``, ``high``, ``confidence``, ``accuracy`` and ``num_pairs`` of each.
        note: what healthy looks like.
    """
    if not bins:
        return None
    across = Scale(0.5, 1.0, _LEFT, WIDTH - _RIGHT)
    up = Scale(min(0.4, *(row["accuracy"] for row in bins)), 1.0, HEIGHT - _BOTTOM, _TOP)
    most = max(row["num_pairs"] for row in bins)
    bars = [
        el(
            "rect",
            class_="count",
            x=f"{across(row['low']) + 1:.1f}",
            width=f"{across(row['high']) - across(row['low']) - 2:.1f}",
            y=f"{up.start - 36 * row['num_pairs'] / most:.1f}",
            height=f"{36 * row['num_pairs'] / most:.1f}",
        )
        for row in bins
    ]
    at = [(across(row["confidence"]), up(row["accuracy"])) for row in bins]
    errors = []
    for row, (x, _) in zip(bins, at, strict=True):
        error = 2 * math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["num_pairs"])
        low, high = up(max(up.low, row["accuracy"] - error)), up(min(1.0, row["accuracy"] + error))
        errors.append(el("path", class_="error s3", d=f"M{x:.1f},{low:.1f}V{high:.1f}"))
    ideal = el("path", class_="ideal", d=_d([(across(0.5), up(0.5)), (across(1.0), up(1.0))]))
    dots = el("g", *(el("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3.5") for x, y in at), class_="dots s3")
    line = el("path", class_="line s3", d=_d(at))
    said = "; ".join(f"{row['accuracy']:.0%} right at {row['confidence']:.0%}" for row in bins)
    picture = _svg(f"{title}: {said}", _axes(across, up, "confidence"), *bars, ideal, line, *errors, dots)
    rows: list[list[object]] = [
        [
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['confidence']:.3f}",
            f"{row['accuracy']:.3f}",
            f"{row['num_pairs']:,.0f}",
        ]
        for row in bins
    ]
    numbers = table(["bin", "confidence", "accuracy", "pairs"], rows, f"{title}: numbers")
    keys = {"accuracy, two standard errors": 3}
    return _figure(title, picture, keys, note, numbers, up_is="share ordered rightly")


def share_chart(title: str, parts: Mapping[str, float], unit: str, note: str = "") -> Html | None:
    """A bar that is parted by shares.

    Args:
        title: of the drawing.
        parts: amount of each, 0 or more.
        unit: of the amounts.
        note: what healthy looks like.
    """
    total = sum(parts.values())
    if total <= 0:
        return None
    begin, pieces, known = 0.0, [], {}
    for number, (name, part) in enumerate(parts.items()):
        width = part / total * WIDTH
        known[f"{name} {part / total:.0%}"] = (2, 5, 1, 3, 7, 6, 0, 4)[number % 8]
        piece = {"x": f"{begin:.1f}", "width": f"{max(0.0, width - 1):.1f}", "y": "2", "height": "22", "rx": "2"}
        pieces.append(el("rect", class_=f"piece s{known[f'{name} {part / total:.0%}']}", **piece))
        begin += width
    picture = _svg(f"{title}: {', '.join(known)}", *pieces, height=26.0)
    rows: list[list[object]] = [[name, written(part), f"{part / total:.0%}"] for name, part in parts.items()]
    return _figure(title, picture, known, note, table(["phase", unit, "share"], rows, f"{title}: numbers"), kind="bar")


def _line(name: str, points: list[Point], across: Scale, up: Scale, number: int) -> Html:
    at = [(across(step), up(value)) for step, value in points]
    side = name.partition(" ")[2]
    look = " dashed" if side in ("rejected", "low") else ""
    path = el("path", class_=f"line s{number}{look}", d=_d(at), data_name=name)
    if not _is_dotted(name) and len(at) > 1:
        return el("g", path, class_="faint", data_name=name)
    few = at if len(at) <= 40 else [at[0], at[-1]]
    dots = (el("circle", cx=f"{x:.2f}", cy=f"{y:.2f}", r="2.6") for x, y in few)
    return el("g", path, el("g", *dots, class_=f"dots s{number}"), data_name=name)


def _evenly(some: list[_Item], most: int) -> list[_Item]:
    """So many of them, from the first to the last, evenly apart."""
    if len(some) <= most:
        return some
    return [some[round(at * (len(some) - 1) / (most - 1))] for at in range(most)]


def _is_dotted(name: str) -> bool:
    """Whether a line has few points that count, as held-out values are, and not many that are noisy."""
    return name.partition(" ")[0] not in _WHILE_TRAINING


def _d(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _steps(shares: list[float], begin: float, width: float, up: Scale) -> str:
    """The outline of bars that stand side by side."""
    tops = (f"V{up(share):.1f}H{begin + (number + 1) * width:.1f}" for number, share in enumerate(shares))
    return f"M{begin:.1f},{up.start:.1f}{''.join(tops)}V{up.start:.1f}Z"


def _shares(values: list[float], across: Scale, bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        place = (across(value) - across.start) / (across.end - across.start)
        counts[min(bins - 1, max(0, int(place * bins)))] += 1
    return [count / len(values) for count in counts]


def _axes(across: Scale, up: Scale, label: str, percent: bool = False) -> Html:
    """Lines and numbers behind a drawing."""
    parts = []
    for value in ticks(up, 4):
        y = up(value)
        text = f"{value:.0%}" if percent else written(value)
        parts.append(el("path", class_="grid", d=f"M{across.start},{y:.1f}H{across.end}"))
        parts.append(el("text", text, x=f"{_LEFT - 5}", y=f"{y + 3.5:.1f}", class_="up"))
    below = f"{HEIGHT - _BOTTOM + 14}"
    parts += [el("text", written(value), x=f"{across(value):.1f}", y=below, class_="along") for value in ticks(across)]
    if label:
        parts.append(el("text", label, x=f"{across.end}", y=f"{HEIGHT - 5}", class_="name"))
    return el("g", *parts, class_="axes", aria_hidden="true")


def _svg(said: str, *children: Html, height: float = HEIGHT, **data: str) -> Html:
    size = f"0 0 {WIDTH:g} {height:g}"
    return el("svg", *children, viewBox=size, role="img", aria_label=said, **data)


def _data(of: Scale) -> str:
    return " ".join(f"{number!r}" for number in of)


def _numbers(title: str, lines: Lines) -> Html:
    """First, last and some values between, as a table."""
    steps = sorted({step for points in lines.values() for step, _ in points})
    if len(steps) > _MOST_ROWS:  # where something was held out, those steps say most
        sparse = min(lines.values(), key=len)
        steps = sorted(step for step, _ in sparse) if len(sparse) > 1 else steps
    if len(steps) > _MOST_ROWS:
        steps = _evenly(steps, _MOST_ROWS)
    values = {name: dict(points) for name, points in lines.items()}
    rows: list[list[object]] = [
        [f"{step:,.0f}", *(written(found.get(step)) for found in values.values())] for step in steps
    ]
    return table(["step", *lines], rows, f"{title}: numbers")


def _figure(
    title: str,
    picture: Html,
    keys: Mapping[str, int],
    note: str,
    numbers: Html | None = None,
    kind: str = "",
    up_is: str = "",
) -> Html:
    legend = el(
        "span",
        *(el("span", name, class_=f"key{' dotted' * _is_dotted(name)} s{number}") for name, number in keys.items()),
        class_="keys",
    )
    top = el("figcaption", el("b", title), el("small", up_is) if up_is else None, legend)
    below = el("p", el("b", "Healthy: "), prose(note), class_="healthy") if note else None
    more = el("details", el("summary", "Numbers"), numbers) if numbers else None
    return el("figure", top, picture, join(below, more), class_=f"chart {kind}".strip())
