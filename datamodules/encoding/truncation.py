"""The cut to the length limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from datamodules.pictures import PictureReader
from datamodules.records import BadRowError

Truncation = Literal["prompt_left", "response_right", "drop"]


class TooLongError(BadRowError):
    """A row that is well formed, and dropped because it does not fit the length limit."""


class Cut(NamedTuple):
    """How much is kept.

    Args:
        prompt: tokens kept of the end of the prompt.
        response: tokens kept of the beginning of each response.
        truncated: what is cut: ``prompt``, ``response``.
    """

    prompt: int
    response: int
    truncated: tuple[str, ...] = ()


def cut_to_length(prompt: int, response: int, max_length: int, truncation: Truncation) -> Cut:
    """Decide how much of a prompt and of its longest response is kept.

    Args:
        prompt: tokens of the prompt.
        response: tokens of the longest response.
        max_length: most tokens of both together.
        truncation: ``prompt_left`` cuts the beginning of the prompt, but keeps half of ``max_length`` of it, then the
            end of the response. ``response_right`` cuts the end of the sequence. ``drop`` drops the row.

    Raises:
        TooLongError: if the row has to be dropped.

    Example:
        >>> cut_to_length(8, 4, 10, "prompt_left"), cut_to_length(8, 4, 6, "prompt_left")
        (Cut(prompt=6, response=4, truncated=('prompt',)), Cut(prompt=3, response=3, truncated=('prompt', 'response')))
    """
    if prompt + response <= max_length:
        return Cut(prompt, response)
    if truncation == "drop":
        message = f"has {prompt} prompt and {response} response tokens, above max_length={max_length}"
        raise TooLongError("too_long", message)
    keep = prompt
    if truncation == "prompt_left":
        keep = min(keep, max(max_length - response, max_length // 2))
    room = max_length - keep
    if room <= 0:
        message = f"has {prompt} prompt tokens, which leaves no room for a response in max_length={max_length}"
        raise TooLongError("prompt_too_long", message)
    parts = (("prompt", keep < prompt), ("response", room < response))
    return Cut(keep, room, tuple(name for name, is_cut in parts if is_cut))


def require_whole_pictures(pictures: PictureReader, before: Sequence[int], after: Sequence[int], limit: str) -> None:
    """Refuse a cut that leaves less than all of the pictures of a row.

    Args:
        pictures: knows the image token.
        before: token ids before the cut.
        after: what is left of them.
        limit: the length limit, as a setting.

    Raises:
        TooLongError: if a picture would be cut off or in two.
    """
    if not pictures.is_whole(before, after):
        message = f"has {len(before)} tokens with those of its pictures; to cut them to {limit} would cut a picture"
        raise TooLongError("cut_image", message)


def keep_end(prompt: Sequence[int], keep: int, bos: int | None) -> list[int]:
    """Cut a prompt from the left, but not a beginning-of-sequence token that it opens with.

    Args:
        prompt: token ids.
        keep: tokens to keep, at least 1.
        bos: the beginning-of-sequence token, if there is one.
    """
    if keep >= len(prompt):
        return list(prompt)
    opening = [prompt[0]] if prompt[0] == bos and keep > 1 else []
    return opening + list(prompt[len(prompt) - keep + len(opening) :])
