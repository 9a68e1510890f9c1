"""Responses in a report: the same prompts before and after, the best, the worst. What models write is not trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.reports.axes import written
from lit_rlhf.reports.left import Row, Run
from lit_rlhf.reports.markup import Html, el, join

_NUM_PROMPTS, _NUM_EXTREMES = 6, 3
_LONGEST = 1200
"""Letters of a text that are shown."""


def before_and_after(run: Run) -> Html | None:
    """The same prompts at the beginning and at the end."""
    first, last = by_prompt(run, run.first_samples), by_prompt(run, run.last_samples)
    shown = [
        exchange(prompt, {_moment(row): row for row in (first[prompt], last[prompt])})
        for prompt in last
        if prompt in first
    ]
    return join(*shown[:_NUM_PROMPTS]) if shown else None


def best_and_worst(run: Run) -> Html | None:
    """The responses of the last evaluation with the highest and the lowest scores."""
    scored = [row for row in run.last_samples if isinstance(row.get("score"), int | float)]
    ranked = sorted(scored, key=lambda row: row["score"])
    if len(ranked) < 2 * _NUM_EXTREMES:
        return None
    best = [extreme(run, row, "best") for row in reversed(ranked[-_NUM_EXTREMES:])]
    worst = [extreme(run, row, "worst") for row in ranked[:_NUM_EXTREMES]]
    return join(*best, *worst)


def extreme(run: Run, row: Row, word: str) -> Html:
    """One response that stands out.

    Args:
        run: whose it is.
        row: of ``samples.jsonl``.
        word: why it is shown.
    """
    return exchange(readable(str(row.get("prompt", "")), marks(run.folder)), {word: row})


def by_prompt(run: Run, rows: Sequence[Row]) -> dict[str, Row]:
    """The first response to each prompt, by the prompt as a person reads it."""
    found: dict[str, Row] = {}
    special = marks(run.folder)
    for row in rows:
        found.setdefault(readable(str(row.get("prompt", "")), special), row)
    return found


def exchange(prompt: str, answers: dict[str, Row]) -> Html:
    """A prompt and answers to it side by side, each below what it is.

    Args:
        prompt: as a person reads it.
        answers: rows of ``samples.jsonl`` by what they are.
    """
    shown = (
        el("div", el("h4", word, _marks_of(row)), _text(str(row.get("response", ""))), class_="answer")
        for word, row in answers.items()
    )
    asked = el("div", _text(prompt), class_="prompt")
    return el("article", asked, el("div", *shown, class_="answers"), class_="exchange")


def marks(folder: Path) -> list[str]:
    """The special tokens of the tokenizer in a folder, longest first; none where it cannot be read."""
    try:
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        found = {token["content"] for token in told["added_tokens"] if token["special"]}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return sorted(found, key=len, reverse=True)


def readable(prompt: str, special: Sequence[str]) -> str:
    """A prompt without special tokens, which leave the end of a line between texts.

    Example:
        >>> readable("<s><user>Hello<end><assistant>", ["<assistant>", "<user>", "<end>", "<s>"])
        'Hello'
    """
    if not special:
        return prompt.strip()
    parts = re.split("|".join(map(re.escape, special)), prompt)
    return "\n".join(filter(None, map(str.strip, parts)))


def _text(text: str) -> Html:
    more = len(text) - _LONGEST
    rest = el("em", f" ... and {more:,} more letters") if more > 0 else None
    return (
        el("p", text[:_LONGEST], rest, dir="auto", class_="text") if text.strip() else el("p", "(empty)", class_="none")
    )


def _marks_of(row: Row) -> Html:
    """Score, divergence and length of a response, where it has them."""
    known = (("score", "score"), ("kl", "KL"), ("length", "tokens"))
    told = [
        el("span", f"{word} {written(row[name])}", class_="mark")
        for name, word in known
        if isinstance(row.get(name), int | float)
    ]
    if row.get("finished") is False:
        told.append(el("span", "cut off", class_="mark"))
    return join(*told)


def _moment(row: Row) -> str:
    unit = "iteration" if "iteration" in row else "step"
    return f"{'before' if row.get(unit) == 0 else 'after'} ({unit} {row.get(unit, '?')})"
