"""Rewards for the shape of a response: its length, its words, how it repeats itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lit_rlhf.rewards.reward import Sample

Unit = Literal["tokens", "words", "characters"]

_UNITS: dict[str, Callable[[Sample], Sequence[Any]]] = {
    "tokens": lambda sample: sample.response_tokens,
    "words": lambda sample: sample.response.split(),
    "characters": lambda sample: sample.response,
}


class LengthTarget:
    """Near 1 for responses about as long as wanted, 0 for those far from it.

    ``score = max(0, 1 - |length - target| / tolerance)``

    Args:
        target: the wanted length.
        tolerance: the distance from it at which nothing is left; None = ``target``.
        unit: what is counted: "tokens" (with the one that ends the response), "words" or "characters".

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(self, target: int, tolerance: int | None = None, unit: Unit = "tokens") -> None:
        self.tolerance = target if tolerance is None else tolerance
        if target < 1 or self.tolerance < 1:
            raise ValueError(f"target is {target} and tolerance is {tolerance}; both are at least 1")
        self.target = target
        self.unit = _known(unit)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses."""
        lengths = [len(_UNITS[self.unit](sample)) for sample in samples]
        return [max(0.0, 1.0 - abs(length - self.target) / self.tolerance) for length in lengths]


class OverlongPenalty:
    """0 for responses of a length that fits, falling to -1 for those that need all of the room.

    ``score = 0 if length <= max_length - buffer, else max(-1, (max_length - buffer - length) / buffer)``

    Source: Yu et al., "DAPO", arXiv 2503.14476, eq. 13.

    Args:
        max_length: the length at which the penalty is -1; that of ``sampling.max_new_tokens`` usual.
        buffer: lengths over which it falls.
        unit: what is counted: "tokens", "words" or "characters".

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(self, max_length: int, buffer: int, unit: Unit = "tokens") -> None:
        if not 1 <= buffer <= max_length:
            raise ValueError(f"buffer is {buffer} and max_length is {max_length}; buffer lies between 1 and max_length")
        self.max_length = max_length
        self.buffer = buffer
        self.unit = _known(unit)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses."""
        excess = [len(_UNITS[self.unit](sample)) - (self.max_length - self.buffer) for sample in samples]
        return [-min(1.0, max(0, over) / self.buffer) for over in excess]


class KeywordCount:
    """The share of the wanted words that a response has.

    ``score = min(count, target) / target``

    Args:
        words: words or phrases, in any case; a word counts as often as it stands alone, not inside another.
        target: how many give 1.
        distinct: count each word once, however often it is repeated.

    Raises:
        ValueError: if there are no words, or the target is below 1.
    """

    def __init__(self, words: list[str], target: int = 1, distinct: bool = False) -> None:
        if not words or not all(map(str.strip, words)) or target < 1:
            raise ValueError(
                f"words is {words} and target is {target}; give at least one word, and a target of 1 or more"
            )
        self.target = target
        self.distinct = distinct
        # The longest first: of "New York" and "New" the former is meant where both stand.
        self._words = re.compile("|".join(map(_alone, sorted(map(str.casefold, words), key=len, reverse=True))))

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses."""
        found = [self._words.findall(sample.response.casefold()) for sample in samples]
        counts = [len(set(words) if self.distinct else words) for words in found]
        return [min(count, self.target) / self.target for count in counts]


class RepetitionPenalty:
    """0 for a response without repetition, near -1 for one that says the same over and over.

    ``score = -(1 - distinct n-grams / n-grams)``

    Source: Yeo et al., "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv 2502.03373, appendix.

    Args:
        n: length of an n-gram.
        unit: what it is made of: "tokens", "words" or "characters".

    Raises:
        ValueError: if ``n`` is below 1.
    """

    def __init__(self, n: int = 3, unit: Unit = "words") -> None:
        if n < 1:
            raise ValueError(f"n is {n}; an n-gram has at least 1 part")
        self.n = n
        self.unit = _known(unit)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses; one shorter than an n-gram repeats nothing."""
        return [self._score(_UNITS[self.unit](sample)) for sample in samples]

    def _score(self, units: Sequence[Any]) -> float:
        grams = [tuple(units[start : start + self.n]) for start in range(len(units) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


def _known(unit: Unit) -> Unit:
    if unit not in _UNITS:
        raise ValueError(f"unit is {unit!r}; it is one of {', '.join(_UNITS)}")
    return unit


def _alone(word: str) -> str:
    """A pattern of a word that is no part of another; scripts without spaces have no such edges."""
    word = " ".join(word.split())
    begin, end = (r"\b" if letter.isalnum() and letter < "\u2e80" else "" for letter in (word[0], word[-1]))
    return begin + re.escape(word) + end
