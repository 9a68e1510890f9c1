"""Rewards that check a response instead of judging it: the right answer, a pattern, a format. Each gives 1 or 0.

Patterns are those of the package ``regex``, which transformers brings: unlike ``re`` it can be stopped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import regex
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_rlhf.rewards.answers import FINDERS, same_answer
from lit_rlhf.rewards.reward import Sample

Place = Literal["hash", "boxed", "tag", "line", "number", "whole"]


class ExactAnswer:
    r"""1 if the response gives the right answer, else 0.

    ``score = [normal(find(response)) == normal(find(row[column]))]``

    Numbers are equal whatever their commas, currency, percent sign, trailing zeros or unit, texts whatever their case,
    spaces and the punctuation around them.

    Args:
        column: of the row; holds the right answer, a worked solution that ends with it (``#### 72``), or a list of
            answers of which any is right.
        compare: "number" or "text"; "auto" compares numbers where the right answer is one.
        find: where in a response the answer stands, the first of these that it has: behind ``####`` (hash), in
            ``\boxed{}`` (boxed), in ``<answer>`` tags (tag), on a line ``A: 72`` or ``the answer is 72`` (line), its
            last number (number), or all of it (whole). Empty = in this order, of a text all instead of the last number.
        tolerance: largest difference of numbers that are equal, as a share of the right one.

    Raises:
        ValueError: for a place that is not known, or a negative tolerance.
    """

    def __init__(
        self,
        column: str = "answer",
        compare: Literal["auto", "number", "text"] = "auto",
        find: list[Place] | None = None,
        tolerance: float = 0.0,
    ) -> None:
        if compare not in ("auto", "number", "text") or not set(find or ()) <= FINDERS.keys() or tolerance < 0.0:
            raise ValueError(
                f"compare is {compare!r}, find is {find} and tolerance is {tolerance}; compare is auto, number or "
                f"text, find holds some of {', '.join(FINDERS)}, and tolerance is not negative"
            )
        self.column = column
        self.compare = compare
        self.find = find or []
        self.tolerance = tolerance

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Check responses.

        Raises:
            ValueError: if a row has no right answer.
        """
        return [float(self._is_right(sample)) for sample in samples]

    def _is_right(self, sample: Sample) -> bool:
        value = column_of(sample, self.column)
        return any(
            same_answer(sample.response, str(right), compare=self.compare, places=self.find, tolerance=self.tolerance)
            for right in (value if isinstance(value, list | tuple) else [value])
        )


class RegexMatch:
    """1 if a regular expression matches the response, else 0.

    ``score = [pattern matches response]``

    Args:
        pattern: in the syntax of Python's ``re`` and the package ``regex``; flags stand inside, as in ``(?is)yes.*no``.
        column: of the row; holds the pattern, instead of ``pattern``.
        how: "search" finds it anywhere, "match" at the beginning, "fullmatch" wants all of the response.
        timeout: seconds for one response. A pattern such as ``(a+)+$`` may take years; what takes longer than this does
            not match, and is warned of.

    Raises:
        ValueError: unless one of pattern and column is given, or for a pattern that is none.
    """

    def __init__(
        self,
        pattern: str | None = None,
        column: str | None = None,
        how: Literal["search", "match", "fullmatch"] = "search",
        timeout: float = 1.0,
    ) -> None:
        if (pattern is None) == (column is None):
            raise ValueError(f"pattern is {pattern!r} and column is {column!r}; give one of them")
        if how not in ("search", "match", "fullmatch") or timeout <= 0.0:
            raise ValueError(
                f"how is {how!r} and timeout is {timeout}; how is search, match or fullmatch, a time-out is above 0"
            )
        if pattern is not None:
            _compiled(pattern, "pattern")
        self.pattern = pattern
        self.column = column
        self.how = how
        self.timeout = timeout

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Check responses.

        Raises:
            ValueError: if a row has no pattern, or one that is none.
        """
        return [float(self._matches(sample)) for sample in samples]

    def _matches(self, sample: Sample) -> bool:
        given = self.pattern if self.column is None else column_of(sample, self.column)
        pattern = _compiled(given, f"{sample.address}: column '{self.column}'")
        methods = {"search": pattern.search, "match": pattern.match, "fullmatch": pattern.fullmatch}
        try:
            return methods[self.how](sample.response, timeout=self.timeout) is not None
        except TimeoutError:
            rank_zero_warn(
                f"{sample.address}: the pattern {given!r:.80} took more than {self.timeout} seconds on a response of "
                f"{len(sample.response)} characters, which counts as no match"
            )
            return False


class FormatMatch:
    """1 if the response is made of the given parts alone, such as ``<think>...</think><answer>...</answer>``, else 0.

    ``score = [every tag stands once, in this order, with only white space outside]``

    The opening tag of the first part is not asked for where the prompt ends with it, as some chat templates do.

    Args:
        tags: names of the parts, in their order.
        partial: give the share of the tags that stand exactly once, opening and closing ones counted apart, to a
            response that is not all right.

    Raises:
        ValueError: if there are no tags.
    """

    def __init__(self, tags: list[str] | None = None, partial: bool = False) -> None:
        self.tags = ["think", "answer"] if tags is None else tags
        if not self.tags or not all(map(str.strip, self.tags)):
            raise ValueError(f"tags is {self.tags}; name at least one part, such as [think, answer]")
        self.partial = partial

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Check responses."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        first = f"<{self.tags[0]}>"
        text = first + sample.response if sample.prompt.rstrip().endswith(first) else sample.response
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        counts = [text.count(mark) for mark in marks]
        pieces = re.split("|".join(map(re.escape, marks)), text)
        in_order = re.findall("|".join(map(re.escape, marks)), text) == marks
        if in_order and not any(piece.strip() for piece in pieces[::2]):
            return 1.0
        right = sum(count == 1 for count in counts) / len(marks)
        return min(right, 1.0 - 1.0 / len(marks)) if self.partial else 0.0


def column_of(sample: Sample, column: str) -> Any:
    """What the row of a sample holds in a column.

    Raises:
        ValueError: if it holds nothing there; with the row and the columns that it has.
    """
    value = sample.columns.get(column)
    if value is None:
        known = ", ".join(sample.columns) or "none"
        raise ValueError(f"{sample.address}: no column '{column}', which the reward reads; its columns: {known}")
    return value


def _compiled(pattern: Any, where: str) -> regex.Pattern[str]:
    try:
        return regex.compile(str(pattern))
    except regex.error as error:
        raise ValueError(f"{where} is {pattern!r}, which is no regular expression: {error}") from error
