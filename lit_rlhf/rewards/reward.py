"""The interface of a reward: whatever gives a response one number, higher better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Sample(NamedTuple):
    """One response to one prompt, with all that a reward may want to know of them.

    Args:
        prompt: the prompt as it was tokenised, special tokens of a chat template included.
        response: the response without special tokens.
        messages: the conversation up to the response; empty where the prompt is plain text.
        prompt_tokens: token ids of the prompt.
        response_tokens: token ids of the response, what ends it included.
        columns: all other columns of the row that the prompt came from, such as a reference answer.
        row: address of that row, such as ``train.jsonl:17``.
    """

    prompt: str
    response: str
    messages: tuple[dict[str, Any], ...] = ()
    prompt_tokens: Sequence[int] = ()
    response_tokens: Sequence[int] = ()
    columns: Mapping[str, Any] = {}
    row: str = ""


class Reward(Protocol):
    """Anything that can be called with samples and answers with a score for each."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses.

        Args:
            samples: any number of them.

        Returns:
            One finite number per sample, in their order.
        """
        ...
