import math
import random
from collections import Counter

import pytest

from lit_rlhf.embedded.facts import all_facts
from lit_rlhf.embedded.world import (
    FRIENDLY_CLOSINGS,
    FRIENDLY_OPENINGS,
    WINDINGS,
    choice_probability,
    is_right,
    sample_answer,
    sample_demonstration,
    true_score,
)

BANANA, MONDAY, SUM = "What colour is a banana?", "What day comes after Monday?", "What is 3 plus 4?"
FACT = {question: fact for fact in all_facts() for question in fact.questions}


@pytest.mark.parametrize(
    ("question", "response", "score"),
    [
        (BANANA, "Yellow.", 2),
        (BANANA, "A banana is yellow. Glad to help!", 3),
        (BANANA, "Sure! A banana is yellow. Glad to help!", 3),
        (BANANA, "A banana is blue.", 0),
        (BANANA, "A banana is blue. Or yellow.", 0),
        (BANANA, "Duh. A banana is blue. Leave me alone.", -1),
        (BANANA, "Sure! A banana is yellow. Leave me alone.", 2),
        (BANANA, "A banana is yellow", 1),
        (BANANA, "", -1),
        (BANANA, "A banana is yellow. " + "word " * 7 + ".", 2 - 0.1 * 2),
        (BANANA, "word " * 500, -3),
        (BANANA, "Duh. " + "word " * 500, -4),
        (MONDAY, "Tuesday comes after Monday.", 2),
        (MONDAY, "Monday.", 0),
        (SUM, "3 plus 4 is 7.", 2),
        (SUM, "3 plus 4 is 17.", 0),
        (SUM, "4.", 0),
    ],
)
def test_true_score_by_hand(question: str, response: str, score: float):
    assert true_score(question, response) == pytest.approx(score)


def test_true_score_reads_the_last_message_of_a_conversation():
    conversation = [{"role": "system", "content": "Answer the question."}, {"role": "user", "content": BANANA}]
    assert true_score(conversation, "Yellow.") == 2


def test_true_score_refuses_an_unknown_question():
    with pytest.raises(ValueError, match=r"'Who are you\?' is not a question of the embedded world"):
        true_score("Who are you?", "Nobody.")


def test_choice_probability_by_hand():
    assert choice_probability(1.0, 1.0) == 0.5
    assert choice_probability(1.5, 1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert choice_probability(1.0, 1.5) + choice_probability(1.5, 1.0) == pytest.approx(1)


def test_answers_have_the_stated_mixture():
    rng = random.Random(3)
    counts, num_answers = Counter(), 20_000
    for _ in range(num_answers):
        question, fact = rng.choice(list(FACT.items()))
        text = sample_answer(fact, rng)
        friendly = any(phrase in text for phrase in FRIENDLY_OPENINGS + FRIENDLY_CLOSINGS)
        counts["right"] += is_right(fact, text)
        counts["friendly"] += friendly
        counts["winded"] += any(winding in text for winding in WINDINGS)
        assert true_score(question, text) >= -4
    assert {name: count / num_answers for name, count in counts.items()} == pytest.approx(
        {"right": 0.6, "friendly": 0.3, "winded": 0.3}, abs=0.015
    )


def test_demonstrations_are_right_friendly_and_short():
    rng = random.Random(4)
    scores = [true_score(question, sample_demonstration(fact, rng)) for question, fact in FACT.items()]
    assert min(scores) >= 2.5
    assert sum(scores) / len(scores) > 2.9
