"""When a response has ended: by a token, or by a text that its tokens spell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_MORE_TOKENS = 8
"""Tokens that are decoded before those that can spell a stop string, as a first token may lose its leading space."""


class Stopping:
    """Tells which responses have ended.

    Args:
        tokens: ids that end a response.
        strings: texts that end one.
        tokenizer: decodes the responses; special tokens are decoded as they are written.
    """

    def __init__(self, tokens: Sequence[int], strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokens = tuple(tokens)
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        # A token spells at least one byte.
        self._reach = _MORE_TOKENS + max((len(string.encode()) for string in strings), default=0)

    def __call__(self, responses: Tensor, lengths: Tensor) -> Tensor:
        """Whether (B,) bool each response has ended with its latest token.

        Args:
            responses: (B, R) int64 token ids of responses that had not ended before their latest token.
            lengths: (B,) int64, tokens of each, at least one.
        """
        latest = responses.gather(1, lengths[:, None] - 1)
        ended = torch.isin(latest[:, 0], torch.tensor(self._tokens, device=latest.device))
        if self._strings:
            rows = zip(responses.tolist(), lengths.tolist(), strict=True)
            ended |= torch.tensor([self._spells_stop(row[:length]) for row, length in rows], device=ended.device)
        return ended

    def end(self, response: Sequence[int]) -> int | None:
        """How many tokens of a response there are up to the one that ends it; None if none does."""
        row = torch.tensor([list(response)])
        return next((n for n in range(1, len(response) + 1) if bool(self(row, torch.tensor([n])))), None)

    def _spells_stop(self, response: list[int]) -> bool:
        """A few of the latest tokens are enough to rule a stop string out; the whole response confirms it."""
        return self._has_stop(response[-self._reach :]) and self._has_stop(response)

    def _has_stop(self, tokens: list[int]) -> bool:
        text = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in self._strings)
