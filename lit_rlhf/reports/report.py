"""The report of one run: ``report.html`` in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lit_rlhf.reports import answers, drawings, telling
from lit_rlhf.reports.left import Run, flat, read_run
from lit_rlhf.reports.markup import Html, el
from lit_rlhf.reports.page import Section, page, write

FILE = "report.html"

SECTIONS: tuple[tuple[str, str, Callable[[Run], Html | None]], ...] = (
    (
        "Key numbers",
        "Held-out values before training and at the end; they should move the way their curves should.",
        telling.key_numbers,
    ),
    (
        "Health",
        "What the health bands warned of while it ran; a run that learns as it should leaves none of them.",
        telling.warnings,
    ),
    (
        "Curves",
        "Held-out values follow those of training; where they part for good, training should have ended.",
        drawings.curve_grid,
    ),
    (
        "Rewards before and after",
        "The whole spread should move, and chosen responses away from rejected ones; a second hump far from the rest "
        "is worth a look at its texts.",
        drawings.spreads,
    ),
    (
        "Score against KL",
        "The path begins at the ring. It should rise steeply and then level off; where it goes on to the right without "
        "going up, the KL pays for nothing.",
        drawings.score_paths,
    ),
    (
        "Calibration",
        "Pairs that the model is 80 % sure of should be ordered rightly in 80 % of cases: points near the dashed line.",
        drawings.calibration,
    ),
    (
        "Length against reward",
        "Long responses should not be rewarded for being long: the correlation is near that of the labels.",
        drawings.length_against_reward,
    ),
    (
        "Time",
        "Tokens per second are constant; where there are rollouts, they are usually the larger half.",
        drawings.phases,
    ),
    (
        "Samples",
        "The same held-out prompts before and after: answers should get better, and still be answers.",
        answers.before_and_after,
    ),
    (
        "Best and worst",
        "Responses of the last evaluation: the best should deserve their scores, or the reward is being gamed.",
        answers.best_and_worst,
    ),
    (
        "Data",
        "Rows left out or shortened before training saw them, mean over what was logged: 0, else see "
        "`data.max_length` and `data.on_bad_row`.",
        telling.data,
    ),
    ("Reproduce", "", telling.reproduction),
    ("Settings", "", telling.settings),
    ("Files", "", telling.files),
)
"""Title, what healthy looks like, and what draws it. A new section is a line here."""


def write_report(folder: Path, file: Path | None = None) -> Path:
    """Write the report of a run from what lies in its folder.

    Args:
        folder: of the run.
        file: where to; None = ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: if no run has been in the folder.
    """
    run, target = read_run(folder), file or folder / FILE
    found = [Section(title, lead, body) for title, lead, draw in SECTIONS if (body := draw(run)) is not None]
    write(target, page(f"{run.name}: {run.algorithm}", _header(run), found))
    return target


def _header(run: Run) -> Html:
    """What it is, when it was and how it ended."""
    given = flat(run.config)
    told = {
        "algorithm": run.algorithm,
        "model": run.facts.get("model") or given.get("model.backbone.name_or_path"),
        "data": given.get("data.train"),
        "started": run.facts.get("started"),
        "device": run.facts.get("device"),
        "version": (run.facts.get("versions") or {}).get("lit-rlhf"),
    }
    terms = (el("div", el("dt", name), el("dd", str(value))) for name, value in told.items() if value is not None)
    problems = el("ul", *(el("li", problem) for problem in run.problems), class_="problems") if run.problems else None
    state = str(run.facts.get("state") or "unknown")
    word = state if state in ("finished", "running", "unknown") else "ended early"
    return el(
        "header",
        el("p", "Run report", el("span", word, class_=f"state {word.partition(' ')[0]}"), class_="over"),
        el("h1", run.name),
        el("p", telling.outcome(run), class_="outcome"),
        el("dl", *terms),
        problems,
    )
