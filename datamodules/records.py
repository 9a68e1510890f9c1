"""Records: what a row says, whatever form it had. :mod:`datamodules.forms` makes them, the encoders read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]
Text = str | list[Message] | list[int]

# How the turns of an HH dialogue begin.
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class BadRowError(ValueError):
    """A row that cannot be used.

    Args:
        reason: one word for counting, such as ``empty_response``.
        message: what is wrong and what would be right.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Layout(NamedTuple):
    """How a source departs from the usual names.

    Args:
        columns: the names that forms are read by -> the names of this source: ``{"prompt": "question"}``.
        tags: names inside turns and their values, by the keys of LLaMA-Factory: ``role_tag``, ``content_tag``,
            ``user_tag``, ``assistant_tag``, ``observation_tag``, ``function_tag``, ``system_tag``.
        folder: that paths of pictures are relative to; empty = the working directory.
    """

    columns: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    folder: str = ""


class Step(NamedTuple):
    """A part of an answer that was judged by itself.

    Args:
        text: what it says.
        label: from 0 (wrong) to 1 (right); None = not judged.
    """

    text: str
    label: float | None


class Response(NamedTuple):
    """One answer to a prompt.

    Args:
        text: what follows the prompt: text, messages or token ids, of the prompt's kind.
        rank: place among the responses of its row, 0 the best; responses of equal rank are not preferred to each other.
            A thumb up is rank 0, a thumb down rank 1.
        score: how good it is in the unit of the data, higher better; None where only the order is known.
        label: True = thumb up, False = thumb down, None = not judged alone.
        number: where it stands among the answers as the row lists them, from 0.
        columns: what the row says of this answer beside its text, by name, such as ``helpfulness``.
        steps: its parts, where they were judged one by one.
    """

    text: Text
    rank: int = 0
    score: float | None = None
    label: bool | None = None
    number: int = 0
    columns: Mapping[str, Any] = {}
    steps: tuple[Step, ...] = ()


class Record(NamedTuple):
    """What a row says, whatever form it had.

    Args:
        form: name of the form that the row was read by.
        prompt: text, messages, or token ids; may be empty.
        responses: none for a prompt alone, one for an instruction or a thumb, two or more for a preference; the best
            first.
        margin: by how much the first of two responses is better, in the unit of the data; 0 where unknown.
        tools: JSON schemas of functions, for the chat template.
        template_kwargs: further variables for the chat template.
        columns: all columns but those of the prompt and its options; they reach the reward function. Of a row in tokens
            ``trained_mask`` holds one bool per response token, where untrained ones (False) lie between trained ones.
        images: references to pictures as the row gives them, in the order of their marks.
        folder: that paths of pictures are relative to; empty = the working directory.
    """

    form: str
    prompt: Text
    responses: tuple[Response, ...] = ()
    margin: float = 0.0
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = {}
    columns: Mapping[str, Any] = {}
    images: tuple[Any, ...] = ()
    folder: str = ""


def common_prefix_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the leading items, such as characters, messages or tokens, that two sequences share."""
    same, differs = 0, min(len(one), len(other))
    if one[:differs] == other[:differs]:
        return differs
    while differs - same > 1:  # halving compares slices, which is far faster than item by item
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same
