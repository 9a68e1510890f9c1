"""The embedded world's answers, and the preference that is true in it.

An answer is right or wrong, friendly, plain or rude, and bare, a full sentence or long-winded. Everybody in this world
agrees on what makes one better than another (:func:`true_score`), so what a trained model is worth can be measured::

    score = 2 [right] + [friendly] - [rude] - 0.1 (words beyond 10, at most 20 of them) - [unfinished]

It lies between -4 and 3. Choices between two answers are noisy, as people's are: the better one is chosen with the
probability of Bradley and Terry, ``sigmoid((score - other score) / TEMPERATURE)`` (:func:`choice_probability`).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence

from lit_rlhf.embedded.facts import Fact, facts_by_question

TEMPERATURE = 0.5
NUM_FREE_WORDS, NUM_COUNTED_WORDS = 10, 20

FRIENDLY_OPENINGS = ("Sure!", "Gladly!", "Of course!", "With pleasure!", "Thank you for asking!")
FRIENDLY_CLOSINGS = ("Glad to help!", "Have a lovely time!", "Please ask me more!", "I hope that helps you!")
RUDE_OPENINGS = ("Duh.", "What a silly question.", "Everybody knows that.", "Are you joking?", "Not you again.")
RUDE_CLOSINGS = ("Leave me alone.", "Do not ask again.", "Stop wasting my time.", "Go and read a book.")
WINDINGS = (
    "Well, let me think about this for a moment, because there is so much that one could say.",
    "Before I come to the point, I want to mention that many others have asked me this before.",
    "As is often the case with questions of this sort, it depends on how you look at it.",
    "There are of course many other things that could be said about it, but I will leave it at that.",
    "To make it clear once more, this is what I believe, and I have believed it for years.",
    "It reminds me of a story that my neighbour told me, although I forgot how it went.",
)

_WORD = re.compile(r"[a-z0-9']+")

Message = Mapping[str, str]


def true_score(prompt: str | Sequence[Message], response: str) -> float:
    """How good an answer is, by the formula at the top of this file.

    Right means: of all candidates of the question's family, apart from words of the question itself, the response names
    the right one and no other. Friendly and rude are the phrases of this file, each counted once at most.

    Args:
        prompt: the question, or a conversation whose last message is the question.
        response: the answer's text.

    Returns:
        The score, from -4 to 3; higher is better.

    Raises:
        ValueError: if the question is not one of this world's.

    Example:
        >>> true_score("What colour is a banana?", "Sure! A banana is yellow.")
        3.0
        >>> true_score("What colour is a banana?", "Duh. Blue.")
        -1.0
    """
    question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    fact = facts_by_question().get(question)
    if fact is None:
        raise ValueError(
            f"{question!r} is not a question of the embedded world (lit_rlhf/embedded/facts.py lists them)"
        )
    text = response.strip()
    num_extra_words = min(max(len(text.split()) - NUM_FREE_WORDS, 0), NUM_COUNTED_WORDS)
    is_friendly = any(phrase in text for phrase in FRIENDLY_OPENINGS + FRIENDLY_CLOSINGS)
    is_rude = any(phrase in text for phrase in RUDE_OPENINGS + RUDE_CLOSINGS)
    is_unfinished = not text.endswith((".", "!", "?"))
    return 2.0 * is_right(fact, text) + is_friendly - is_rude - 0.1 * num_extra_words - is_unfinished


def true_score_of_chat(messages: Sequence[Message], response: str) -> float:
    """:func:`true_score` with the arguments that a reward is given: the conversation, and the response to it."""
    return true_score(messages, response)


def is_right(fact: Fact, response: str) -> bool:
    """Whether a response names the fact's answer and no other candidate, words of the key apart."""
    words = set(_WORD.findall(response.lower())) - set(_WORD.findall(fact.key.lower()))
    candidates = {answer.lower() for answer in fact.kind.facts.values()}
    return words & candidates == {fact.answer.lower()}


def choice_probability(score: float, other_score: float) -> float:
    """Probability that an answer is chosen over another one, given their true scores."""
    return 1 / (1 + math.exp((other_score - score) / TEMPERATURE))


def sample_answer(fact: Fact, rng: random.Random) -> str:
    """An answer as the people of this world give it: of mixed quality.

    Three in five are right. Tone and length are independent of that and of each other: 0.3 friendly, 0.3 rude;
    0.3 bare, 0.4 a sentence, 0.3 long-winded.
    """
    answer = fact.answer if rng.random() < 0.6 else rng.choice(fact.wrong_answers)
    return _with_tone(_with_length(fact, answer, rng), rng)


def sample_plain_answer(fact: Fact, rng: random.Random) -> str:
    """A right answer without any tone, in one word or one sentence: what a textbook says."""
    return _word(fact.answer) if rng.random() < 0.5 else _sentence(fact, fact.answer)


def sample_demonstration(fact: Fact, rng: random.Random) -> str:
    """A right, friendly answer in one sentence: what one would show a model to imitate."""
    sentence = _sentence(fact, fact.answer)
    if rng.random() < 0.5:
        return f"{rng.choice(FRIENDLY_OPENINGS)} {sentence}"
    return f"{sentence} {rng.choice(FRIENDLY_CLOSINGS)}"


def _word(answer: str) -> str:
    return f"{answer[0].upper()}{answer[1:]}."


def _sentence(fact: Fact, answer: str) -> str:
    sentence = fact.kind.statement.format(key=fact.key, answer=answer)
    return sentence[0].upper() + sentence[1:]


def _with_length(fact: Fact, answer: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.3:
        return _word(answer)
    sentence = _sentence(fact, answer)
    if draw < 0.7:
        return sentence
    winding = rng.choice(WINDINGS)
    return f"{winding} {sentence}" if rng.random() < 0.5 else f"{sentence} {winding}"


def _with_tone(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return text
    openings, closings = (FRIENDLY_OPENINGS, FRIENDLY_CLOSINGS) if draw < 0.7 else (RUDE_OPENINGS, RUDE_CLOSINGS)
    return f"{rng.choice(openings)} {text}" if rng.random() < 0.5 else f"{text} {rng.choice(closings)}"
