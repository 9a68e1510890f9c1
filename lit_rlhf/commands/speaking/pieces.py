"""Tokens to text, piece by piece: only what later tokens cannot change, and nothing of a text that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of a character to."""


class TextPieces:
    """The text of one answer as its tokens come.

    Args:
        tokenizer: decodes it, without special tokens.
        stop_strings: texts that end it; neither they nor what follows is given out.

    Attributes:
        is_stopped: whether one of them came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._tokens: list[int] = []
        self._begin = self._end = 0  # tokens whose text is known: decoded again, as the first may lose its space
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain once this token is there; may be empty."""
        self._tokens.append(token)
        text = self._decoded(len(self._tokens))
        if text.endswith(_BROKEN):
            return ""
        before = self._decoded(self._end)
        self._begin, self._end = self._end, len(self._tokens)
        return self._released(text[len(before) :])

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._decoded(len(self._tokens))[len(self._decoded(self._end)) :]
        self._end = len(self._tokens)
        last = self._released(text)
        held, self._held = self._held, ""
        return last + held

    def _decoded(self, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[self._begin : end], skip_special_tokens=True))

    def _released(self, new: str) -> str:
        """Of what is held and what is new, all but an end that a stop string may begin with."""
        if self.is_stopped:
            return ""
        text = self._held + new
        places = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if places:
            self.is_stopped, self._held = True, ""
            return text[: min(places)]
        longest = max(map(len, self._stop_strings), default=1) - 1
        ends = range(max(0, len(text) - longest), len(text))
        cut = next((at for at in ends if any(stop.startswith(text[at:]) for stop in self._stop_strings)), len(text))
        self._held = text[cut:]
        return text[:cut]
