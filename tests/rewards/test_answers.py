"""Answers in texts: where they stand, and which are the same."""

from __future__ import annotations

import json
from fractions import Fraction
from time import perf_counter

import pytest

from lit_rlhf.rewards.answers import FINDERS, find_answer, is_number, number_in, plain_text, same_answer


@pytest.mark.parametrize(
    ("place", "text", "found"),
    [
        ("hash", "#### 1\nno\n#### 72\nthe end", "72"),
        ("hash", "72", None),
        ("boxed", r"\boxed{1} so \boxed{\frac{1}{2}} metres}", r"\frac{1}{2}"),
        ("boxed", r"so \boxed{1", None),
        ("tag", "<answer>1</answer> <answer>\n2 </answer>", "2"),
        ("tag", "<answer>1", None),
        ("tag", "1</answer>", None),
        ("line", "A: 71\nA: 72\nB: 3", "72"),
        ("line", "So the answer is 72 dollars.\nBye", "72 dollars."),
        ("line", "**Final answer:** 72", "72"),
        ("line", "The answer is: Paris", "Paris"),
        ("line", "answer = 3", "3"),
        ("line", "A dog, and no answers here", None),
        ("number", "From 3 to 1,250.50!", "1,250.50"),
        ("number", "x = 16-3", "3"),
        ("number", "(2)-3 and x-4", "4"),
        ("number", "none", None),
        ("whole", " all of it ", "all of it"),
    ],
)
def test_where_answers_stand(place, text, found):
    assert find_answer(text, [place]) == found


def test_the_first_place_that_there_is_counts():
    assert find_answer("#### 1\n<answer>2</answer> 3", ["tag", "hash"]) == "2"
    assert find_answer("#### 1 3", ["tag", "hash"]) == "1 3"
    assert find_answer("3", ["tag", "hash"]) is None


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("72", 72),
        ("-72", -72),
        ("+72.00", 72),
        ("\u221272", -72),
        ("$1,250.50", Fraction(2501, 2)),
        ("-$5", -5),
        (r"\$18", 18),
        ("1{,}000", 1000),
        ("50%", 50),
        ("50 \\%", 50),
        ("\u20ac3", 3),
        (".5", Fraction(1, 2)),
        ("1e3", 1000),
        ("2.5e-1", Fraction(1, 4)),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("2 1/2 hours", Fraction(5, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"18\text{ apples}", 18),
        ("18 apples a day", 18),
        ("9 + 9 = 18", 18),
        ("x=16-3", 16),
        ("1234567", 1234567),
        ("1,5", None),
        ("12,34", None),
        ("1.2.3", None),
        ("1/2/3", None),
        ("1e999999999", None),
        ("1/0", None),
        ("9" * 5000, None),
        ("many", None),
        ("", None),
    ],
)
def test_numbers(answer, number):
    assert number_in(answer) == number


def test_a_number_alone():
    assert all(map(is_number, ["72", "$1,000.00", "3/4", "18 apples", "5 km.", "50%", "7 per day"]))
    assert not any(map(is_number, ["", "Paris", "7 and 8", "7, 8", "7 dwarfs and 1 princess", "(3, 4)"]))


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("She has 72.", "72", True),
        ("She has 72.", "71", False),
        ("She has 72. #### 71", "71", True),
        ("#### 72", "worked <<8*9=72>>\n#### 72", True),
        ("#### 1,000", "$1000.00", True),
        (r"\boxed{0.5}", r"so it is $\boxed{\frac12}$, that is \boxed{\frac{1}{2}}", True),
        ("72", "-72", False),
        ("no number", "72", False),
        ("<answer> Paris. </answer>", "paris", True),
        ("Paris", "Paris", True),
        ("It is Paris", "Paris", False),
        ("The answer is (B).", "B", True),
        ("The answer is (C).", "B", False),
    ],
)
def test_the_same_answer(response, reference, right):
    assert same_answer(response, reference, compare="auto", places=(), tolerance=0.0) is right


def test_how_answers_are_compared_may_be_said():
    given = {"places": (), "tolerance": 0.0}
    assert same_answer("007", "7", compare="number", **given)
    assert not same_answer("007", "7", compare="text", **given)
    assert same_answer("a 7", "room 7", compare="number", **given)
    assert not same_answer("it was 7", "room 7", compare="auto", **given)
    assert not same_answer("3.14", "3.1416", compare="auto", **given)
    assert same_answer("3.14", "3.1416", compare="auto", places=(), tolerance=0.001)
    assert not same_answer("-3.15", "-3.1416", compare="auto", places=(), tolerance=0.001)
    assert not same_answer("72", "72", compare="auto", places=("boxed",), tolerance=0.0)


def test_plain_text():
    assert plain_text(r"$\text{New  York}$.") == "new york"
    assert plain_text("Stra\u00dfe") == "strasse"


@pytest.mark.parametrize(
    "text", ["1," * 50_000, "9" * 100_000, "1/" * 50_000, "<answer>" * 10_000, "\\boxed{" * 10_000]
)
def test_no_text_takes_long(text):
    begin = perf_counter()
    for find in FINDERS.values():
        find(text)
    same_answer(text, "1", compare="auto", places=(), tolerance=0.0)
    assert perf_counter() - begin < 2.0


def test_gsm8k_solutions_are_graded_as_their_labels_say(shared_data):
    rows = [json.loads(line) for line in (shared_data / "gsm8k/example_model_solutions.jsonl").open()]
    answers = [json.loads(line)["answer"] for line in (shared_data / "gsm8k/test.jsonl").open()]
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    graded = [
        (
            same_answer(row[model]["solution"], answer, compare="auto", places=(), tolerance=0.0),
            row[model]["is_correct"],
        )
        for row, answer in zip(rows, answers, strict=True)
        for model in models
    ]
    assert len(graded) == 5276
    assert sum(is_correct for _, is_correct in graded) == 2001
    assert [pair for pair in graded if pair[0] != pair[1]] == []


def test_every_gsm8k_answer_is_a_number_that_it_gives_itself(shared_data):
    for name in ("train", "test"):
        answers = [json.loads(line)["answer"] for line in (shared_data / f"gsm8k/{name}.jsonl").open()]
        assert all(is_number(answer.rpartition("####")[2]) for answer in answers)
        assert all(same_answer(answer, answer, compare="auto", places=(), tolerance=0.0) for answer in answers)
