"""Rewards for lengths, words and repetition, by numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from lit_rlhf.rewards import KeywordCount, LengthTarget, OverlongPenalty, RepetitionPenalty, Sample

POSITIVE = (
    "happy happily smile smiled smiles smiling love loved loves fun laugh laughed laughing hug hugged thank thanked "
    "good nice great proud kind joy excited wonderful beautiful glad best"
)


def of_length(number):
    return Sample("", "", response_tokens=list(range(number)))


def test_length_target():
    lengths = [of_length(number) for number in (0, 5, 10, 12, 15, 40)]
    assert LengthTarget(10)(lengths) == pytest.approx([0.0, 0.5, 1.0, 0.8, 0.5, 0.0])
    assert LengthTarget(10, tolerance=4)(lengths) == pytest.approx([0.0, 0.0, 1.0, 0.5, 0.0, 0.0])
    text = [Sample("", "two words", response_tokens=[1, 2, 3])]
    assert LengthTarget(2, 1, "words")(text) == LengthTarget(9, 1, "characters")(text) == [1.0]
    assert LengthTarget(3, 1)(text) == [1.0]


def test_overlong_penalty():
    lengths = [of_length(number) for number in (0, 6, 7, 8, 10, 11, 99)]
    assert OverlongPenalty(10, 4)(lengths) == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0])
    assert OverlongPenalty(2, 2, "words")([Sample("", "one")]) == [-0.5]


def test_keyword_count():
    samples = [Sample("", text) for text in ("", "A cat.", "Cat, CAT and dog", "concatenate cats", "dog dog dog dog")]
    assert KeywordCount(["cat", "Dog"], target=3)(samples) == pytest.approx([0.0, 1 / 3, 1.0, 0.0, 1.0])
    assert KeywordCount(["cat", "Dog"], 2, distinct=True)(samples) == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.5])
    assert KeywordCount(["new york", "new"], 2)([Sample("", "New York"), Sample("", "a new New York")]) == [0.5, 1.0]
    assert KeywordCount(["new york", "new"], 2, distinct=True)([Sample("", "a new New York")]) == [1.0]
    assert KeywordCount(["\u5feb\u4e50", "c++"], 2)([Sample("", "\u5f88\u5feb\u4e50\uff0cC++!")]) == [1.0]


def test_keywords_are_counted_as_the_pairs_of_stories_were(shared_data):
    rows = [json.loads(line) for line in (shared_data / "tinystories_pairs/test.jsonl").open()]
    count = KeywordCount(POSITIVE.split(), target=100)
    for side in ("chosen", "rejected"):
        found = count([Sample(row["prompt"], row[side]) for row in rows])
        assert [round(100 * score) for score in found] == [row[f"{side}_score"] for row in rows]


def test_repetition_penalty():
    texts = [Sample("", text) for text in ("", "a b", "a b c d", "a a a a a", "a b a b a b")]
    assert RepetitionPenalty(2)(texts) == pytest.approx([0.0, 0.0, 0.0, 1 / 4 - 1, 2 / 5 - 1])
    assert RepetitionPenalty(3)(texts) == pytest.approx([0.0, 0.0, 0.0, 1 / 3 - 1, 2 / 4 - 1])
    assert RepetitionPenalty(1, "tokens")([Sample("", "", response_tokens=[7, 7, 8, 7])]) == [-0.5]
    assert RepetitionPenalty(1, "characters")([Sample("", "aab ")]) == [-0.25]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LengthTarget(0), "target is 0"),
        (lambda: LengthTarget(5, 0), "tolerance is 0"),
        (lambda: LengthTarget(5, unit="letters"), "unit is 'letters'; it is one of tokens, words, characters"),
        (lambda: OverlongPenalty(5, 0), "buffer is 0"),
        (lambda: OverlongPenalty(5, 6), "max_length is 5"),
        (lambda: OverlongPenalty(5, 5, "x"), "unit is 'x'"),
        (lambda: KeywordCount([]), r"words is \[\]"),
        (lambda: KeywordCount(["a", " "]), "give at least one word"),
        (lambda: KeywordCount(["a"], 0), "target is 0"),
        (lambda: RepetitionPenalty(0), "n is 0"),
        (lambda: RepetitionPenalty(1, "x"), "unit is 'x'"),
    ],
)
def test_settings_that_are_none(make, words):
    with pytest.raises(ValueError, match=words):
        make()
