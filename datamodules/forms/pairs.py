"""Forms of rows that hold one better and one worse answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from datamodules.forms.fields import Fields, read_words
from datamodules.forms.messages import read_turns
from datamodules.forms.prompts import Draft, answered
from datamodules.forms.splitting import part
from datamodules.records import ASSISTANT, HUMAN, Response, Text

_MEASURES = ("score", "rating", "reward", "avg_rating")


def read_chosen_rejected(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``chosen`` and ``rejected``, each text, a message or messages; scores beside them where they are given."""
    answers = [fields.words("chosen"), fields.words("rejected")]
    return [
        pair(prompt, ("'chosen'", "'rejected'"), answers, [_score(fields, side) for side in ("chosen", "rejected")])
    ]


def read_typed_pair(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``chosen_messages`` and ``rejected_messages``, two whole conversations."""
    names = ("chosen_messages", "rejected_messages")
    return [pair(prompt, tuple(map(repr, names)), [fields.words(name) for name in names])]


def read_other_response(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A conversation that ends in the better answer, and worse ones in ``rejected_response``, a text or several."""
    before, chosen = answered(prompt)
    given = fields["rejected_response"]
    several = given if isinstance(given, list) and given and not isinstance(given[0], Mapping) else [given]
    names = [f"rejected_response[{number}]" for number in range(len(several))]
    answers = [read_words(name, words, fields.tags) for name, words in zip(names, several, strict=True)]
    asked, worse = part(before, names, answers)
    return [Draft(asked, [Response(chosen), *(Response(text, rank=1) for text in worse)])]


def read_other_messages(fields: Fields, prompt: Text | None) -> list[Draft]:
    """A conversation that ends in the better answer, and ``rejected_messages``: a whole one, or other last turns."""
    before, chosen = answered(prompt)
    rejected = read_turns("rejected_messages", fields["rejected_messages"], fields.tags)
    places = ("the last turn", "'rejected_messages'")
    if rejected[0]["role"] == "assistant":
        return [pair(before, places, [chosen, rejected])]
    return [pair(None, places, [before + chosen, rejected])]


def pair(
    prompt: Text | None,
    places: tuple[str, ...],
    answers: list[Text],
    scores: Sequence[float | None] = (None, None),
    ranks: Sequence[int] = (0, 1),
) -> Draft:
    """Make a draft of two answers, the better one first unless ranks say otherwise.

    Raises:
        BadRowError: if they are of two kinds, or one is empty.
    """
    prompt, texts = part(prompt, places, answers)
    return Draft(prompt, list(map(Response, texts, ranks, scores)))


def are_dialogues(fields: Fields) -> bool:
    """Whether both answers are texts written as turns of a human and an assistant."""
    texts = fields["chosen"], fields["rejected"]
    return all(isinstance(text, str) and HUMAN in text and ASSISTANT in text for text in texts)


def _score(fields: Fields, side: str) -> float | None:
    names = itertools.product(_MEASURES, ("{1}_{0}", "{0}_{1}", "{0}-{1}"))
    return fields.number(*(pattern.format(side, measure) for measure, pattern in names))
