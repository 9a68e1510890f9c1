"""The embedded data sets, made from a seed: who asks what, and which of two answers was chosen.

Every split asks its own questions: a quarter of all questions are kept for validation and test, and each fact keeps at
least three of its four ways to be asked in the training split. So held-out prompts ask for known facts in ways that
the model has not seen, which is what a model this small can be expected to get right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from lit_rlhf.embedded.facts import Fact, all_facts, facts_by_question
from lit_rlhf.embedded.world import (
    choice_probability,
    sample_answer,
    sample_demonstration,
    sample_plain_answer,
    true_score,
)

SEED = 0
SPLITS = ("train", "validation", "test")
NUM_PAIRS = {"train": 2000, "validation": 256, "test": 256}
NUM_REWARD_PAIRS = {"train": 8000, "validation": 512, "test": 1024}
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


def preference_rows(split: str, num_pairs: Mapping[str, int] = NUM_PAIRS) -> Iterator[Row]:
    """Pairs of unequal answers, one chosen with the probability of :func:`choice_probability`.

    Args:
        split: ``train``, ``validation`` or ``test``.
        num_pairs: of each split; the first of many are those of few.

    Yields:
        Rows ``{"prompt": [...], "chosen": [...], "rejected": [...]}``.
    """
    rng = random.Random(f"{SEED}/preferences/{split}")
    for question in _cycle(questions(split), num_pairs[split]):
        fact = facts_by_question()[question]
        first, second = _unequal_answers(fact, question, rng)
        probability = choice_probability(true_score(question, first), true_score(question, second))
        chosen, rejected = (first, second) if rng.random() < probability else (second, first)
        yield {"prompt": prompt(question, rng), "chosen": answer(chosen), "rejected": answer(rejected)}


def reward_rows(split: str) -> Iterator[Row]:
    """The same pairs, and more of them: a reward model learns from nothing else."""
    yield from preference_rows(split, NUM_REWARD_PAIRS)


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


def best_accuracy(rows: list[Row]) -> float:
    """Accuracy that the true score itself reaches on preference rows, in [0, 1]: nothing reliably beats it."""
    scores = [[true_score(row["prompt"], row[side][0]["content"]) for side in ("chosen", "rejected")] for row in rows]
    return sum(chosen > rejected for chosen, rejected in scores) / len(scores)


def _conversations(sample: Callable[[Fact, random.Random], str], rng: random.Random) -> Iterator[Conversation]:
    while True:
        question = rng.choice(questions("train"))
        yield [*prompt(question, rng), *answer(sample(facts_by_question()[question], rng))]


def _cycle(items: tuple[str, ...], num_items: int) -> Iterator[str]:
    for place in range(num_items):
        yield items[place % len(items)]


def _unequal_answers(fact: Fact, question: str, rng: random.Random) -> tuple[str, str]:
    while True:
        first, second = sample_answer(fact, rng), sample_answer(fact, rng)
        if abs(true_score(question, first) - true_score(question, second)) > 1e-6:
            return first, second
