"""Forms of rows that hold token ids.

What of a sequence is trained is said by ``labels`` (-100 = untrained), ``completion_mask`` or ``assistant_masks``
(1 = trained), or not at all, which trains all of it. The untrained beginning becomes the prompt, the rest the response;
an untrained end is left out, as nothing depends on it. If there are untrained tokens between trained ones, the column
``trained_mask`` of the record holds one bool per token of the response, True = trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datamodules.forms.fields import Fields
from datamodules.forms.prompts import Draft
from datamodules.forms.values import read_list, wrong_type
from datamodules.records import BadRowError, Response, Text, common_prefix_length

PROMPT_IDS = ("prompt_ids", "prompt_input_ids")
CHOSEN_IDS = ("chosen_ids", "chosen_input_ids")
REJECTED_IDS = ("rejected_ids", "rejected_input_ids")
_UNTRAINED = -100


def read_token_pair(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Two answers in tokens, after a prompt in tokens or after their common beginning.

    Where both answers begin with all of the prompt, they are taken to repeat it.
    """
    chosen, rejected = (_read_ids(fields, names) for names in (CHOSEN_IDS, REJECTED_IDS))
    asked = _read_prompt_ids(fields)
    shared = common_prefix_length(chosen, rejected)
    end = 0
    if asked is None:
        end = min(shared, len(chosen) - 1, len(rejected) - 1)
        asked = chosen[:end]
    elif asked and shared >= len(asked) and chosen[: len(asked)] == asked:
        end = len(asked)
    chosen, rejected = chosen[end:], rejected[end:]
    for names, ids in ((CHOSEN_IDS, chosen), (REJECTED_IDS, rejected)):
        if not ids:
            raise BadRowError("empty_response", f"{fields.first(*names)!r} has an empty response")
    return [Draft(asked, [Response(chosen), Response(rejected, rank=1)])]


def read_token_sequence(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A sequence of tokens, or several packed into one row that ``seq_lengths`` tells apart."""
    ids = _read_ids(fields, ("input_ids",))
    trained = _read_trained(fields, ids)
    kept = _read_marks(fields, "attention_mask", len(ids)) if "attention_mask" in fields else [True] * len(ids)
    drafts, start = [], 0
    for length in _read_lengths(fields, len(ids)):
        places = [place for place in range(start, start + length) if kept[place]]
        drafts.append(_sequence([ids[place] for place in places], [trained[place] for place in places]))
        start += length
    return drafts


def read_token_prompt(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A prompt in tokens, still to be answered."""
    return [Draft(_read_prompt_ids(fields) or [])]


def _sequence(ids: list[int], trained: list[bool]) -> Draft:
    if not any(trained):
        raise BadRowError("empty_response", "no token of the sequence is trained")
    start, end = trained.index(True), len(trained) - trained[::-1].index(True)
    mask = trained[start:end]
    return Draft(ids[:start], [Response(ids[start:end])], {} if all(mask) else {"trained_mask": mask})


def _read_trained(fields: Fields, ids: list[int]) -> list[bool]:
    if (name := fields.first("completion_mask", "assistant_masks")) is not None:
        trained = _read_marks(fields, name, len(ids))
    else:
        trained = [True] * len(ids)
    if "labels" not in fields:
        return trained
    labels = _read_parallel(fields, "labels", len(ids))
    for number, (label, token) in enumerate(zip(labels, ids, strict=True)):
        if label not in (_UNTRAINED, token):
            raise wrong_type(f"labels[{number}]", label, f"the token {token} itself, not the next one, or {_UNTRAINED}")
    return [mark and label != _UNTRAINED for mark, label in zip(trained, labels, strict=True)]


def _read_prompt_ids(fields: Fields) -> list[int] | None:
    name = fields.ask(*PROMPT_IDS)
    if name is None:
        return None
    return [] if fields[name] == [] else _read_ids(fields, (name,))


def _read_ids(fields: Fields, names: Sequence[str]) -> list[int]:
    name = fields.first(*names) or ""
    return _checked(name, fields[name], lambda value: type(value) is int and value >= 0, "a token id")


def _read_marks(fields: Fields, name: str, length: int) -> list[bool]:
    _read_parallel(fields, name, length)
    return list(map(bool, _checked(name, fields[name], lambda value: value in (0, 1), "0 or 1")))


def _read_lengths(fields: Fields, total: int) -> list[int]:
    if "seq_lengths" not in fields:
        return [total]
    lengths = _checked("seq_lengths", fields["seq_lengths"], lambda value: type(value) is int and value > 0, "a length")
    if sum(lengths) != total:
        raise wrong_type("'seq_lengths'", lengths, f"lengths that add up to the {total} tokens of 'input_ids'")
    return lengths


def _read_parallel(fields: Fields, name: str, length: int) -> list[Any]:
    values = read_list(repr(name), fields[name], "one number for each token")
    if len(values) != length:
        raise wrong_type(repr(name), values, f"one number for each of the {length} tokens, not {len(values)}")
    return values


def _checked(name: str, value: object, is_right: Callable[[Any], bool], wanted: str) -> list[Any]:
    values = read_list(repr(name), value, "a list of token ids" if wanted == "a token id" else "a list")
    for number, item in enumerate(values):
        if not is_right(item):
            raise wrong_type(f"{name}[{number}]", item, wanted)
    return values
