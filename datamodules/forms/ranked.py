"""Forms of rows that rank any number of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.forms.fields import Fields, read_words
from datamodules.forms.prompts import Draft
from datamodules.forms.splitting import part
from datamodules.forms.values import read_list, read_number, wrong_type
from datamodules.records import BadRowError, Response, Text

LISTS = ("completions", "responses", "answers", "generations")
SCORES = ("scores", "rewards", "ratings", "rating", "score")
_WORDS = ("completion", "response", "text", "answer", "content")
_SCORE = ("overall_score", "score", "rating", "reward", "average_rating")


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


def read_ranks(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers ``{completion, rank}``, the lowest rank the best."""
    places, answers, items = _items(fields)
    ranks = [read_number(f"{place}['rank']", item.get("rank")) for place, item in zip(places, items, strict=True)]
    return [_ranked(prompt, places, answers, ranks, [None] * len(ranks))]


def read_scores(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers ``{response, overall_score}``, the highest score the best."""
    places, answers, items = _items(fields)
    scores = [_number_of(place, item) for place, item in zip(places, items, strict=True)]
    return [_ranked(prompt, places, answers, [-score for score in scores], scores)]


def read_parallel_lists(fields: Fields, prompt: Text | None) -> list[Draft]:
    """Answers in one list and their scores in another, the highest score the best."""
    name, other = _present(fields.values, LISTS), _present(fields.values, SCORES)
    given = read_list(repr(name), fields[name], "a list of answers")
    scores = [read_number(f"{other}[{number}]", score) for number, score in enumerate(fields[other])]
    if len(given) != len(scores):
        raise wrong_type(repr(other), scores, f"one number for each of the {len(given)} {name}")
    places = [f"{name}[{number}]" for number in range(len(given))]
    answers = [read_words(place, words, fields.tags) for place, words in zip(places, given, strict=True)]
    return [_ranked(prompt, places, answers, [-score for score in scores], scores)]


def _ranked(
    prompt: Text | None, places: Sequence[str], answers: list[Text], order: list[float], scores: Sequence[float | None]
) -> Draft:
    """Make a draft of answers, the one lowest in ``order`` first. One that is given twice is left to the encoder."""
    prompt, texts = part(prompt, places, answers)
    rank_of = {value: rank for rank, value in enumerate(sorted(set(order)))}
    best_first = sorted(zip(texts, order, scores, strict=True), key=lambda one: one[1])
    if len({repr(text) for text in texts}) == 1 < len(texts):
        raise BadRowError("identical_responses", f"all {len(texts)} answers are identical, so nothing is preferred")
    return Draft(prompt, [Response(text, rank_of[value], score) for text, value, score in best_first])


def _items(fields: Fields) -> tuple[list[str], list[Text], list[Mapping[str, Any]]]:
    name = _present(fields.values, LISTS)
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
