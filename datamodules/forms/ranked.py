"""Forms of rows that list any number of answers, ranked or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.forms.fields import Fields, read_words
from datamodules.forms.instructions import has_answer
from datamodules.forms.prompts import CONVERSATIONS, Draft
from datamodules.forms.splitting import part
from datamodules.forms.values import read_list, read_number, wrong_type
from datamodules.records import Response, Text

LISTS = ("completions", "responses", "answers", "generations")
SAMPLES = ("completions", "responses", "generations")  # `answers` without ranks may be a list of what is right
SCORES = ("scores", "rewards", "ratings", "rating", "score")
_WORDS = ("completion", "response", "text", "answer", "content")
_SCORE = ("overall_score", "score", "rating", "reward", "average_rating")

Items = Sequence[Mapping[str, Any]]


def has_ranks(fields: Fields) -> bool:
    """Whether the answers are listed each with its rank."""
    return "rank" in _first_item(fields)


def has_scores(fields: Fields) -> bool:
    """Whether the answers are listed each with its score."""
    return any(_first_item(fields).get(key) is not None for key in _SCORE)


def has_parallel_lists(fields: Fields) -> bool:
    """Whether answers and scores are two lists."""
    return isinstance(fields[_present(fields.values, LISTS)], list) and isinstance(
        fields[_present(fields.values, SCORES)], list
    )


def has_samples(fields: Fields) -> bool:
    """Whether answers are listed of which nothing says that one is better, and the row holds no other answer."""
    listed = fields[_present(fields.values, SAMPLES)]
    if not isinstance(listed, list) or has_answer(fields) or fields.first(*CONVERSATIONS, *SCORES):
        return False
    told = ("rank", *_SCORE, "role", "from")  # with a role it is a message, and the list one conversation
    return not any(isinstance(item, Mapping) and _present(item, told) for item in listed)


def read_ranks(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers ``{completion, rank}``, the lowest rank the best."""
    places, answers, items = _items(fields, LISTS)
    ranks = [read_number(f"{place}['rank']", item.get("rank")) for place, item in zip(places, items, strict=True)]
    return [_ranked(prompt, places, answers, items, ranks, [None] * len(ranks))]


def read_scores(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers ``{response, overall_score}``, the highest score the best."""
    places, answers, items = _items(fields, LISTS)
    scores = [_number_of(place, item) for place, item in zip(places, items, strict=True)]
    return [_ranked(prompt, places, answers, items, [-score for score in scores], scores)]


def read_parallel_lists(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers in one list and their scores in another, the highest score the best."""
    places, answers = _words(fields, LISTS)
    name = _present(fields.values, SCORES)
    scores = [read_number(f"{name}[{number}]", score) for number, score in enumerate(fields[name])]
    if len(answers) != len(scores):
        wanted = f"one number for each of the {len(answers)} {_present(fields.values, LISTS)}"
        raise wrong_type(repr(name), scores, wanted)
    return [_ranked(prompt, places, answers, [{}] * len(answers), [-score for score in scores], scores)]


def read_samples(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers, in words or as ``{completion}`` with more about each; all are of one rank."""
    listed = fields[_present(fields.values, SAMPLES)]
    if listed and isinstance(listed[0], Mapping):
        places, answers, items = _items(fields, SAMPLES)
    else:
        places, answers = _words(fields, SAMPLES)
        items = [{}] * len(answers)
    return [_ranked(prompt, places, answers, items, [0.0] * len(answers), [None] * len(answers))]


def _ranked(
    prompt: Text | None,
    places: Sequence[str],
    answers: list[Text],
    items: Items,
    order: list[float],
    scores: Sequence[float | None],
) -> Draft:
    """Make a draft of answers, the one lowest in ``order`` the best. One that is given twice is left to the encoder."""
    prompt, texts = part(prompt, places, answers)
    rank_of = {value: rank for rank, value in enumerate(sorted(set(order)))}
    said = zip(texts, order, scores, items, strict=True)
    return Draft(prompt, [Response(text, rank_of[value], score, columns=item) for text, value, score, item in said])


def _words(fields: Fields, names: Sequence[str]) -> tuple[list[str], list[Text]]:
    """Answers listed in words, and what each is called in messages."""
    name = _present(fields.values, names)
    given = read_list(repr(name), fields[name], "a list of answers")
    places = [f"{name}[{number}]" for number in range(len(given))]
    return places, [read_words(place, words, fields.tags) for place, words in zip(places, given, strict=True)]


def _items(fields: Fields, names: Sequence[str]) -> tuple[list[str], list[Text], Items]:
    """Answers listed with something about each, and what each is called in messages."""
    name = _present(fields.values, names)
    items = read_list(repr(name), fields[name], "a list of answers")
    places = [f"{name}[{number}]" for number in range(len(items))]
    answers = []
    for place, item in zip(places, items, strict=True):
        key = _present(item, _WORDS) if isinstance(item, Mapping) else ""
        if not key:
            raise wrong_type(place, item, f"an answer under {', '.join(map(repr, _WORDS))}")
        answers.append(read_words(f"{place}[{key!r}]", item[key], fields.tags))
    return places, answers, items


def _number_of(place: str, item: Mapping[str, Any]) -> float:
    key = _present(item, _SCORE) or "score"
    return read_number(f"{place}[{key!r}]", item.get(key))


def _first_item(fields: Fields) -> Mapping[str, Any]:
    items = fields[_present(fields.values, LISTS)]
    return items[0] if isinstance(items, list) and items and isinstance(items[0], Mapping) else {}


def _present(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if values.get(name) is not None), "")
