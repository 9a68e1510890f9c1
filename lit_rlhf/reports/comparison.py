"""Runs on one page: what differs in their settings, their final numbers, curves over one another, their answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.reports import telling
from lit_rlhf.reports.answers import by_prompt, exchange
from lit_rlhf.reports.axes import written
from lit_rlhf.reports.charts import line_chart, point_chart
from lit_rlhf.reports.curves import Lines, curves, ordered, path_against_kl
from lit_rlhf.reports.drawings import grid
from lit_rlhf.reports.left import Run, read_run
from lit_rlhf.reports.markup import Html, el, join, table
from lit_rlhf.reports.page import Section, page, write
from lit_rlhf.reports.report import FILE

_PALETTE = (1, 2, 3, 5, 6, 7, 4, 0)
_NUM_CURVES, _NUM_PROMPTS = 6, 8
_OWN = ("trainer.default_root_dir",)
"""Settings that differ between any two runs."""

_NONE = "-"

Named = dict[str, Run]
"""Runs by the names that they have on the page."""


def write_comparison(folders: Sequence[Path], file: Path, tables: Path | None = None) -> Path:
    """Write a page that compares runs.

    Args:
        folders: of the runs.
        file: where to.
        tables: JSON file with tables that stand first: a list of ``{"title", "note", "rows"}``, where each row is an
            object with the same keys.

    Returns:
        The file.

    Raises:
        ValueError: for a folder without a run, or a file that holds no such tables.
    """
    runs = _named([read_run(folder) for folder in folders])
    sections = [Section(one["title"], one["note"], _given(one)) for one in read_tables(tables)] if tables else []
    sections.append(Section("Runs", "", _overview(runs, file)))
    sections += [Section(title, lead, body) for title, lead, draw in SECTIONS if (body := draw(runs)) is not None]
    names = ", ".join(runs)
    over = el("p", "Comparison", class_="over")
    write(file, page(f"Comparison: {names}", el("header", over, el("h1", names)), sections))
    return file


def read_tables(file: Path) -> list[dict[str, Any]]:
    """Tables from elsewhere, each with a title, a note (may be empty) and rows.

    Args:
        file: JSON, one table or a list of them.

    Raises:
        ValueError: naming what is wrong with the file.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: broken JSON: {error}") from error
    tables = told if isinstance(told, list) else [told]
    for one in tables:
        rows = one.get("rows") if isinstance(one, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
            raise ValueError(
                f'{file}: a table is an object with "title" and "rows", a list of objects that are not empty'
            )
        if not isinstance(one.get("title"), str):
            raise ValueError(f'{file}: a table has no "title"')
    return [{"note": "", **one} for one in tables]


def final_numbers(runs: Named) -> Html | None:
    """Last held-out value of each metric, run by run."""
    metrics = {metric for run in runs.values() for row in run.metrics for metric in row}
    found: dict[str, list[str]] = {}
    for name in ordered({metric[4:] for metric in metrics if metric.startswith("val/")}):
        ends = [run.ends(f"val/{name}") for run in runs.values()]
        last = [written(end[1]) if end else _NONE for end in ends]
        if len({*last}) > 1 and not name.startswith("data/"):
            found[name] = last
    return _side_by_side("held-out, last", "metrics", runs, found)


def differences(runs: Named) -> Html | None:
    """Settings that are not the same in all runs; one that is empty is as good as none."""
    settings = [{key: value for key, value in telling.shown(run).items() if value != "None"} for run in runs.values()]
    keys = sorted({key for some in settings for key in some} - {*_OWN})
    values = {key: [some.get(key, _NONE) for some in settings] for key in keys}
    return _side_by_side("setting", "settings", runs, {key: own for key, own in values.items() if len({*own}) > 1})


def curves_together(runs: Named) -> Html | None:
    """The curves that several runs have, held-out ones where there are some."""
    panels = {
        name: {title: _whole(lines) for title, lines in curves(run.metrics).items()} for name, run in runs.items()
    }
    shared = [
        title
        for title in ordered({title for own in panels.values() for title in own})
        if sum(bool(own.get(title)) for own in panels.values()) > 1
    ]
    figures = [
        line_chart(title, {name: own[title] for name, own in panels.items() if own.get(title)}, colours=_colours(runs))
        for title in shared
    ]
    more = grid(figures[_NUM_CURVES:])
    rest = el("details", el("summary", f"{len(figures) - _NUM_CURVES} more curves"), more) if more else None
    return join(grid(figures[:_NUM_CURVES]), rest) if figures else None


def paths_together(runs: Named) -> Html | None:
    """Score at its distance from the reference."""
    paths = {
        name: [(kl, score) for _, kl, score in path_against_kl(run.metrics, "val", "score")]
        for name, run in runs.items()
    }
    axes = ("KL from the reference, nats per response", "held-out score")
    return grid([point_chart("score", paths, axes, is_path=True, colours=_colours(runs))])


def answers_together(runs: Named) -> Html | None:
    """Last answers of the runs to prompts that several of them have, behind what the first run began with."""
    answers = {name: by_prompt(run, run.last_samples) for name, run in runs.items()}
    first = next(iter(runs.values()))
    begun = by_prompt(first, first.first_samples)
    prompts = dict.fromkeys(prompt for own in answers.values() for prompt in own)
    shared = [prompt for prompt in prompts if sum(prompt in own for own in answers.values()) > 1]
    shown = [
        exchange(
            prompt,
            ({"before training": begun[prompt]} if prompt in begun else {})
            | {name: own[prompt] for name, own in answers.items() if prompt in own},
        )
        for prompt in shared[:_NUM_PROMPTS]
    ]
    return join(*shown) if shown else None


SECTIONS: tuple[tuple[str, str, Callable[[Named], Html | None]], ...] = (
    (
        "Final numbers",
        "Last held-out value of each run; what is the same in all is left out. Algorithms measure `loss` each in its "
        "own way, and `kl` per response (with rollouts) or per token (DPO): compare those of one algorithm.",
        final_numbers,
    ),
    ("Curves", "Held-out values where there are some, else those of training.", curves_together),
    (
        "Score against KL",
        "Paths begin at their rings. At the same score, the run further to the left has moved less from its reference.",
        paths_together,
    ),
    ("Samples", "Last answers to the same held-out prompts, beside those before training.", answers_together),
    (
        "Settings that differ",
        "Keys whose values are not the same in all runs; two runs compare best with one.",
        differences,
    ),
)


def _side_by_side(what: str, several: str, runs: Named, found: dict[str, list[str]]) -> Html | None:
    """A column for each run; what only one of them has is a click away."""
    alone = {name: values for name, values in found.items() if len(values) - values.count(_NONE) < 2}
    parts = []
    for some, is_folded in ((found.keys() - alone.keys(), False), (alone.keys(), True)):
        if some:
            rows: list[list[object]] = [[name, *values] for name, values in found.items() if name in some]
            shown = table([what, *runs], rows, f"{several} of the runs")
            more = el("summary", f"{len(rows)} {several} that one run alone has")
            parts.append(el("details", more, shown) if is_folded else shown)
    return join(*parts) if parts else None


def _overview(runs: Named, file: Path) -> Html:
    """A line for each run, with a way to its own report."""
    rows: list[list[object]] = []
    for name, run in runs.items():
        own = run.folder / FILE
        title = el("a", name, href=_relative(own, file)) if own.is_file() else name
        told = el("span", telling.outcome(run), *(el("em", f" {problem}.") for problem in run.problems))
        rows.append([title, run.algorithm, told])
    return table(["run", "algorithm", "outcome"], rows, "Runs")


def _given(one: dict[str, Any]) -> Html:
    columns = list(dict.fromkeys(key for row in one["rows"] for key in row))
    rows: list[list[object]] = [[_cell(row.get(column)) for column in columns] for row in one["rows"]]
    return table(list(columns), rows, one["title"])


def _cell(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return written(value) if is_number or value is None else str(value)


def _named(runs: Sequence[Run]) -> Named:
    """Runs by the names of their folders, with as much of the path as tells them apart."""
    paths = [run.folder.resolve() for run in runs]
    depth = next(
        (
            depth
            for depth in range(1, max(len(path.parts) for path in paths))
            if len({path.parts[-depth:] for path in paths}) == len(paths)
        ),
        1,
    )
    names = ["/".join(path.parts[-depth:]) for path in paths]
    return {
        f"{name} ({at + 1})" if names.count(name) > 1 else name: run
        for at, (name, run) in enumerate(zip(names, runs, strict=True))
    }


def _whole(lines: Lines) -> list[tuple[float, float]]:
    """The line of a panel that is held out, else the first one that is not a part of another."""
    return next((lines[split] for split in ("val", "rollout", "train") if split in lines), [])


def _colours(runs: Named) -> dict[str, int]:
    return {name: _PALETTE[at % len(_PALETTE)] for at, name in enumerate(runs)}


def _relative(target: Path, file: Path) -> str:
    from urllib.parse import quote

    return quote(os.path.relpath(target.resolve(), file.resolve().parent).replace(os.sep, "/"))
