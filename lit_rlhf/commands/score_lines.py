"""Scores of files as JSON lines, one per row, and what they were like as a whole."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.encoding.truncation import TooLongError
from datamodules.records import Record
from datamodules.sources import Row
from lit_rlhf.commands.scoring import NotFiniteError, Scored, Scorer

_ROWS_AT_ONCE = 64
"""Rows that are read, tokenised and packed together."""


class Tally:
    """Counts rows and scores as they come."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.num_rows = 0
        self.num_scores = 0
        self.mean = 0.0
        self._squares = 0.0  # of distances from the mean
        self.lost: Counter[str] = Counter()

    def add(self, line: dict[str, Any]) -> None:
        """Count a line and the scores in it."""
        self.num_rows += 1
        single = [line[name] for name in ("score", "chosen", "rejected") if name in line]
        for score in [
            *single,
            *line.get("scores", ()),
        ]:  # Welford, "Note on a method for calculating corrected sums of squares", 1962
            self.num_scores += 1
            step = score - self.mean
            self.mean += step / self.num_scores
            self._squares += step * (score - self.mean)
        if "dropped" in line:
            self.lost[f"dropped {line['dropped']}"] += 1
        if "truncated" in line:
            self.lost[f"truncated {' and '.join(line['truncated'])}"] += 1

    def __str__(self) -> str:
        """One line for a person."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        parts = [f"{self.num_rows} rows, {self.num_scores} responses"]
        if self.num_scores:
            parts.append(f"mean {self.mean:.4g}, std {math.sqrt(self._squares / self.num_scores):.4g}")
        parts += [f"{what} {number}" for what, number in sorted(self.lost.items())]
        return "; ".join([*parts, f"{self.num_rows / seconds:.3g} rows/s"])


def write(scorer: Scorer, rows: Iterable[Row], out: Path | None, *, drop: bool, normalise: bool) -> None:
    """Score rows as they come, and say on stderr what the scores were like.

    Args:
        scorer: scores the rows.
        rows: any number of them; few are held at a time.
        out: file to make; None = stdout.
        drop: go on after a row that cannot be used; its line says why.
        normalise: write scores in standard deviations from the mean of the model's validation data.

    Raises:
        ValueError: naming the address of a row that cannot be used, unless it is dropped, or that the model gives no
            number.
        SystemExit: with status 130 if the user interrupts it; the lines that are there are whole.
    """
    left, tally = iter(rows), Tally()
    try:
        with open(out, "xb") if out else nullcontext(sys.stdout.buffer) as file:
            while batch := list(islice(left, _ROWS_AT_ONCE)):
                for one in scorer(batch):
                    line = _line(one, scorer, drop=drop, normalise=normalise)
                    tally.add(line)
                    file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                file.flush()
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        print(f"{tally}{f': {out}' if out else ''}", file=sys.stderr)  # noqa: T201


def quick(scorer: Scorer, prompt: str, response: str, *, normalise: bool) -> dict[str, Any]:
    """Score one response to one prompt, both plain text.

    Raises:
        ValueError: if they cannot be scored, or the model gives no number.
    """
    (one,) = scorer([Row("--prompt and --response", "", {"prompt": prompt, "response": response})])
    line = _line(one, scorer, drop=False, normalise=normalise)
    del line["row"]
    return line


def _line(one: Scored, scorer: Scorer, *, drop: bool, normalise: bool) -> dict[str, Any]:
    """What is written about a row."""
    line: dict[str, Any] = {"row": one.row.address}
    if one.error is None:
        assert one.record is not None
        line |= _named(one.record, scorer.normalise(one.scores) if normalise else one.scores)
        if len(one.objectives) > 1:
            line["objectives"] = {name: _named(one.record, own) for name, own in one.objectives.items()}
    elif isinstance(one.error, NotFiniteError):
        raise ValueError(f"{one.row.address}: {one.error}")
    elif drop or isinstance(one.error, TooLongError):
        line["dropped"] = one.error.reason
    else:
        raise ValueError(f"{one.row.address}: {one.error}; mend the row, or leave such rows out by --on_bad_row drop")
    if one.truncated:
        line["truncated"] = list(one.truncated)
    return line


def _named(record: Record, scores: list[float]) -> dict[str, Any]:
    """Scores under the names that a user knows: of one response, of a pair, or of several in the order of the row."""
    ranks = [response.rank for response in record.responses]
    if len(scores) == 1:
        return {"score": scores[0]}
    if len(scores) == 2 and ranks[0] != ranks[1]:
        chosen = ranks.index(min(ranks))
        return {"chosen": scores[chosen], "rejected": scores[1 - chosen]}
    return {"scores": scores, "ranks": ranks}
