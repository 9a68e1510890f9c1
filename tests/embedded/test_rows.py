import random
from collections.abc import Callable, Iterator
from itertools import combinations, islice

import pytest

from datamodules.forms import read_row
from lit_rlhf.embedded.facts import all_facts
from lit_rlhf.embedded.rows import (
    NUM_PAIRS,
    NUM_RANKED,
    SPLITS,
    Conversation,
    best_accuracy,
    demonstration_rows,
    lessons,
    mixture,
    preference_rows,
    prompt_rows,
    questions,
    ranking_rows,
)
from lit_rlhf.embedded.world import choice_probability, true_score


def test_no_question_is_in_two_splits_and_none_is_lost():
    together = [question for split in SPLITS for question in questions(split)]
    assert len(together) == len(set(together)) == sum(len(fact.questions) for fact in all_facts())


def test_every_fact_is_asked_three_times_in_training():
    train = set(questions("train"))
    assert all(len(train & set(fact.questions)) == 3 for fact in all_facts())


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_those_of_their_split_and_the_same_every_time(split: str):
    for rows in (preference_rows, demonstration_rows, prompt_rows):
        once = list(rows(split))
        assert once == list(rows(split))
        asked = {
            [turn for turn in row.get("prompt", row.get("messages")) if turn["role"] == "user"][-1]["content"]
            for row in once
        }
        assert asked <= set(questions(split))


def test_choices_are_as_noisy_as_bradley_and_terry_say():
    rows = list(preference_rows("train"))
    assert len(rows) == NUM_PAIRS["train"]
    expected = 0.0
    for row in rows:
        scores = [true_score(row["prompt"], row[side][0]["content"]) for side in ("chosen", "rejected")]
        assert scores[0] != pytest.approx(scores[1])
        expected += choice_probability(max(scores), min(scores))
    assert best_accuracy(rows) == pytest.approx(expected / len(rows), abs=0.02)
    assert 0.88 < best_accuracy(rows) < 0.93


def test_prompts_come_with_and_without_context():
    beginnings = {row["prompt"][0]["content"] == row["prompt"][-1]["content"] for row in prompt_rows("test")}
    roles = {tuple(turn["role"] for turn in row["prompt"]) for row in prompt_rows("test")}
    assert beginnings == {True, False}
    assert roles == {("user",), ("system", "user"), ("user", "assistant", "user")}


@pytest.mark.parametrize("conversations", [lessons, mixture])
def test_the_model_is_taught_on_training_questions(conversations: Callable[[random.Random], Iterator[Conversation]]):
    asked = {conversation[-2]["content"] for conversation in islice(conversations(random.Random(0)), 5000)}
    assert asked <= set(questions("train"))
    assert len(asked) > 800


def test_lessons_are_right_and_plain():
    for *prompt, answer in islice(lessons(random.Random(1)), 500):
        assert true_score(prompt, answer["content"]) == 2


def test_rankings_are_as_noisy_as_pairs_and_say_who_is_best():
    rows = list(islice(ranking_rows("train"), 800))
    expected = num_pairs = 0.0
    for row in rows:
        assert sorted(one["rank"] for one in row["completions"]) == list(range(NUM_RANKED))
        scores = [true_score(row["prompt"], one["completion"][0]["content"]) for one in row["completions"]]
        for first, second in combinations(scores, 2):
            assert first != pytest.approx(second)
            expected += choice_probability(max(first, second), min(first, second))
            num_pairs += 1
    assert best_accuracy(rows) == pytest.approx(expected / num_pairs, abs=0.015)
    assert [row["completions"][0]["rank"] for row in rows].count(0) < 300  # the best does not always stand first
    assert all(read_row(row)[0].form == "ranked answers" for row in rows[:3])


def test_rankings_ask_the_questions_of_their_split():
    for split in ("train", "validation", "test"):
        rows = list(islice(ranking_rows(split), 500))
        assert {row["prompt"][-1]["content"] for row in rows} <= set(questions(split))
