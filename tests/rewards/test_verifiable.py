"""Rewards that check: answers, patterns, formats."""

from __future__ import annotations

import json
from itertools import pairwise
from time import perf_counter

import pytest

from lit_rlhf.rewards import ExactAnswer, FormatMatch, RegexMatch, Sample


def sample(response, prompt="?", **columns):
    return Sample(prompt, response, columns=columns, row="train.jsonl:7")


def test_an_answer_is_right_or_wrong():
    samples = [sample("so #### 72", answer="72.0"), sample("71", answer=72), sample("Paris", answer="paris")]
    assert ExactAnswer()(samples) == [1.0, 0.0, 1.0]
    assert ExactAnswer()([]) == []


def test_the_column_may_be_another_and_hold_several_answers():
    assert ExactAnswer("truth")([sample("4", truth=["3", "four", 4]), sample("5", truth=("3", 4))]) == [1.0, 0.0]


def test_place_and_kind_of_an_answer_may_be_said():
    assert ExactAnswer(find=["boxed"])([sample("72", answer=72), sample(r"\boxed{72}", answer=72)]) == [0.0, 1.0]
    assert ExactAnswer(compare="text")([sample("007", answer="7")]) == [0.0]
    assert ExactAnswer(tolerance=0.01)([sample("3.14", answer=3.1416)]) == [1.0]


@pytest.mark.parametrize("columns", [{}, {"answer": None}, {"solution": "72"}])
def test_a_row_without_answer_is_named(columns):
    known = ", ".join(columns) or "none"
    with pytest.raises(ValueError, match=rf"train\.jsonl:7: no column 'answer'.*columns: {known}$"):
        ExactAnswer()([sample("72", **columns)])


@pytest.mark.parametrize("wrong", [{"compare": "fuzzy"}, {"find": ["hash", "box"]}, {"tolerance": -1.0}])
def test_settings_of_answers_that_are_none(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        ExactAnswer(**wrong)


def test_gsm8k_rows_are_graded_as_they_are(shared_data):
    rows = [json.loads(line) for line in (shared_data / "gsm8k/test.jsonl").open()][:50]
    samples = [Sample(row["question"], row["answer"], columns={"answer": row["answer"]}) for row in rows]
    assert ExactAnswer()(samples) == [1.0] * 50
    shifted = [one._replace(columns=other.columns) for one, other in pairwise(samples)]
    assert sum(ExactAnswer()(shifted)) < 5


@pytest.mark.parametrize(
    ("how", "scores"), [("search", [1.0, 1.0, 1.0]), ("match", [0.0, 1.0, 1.0]), ("fullmatch", [0.0, 0.0, 1.0])]
)
def test_a_pattern_is_searched_or_must_be_all(how, scores):
    assert RegexMatch(r"\d+", how=how)([sample("a 12"), sample("12 a"), sample("12")]) == scores


def test_a_pattern_may_stand_in_the_row_and_hold_flags():
    samples = [sample("YES\nno", rule="(?is)yes.*no"), sample("YES\nno", rule="yes.*no")]
    assert RegexMatch(column="rule")(samples) == [1.0, 0.0]


def test_a_pattern_without_end_is_stopped_and_warned_of():
    begin = perf_counter()
    slow = sample("a" * 60 + "b"), sample("aaa")
    with pytest.warns(UserWarning, match=r"train\.jsonl:7: the pattern '\(a\|aa\|a\?\)\+\$' took more than 0\.05 s"):
        assert RegexMatch("(a|aa|a?)+$", how="match", timeout=0.05)(slow) == [0.0, 1.0]
    assert perf_counter() - begin < 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give one of them"),
        ({"pattern": "a", "column": "b"}, "give one of them"),
        ({"pattern": "("}, r"pattern is '\(', which is no regular expression: missing"),
        ({"pattern": "a", "how": "find"}, "how is 'find'"),
        ({"pattern": "a", "timeout": 0}, "timeout is 0"),
    ],
)
def test_settings_of_patterns_that_are_none(settings, words):
    with pytest.raises(ValueError, match=words):
        RegexMatch(**settings)


def test_a_row_without_a_pattern_is_named():
    with pytest.raises(ValueError, match=r"train\.jsonl:7: no column 'rule'"):
        RegexMatch(column="rule")([sample("a")])
    with pytest.raises(ValueError, match=r"train\.jsonl:7: column 'rule' is '\(', which is no regular expression"):
        RegexMatch(column="rule")([sample("a", rule="(")])


@pytest.mark.parametrize(
    ("response", "score", "partial"),
    [
        ("<think>a</think><answer>b</answer>", 1.0, 1.0),
        ("\n<think>\na\n</think>\n\n<answer></answer>\n", 1.0, 1.0),
        ("<think>a</think> so <answer>b</answer>", 0.0, 0.75),
        ("<think>a</think><answer>b</answer> bye", 0.0, 0.75),
        ("<answer>b</answer><think>a</think>", 0.0, 0.75),
        ("<think>a</think><answer>b", 0.0, 0.75),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0, 0.5),
        ("<think><answer></think></answer>", 0.0, 0.75),
        ("b", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_format_is_kept_or_not(response, score, partial):
    assert FormatMatch()([sample(response)]) == [score]
    assert FormatMatch(partial=True)([sample(response)]) == [partial]


def test_a_prompt_may_open_the_first_part():
    opened = "Hi<|assistant|><think>\n"
    assert FormatMatch()([sample("a</think><answer>b</answer>", opened)]) == [1.0]
    assert FormatMatch()([sample("a</think><answer>b</answer>", "Write <think> first.")]) == [0.0]


def test_the_parts_may_be_others():
    assert FormatMatch(["plan", "code", "test"])([sample("<plan></plan><code></code><test></test>")]) == [1.0]
    for wrong in ([], [""]):
        with pytest.raises(ValueError, match="name at least one part"):
            FormatMatch(wrong)
