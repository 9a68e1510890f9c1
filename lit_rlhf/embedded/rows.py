"""The embedded data sets, made from a seed: who asks what, and which of two answers was chosen.

Every split asks its own questions: a quarter of all questions are kept for validation and test, and each fact keeps at
least three of its four ways to be asked in the training split. So held-out prompts ask for known facts in ways that
the model has not seen, which is what a model this small can be expected to get right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import combinations, pairwise
from typing import Any

from lit_rlhf.embedded.facts import Fact, all_facts, facts_by_question
from lit_rlhf.embedded.world import (
    TEMPERATURE,
    choice_probability,
    sample_answer,
    sample_demonstration,
    sample_plain_answer,
    true_score,
)

SEED = 0
SPLITS = ("train", "validation", "test")
NUM_PAIRS = {"train": 2000, "validation": 256, "test": 256}
NUM_RANKINGS = {"train": 16_000, "validation": 256, "test": 512}
NUM_RANKED = 4
NUM_DEMONSTRATIONS = {"train": 800, "validation": 116, "test": 116}

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "You work in a library.",
    "You talk to a curious child.",
)
GREETINGS = (
    ("Hello!", "Hello! What do you want to know?"),
    ("May I ask you something?", "Yes, you may."),
    ("I have a question.", "I am listening."),
)

Conversation = list[dict[str, str]]
Row = dict[str, Conversation]


@cache
def questions(split: str) -> tuple[str, ...]:
    """All questions of a split, shuffled.

    Args:
        split: ``train``, ``validation`` or ``test``.
    """
    rng = random.Random(f"{SEED}/questions")
    kept: dict[str, list[str]] = {name: [] for name in SPLITS}
    for fact in all_facts():
        ways = list(fact.questions)
        rng.shuffle(ways)
        kept[rng.choice(("validation", "test"))].append(ways.pop())
        kept["train"].extend(ways)
    rng.shuffle(kept[split])
    return tuple(kept[split])


def prompt(question: str, rng: random.Random) -> Conversation:
    """A conversation that ends in a question: half begin with it, others with a system message or a greeting."""
    turn = {"role": "user", "content": question}
    draw = rng.random()
    if draw < 0.5:
        return [turn]
    if draw < 0.75:
        return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, turn]
    hello, reply = rng.choice(GREETINGS)
    return [{"role": "user", "content": hello}, {"role": "assistant", "content": reply}, turn]


def answer(text: str) -> Conversation:
    """A response as a conversation of one turn."""
    return [{"role": "assistant", "content": text}]


def preference_rows(split: str) -> Iterator[Row]:
    """Pairs of unequal answers, one chosen with the probability of :func:`choice_probability`.

    Yields:
        Rows ``{"prompt": [...], "chosen": [...], "rejected": [...]}``.
    """
    rng = random.Random(f"{SEED}/preferences/{split}")
    for question in _cycle(questions(split), NUM_PAIRS[split]):
        fact = facts_by_question()[question]
        first, second = _unequal_answers(fact, question, rng)
        probability = choice_probability(true_score(question, first), true_score(question, second))
        chosen, rejected = (first, second) if rng.random() < probability else (second, first)
        yield {"prompt": prompt(question, rng), "chosen": answer(chosen), "rejected": answer(rejected)}


def ranking_rows(split: str) -> Iterator[dict[str, Any]]:
    """Unequal answers to a question, ranked as Plackett and Luce say.

    Each score gets noise of its own (Gumbel's) before they are sorted, so that any two of them are ordered rightly with
    the probability of :func:`choice_probability`.

    Yields:
        Rows ``{"prompt": [...], "completions": [{"completion": [...], "rank": 0}, ...]}``, 0 the best.
    """
    rng = random.Random(f"{SEED}/rankings/{split}")
    for question in _cycle(questions(split), NUM_RANKINGS[split]):
        answers = _unequal_answers(facts_by_question()[question], question, rng, NUM_RANKED)
        noisy = [true_score(question, text) / TEMPERATURE - math.log(-math.log(rng.random())) for text in answers]
        ranks = [sum(other > own for other in noisy) for own in noisy]
        ranked = zip(answers, ranks, strict=True)
        completions = [{"completion": answer(text), "rank": rank} for text, rank in ranked]
        yield {"prompt": prompt(question, rng), "completions": completions}


def demonstration_rows(split: str) -> Iterator[Row]:
    """Conversations with a right, friendly and short answer, ``{"messages": [...]}``."""
    rng = random.Random(f"{SEED}/demonstrations/{split}")
    for question in _cycle(questions(split), NUM_DEMONSTRATIONS[split]):
        text = sample_demonstration(facts_by_question()[question], rng)
        yield {"messages": [*prompt(question, rng), *answer(text)]}


def prompt_rows(split: str) -> Iterator[Row]:
    """Every question of a split once, ``{"prompt": [...]}``."""
    rng = random.Random(f"{SEED}/prompts/{split}")
    for question in questions(split):
        yield {"prompt": prompt(question, rng)}


def lessons(rng: random.Random) -> Iterator[Conversation]:
    """Endless conversations on training questions with right answers of one word or one sentence."""
    yield from _conversations(sample_plain_answer, rng)


def mixture(rng: random.Random) -> Iterator[Conversation]:
    """Endless conversations on training questions with answers of mixed quality, as people give them."""
    yield from _conversations(sample_answer, rng)


def best_accuracy(rows: Iterable[Mapping[str, Any]]) -> float:
    """Accuracy that the true score itself reaches on pairs or rankings, in [0, 1]: nothing reliably beats it."""
    is_right = [better > worse for row in rows for better, worse in _score_pairs(row)]
    return sum(is_right) / len(is_right)


def _score_pairs(row: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """True scores of every two answers of a row, that of the preferred one first."""
    best_first = [row[side] for side in ("chosen", "rejected") if side in row]
    if not best_first:
        best_first = [one["completion"] for one in sorted(row["completions"], key=lambda one: one["rank"])]
    yield from combinations((true_score(row["prompt"], turns[0]["content"]) for turns in best_first), 2)


def _conversations(sample: Callable[[Fact, random.Random], str], rng: random.Random) -> Iterator[Conversation]:
    while True:
        question = rng.choice(questions("train"))
        yield [*prompt(question, rng), *answer(sample(facts_by_question()[question], rng))]


def _cycle(items: tuple[str, ...], num_items: int) -> Iterator[str]:
    for place in range(num_items):
        yield items[place % len(items)]


def _unequal_answers(fact: Fact, question: str, rng: random.Random, number: int = 2) -> list[str]:
    while True:
        answers = [sample_answer(fact, rng) for _ in range(number)]
        scores = sorted(true_score(question, text) for text in answers)
        if all(above - below > 1e-6 for below, above in pairwise(scores)):
            return answers
