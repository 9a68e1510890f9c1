import re

import pytest

from lit_rlhf.embedded.facts import CANDIDATES, KINDS, Kind, all_facts, facts_by_question
from lit_rlhf.embedded.world import FRIENDLY_CLOSINGS, FRIENDLY_OPENINGS, RUDE_CLOSINGS, RUDE_OPENINGS, WINDINGS


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def test_every_question_asks_for_one_fact():
    assert len(facts_by_question()) == sum(len(fact.questions) for fact in all_facts())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kinds_own_words_name_no_candidate(kind: Kind):
    candidates = {answer.lower() for answer in kind.facts.values()}
    assert not words(kind.statement.format(key="", answer="")) & candidates


def test_phrases_name_no_candidate():
    phrases = (*FRIENDLY_OPENINGS, *FRIENDLY_CLOSINGS, *RUDE_OPENINGS, *RUDE_CLOSINGS, *WINDINGS)
    assert not words(" ".join(phrases)) & CANDIDATES


def test_wrong_answers_leave_out_the_answer_and_the_key():
    facts = {fact.key: fact for fact in all_facts() if fact.kind.name == "next day"}
    assert facts["Monday"].wrong_answers == ("Friday", "Saturday", "Sunday", "Thursday", "Wednesday")
    assert all(fact.wrong_answers for fact in all_facts())


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What colour is a banana?", "yellow"),
        ("What is the opposite of cold?", "hot"),
        ("What is the opposite of hot?", "cold"),
        ("What day comes before Monday?", "Sunday"),
        ("What month comes after December?", "January"),
        ("What is 7 plus 8?", "15"),
    ],
)
def test_facts_are_as_everyone_knows(question: str, answer: str):
    assert facts_by_question()[question].answer == answer
