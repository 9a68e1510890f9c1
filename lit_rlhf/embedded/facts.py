"""What there is to know in the embedded world: about 330 small facts and the ways to ask for them.

A *kind* is a family of facts that are asked for alike ("What colour is a banana?"). Its *candidates* are all answers
that occur in the family, so a wrong answer is another candidate, and naming two candidates is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple


class Kind(NamedTuple):
    """A family of facts.

    Args:
        name: what the family is called.
        questions: ways to ask, with ``{key}`` for what is asked about.
        statement: the full-sentence answer, with ``{key}`` and ``{answer}``.
        facts: answer by key.
    """

    name: str
    questions: tuple[str, ...]
    statement: str
    facts: Mapping[str, str]


class Fact(NamedTuple):
    """One thing to know.

    Args:
        kind: the family it belongs to.
        key: what is asked about.
        answer: the one right answer.
    """

    kind: Kind
    key: str
    answer: str

    @property
    def questions(self) -> tuple[str, ...]:
        """All ways to ask for this fact."""
        return tuple(template.format(key=self.key) for template in self.kind.questions)

    @property
    def wrong_answers(self) -> tuple[str, ...]:
        """Candidates of the family that are not the answer and do not occur in the key, sorted."""
        known = {self.answer, *self.key.split()}
        return tuple(sorted(set(self.kind.facts.values()) - known))


def _pairs(text: str) -> dict[str, str]:
    """Facts from ``"key: answer, key: answer"``."""
    return dict(pair.strip().split(": ") for pair in text.split(","))


def _opposites(text: str) -> dict[str, str]:
    """Facts in both directions from ``"hot: cold, ..."``."""
    pairs = _pairs(text)
    return pairs | {answer: key for key, answer in pairs.items()}


def _neighbours(circle: str, step: int) -> dict[str, str]:
    """Facts that lead from each word of a circle to the one ``step`` further on."""
    words = circle.split()
    return {word: words[(place + step) % len(words)] for place, word in enumerate(words)}


_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTHS = "January February March April May June July August September October November December"
_NUMBERS = range(1, 10)

KINDS: tuple[Kind, ...] = (
    Kind(
        "colour",
        (
            "What colour is {key}?",
            "Which colour does {key} have?",
            "Tell me the colour of {key}.",
            "The colour of {key}?",
        ),
        "{key} is {answer}.",
        _pairs(
            "a banana: yellow, a lemon: yellow, the sun: yellow, butter: yellow, grass: green, a frog: green, "
            "a leaf: green, a pea: green, the sky: blue, the sea: blue, a sapphire: blue, snow: white, "
            "milk: white, salt: white, a swan: white, coal: black, a raven: black, tar: black, a tomato: red, "
            "blood: red, a ruby: red, a cherry: red, a carrot: orange, a pumpkin: orange, a plum: purple, "
            "lavender: purple, chocolate: brown, soil: brown, an elephant: grey, ash: grey, a flamingo: pink, "
            "a piglet: pink"
        ),
    ),
    Kind(
        "sound",
        (
            "What does {key} say?",
            "Which sound does {key} make?",
            "Tell me the sound of {key}.",
            "How does {key} sound?",
        ),
        "{key} says {answer}.",
        _pairs(
            "a cow: moo, a cat: meow, a dog: woof, a duck: quack, a sheep: baa, a lion: roar, a bee: buzz, "
            "a snake: hiss, a horse: neigh, a pig: oink, an owl: hoot, a frog: croak, a mouse: squeak, "
            "a chick: cheep, a donkey: bray, a crow: caw"
        ),
    ),
    Kind(
        "young",
        (
            "What is a baby {key} called?",
            "Name the young of a {key}.",
            "What do you call a young {key}?",
            "A baby {key} is?",
        ),
        "A baby {key} is a {answer}.",
        _pairs(
            "dog: puppy, cat: kitten, cow: calf, sheep: lamb, horse: foal, duck: duckling, hen: chick, goat: kid, "
            "lion: cub, kangaroo: joey, frog: tadpole, deer: fawn, swan: cygnet, owl: owlet, pig: piglet, "
            "goose: gosling"
        ),
    ),
    Kind(
        "home",
        ("Where does {key} live?", "What is the home of {key}?", "Name the place where {key} lives.", "Home of {key}?"),
        "{key} lives in a {answer}.",
        _pairs(
            "a bird: nest, a bee: hive, a dog: kennel, a horse: stable, a pig: sty, a spider: web, a bear: cave, "
            "a rabbit: burrow, a king: palace, a knight: castle, a fish: pond, a camel: desert, a monkey: jungle, "
            "a goldfish: bowl, a hen: coop, a beaver: lodge"
        ),
    ),
    Kind(
        "legs",
        (
            "How many legs does {key} have?",
            "Count the legs of {key}.",
            "What number of legs has {key}?",
            "Legs of {key}?",
        ),
        "{key} has {answer} legs.",
        _pairs(
            "a dog: 4, a horse: 4, a cat: 4, a lizard: 4, a bird: 2, a child: 2, a hen: 2, an ostrich: 2, "
            "an ant: 6, a bee: 6, a beetle: 6, a fly: 6, a spider: 8, a scorpion: 8, a lobster: 10, a crab: 10"
        ),
    ),
    Kind(
        "opposite",
        (
            "What is the opposite of {key}?",
            "Name the opposite of {key}.",
            "The opposite of {key}?",
            "Say the opposite of {key}.",
        ),
        "The opposite of {key} is {answer}.",
        _opposites(
            "hot: cold, big: small, tall: short, fast: slow, happy: sad, young: old, light: dark, wet: dry, "
            "hard: soft, full: empty, rich: poor, loud: quiet, clean: dirty, open: closed, early: late, "
            "strong: weak, thick: thin, deep: shallow, sweet: sour, near: far"
        ),
    ),
    Kind(
        "capital",
        (
            "What is the capital of {key}?",
            "Name the capital of {key}.",
            "Which city is the capital of {key}?",
            "{key}'s capital?",
        ),
        "The capital of {key} is {answer}.",
        _pairs(
            "France: Paris, Italy: Rome, Spain: Madrid, Germany: Berlin, Austria: Vienna, Greece: Athens, "
            "Egypt: Cairo, Japan: Tokyo, China: Beijing, Russia: Moscow, Poland: Warsaw, Norway: Oslo, "
            "Sweden: Stockholm, Peru: Lima, Cuba: Havana, Portugal: Lisbon, Ireland: Dublin, Kenya: Nairobi, "
            "Canada: Ottawa, Hungary: Budapest"
        ),
    ),
    Kind(
        "plural",
        (
            "What is the plural of {key}?",
            "Name the plural of {key}.",
            "One {key}, two what?",
            "How do you write two of {key}?",
        ),
        "The plural of {key} is {answer}.",
        _pairs(
            "mouse: mice, foot: feet, tooth: teeth, man: men, woman: women, goose: geese, child: children, "
            "ox: oxen, leaf: leaves, knife: knives, wolf: wolves, city: cities, box: boxes, baby: babies, "
            "person: people, loaf: loaves"
        ),
    ),
    Kind(
        "next day",
        (
            "What day comes after {key}?",
            "Which day follows {key}?",
            "Name the day after {key}.",
            "The day after {key}?",
        ),
        "{answer} comes after {key}.",
        _neighbours(_DAYS, 1),
    ),
    Kind(
        "previous day",
        (
            "What day comes before {key}?",
            "Which day precedes {key}?",
            "Name the day before {key}.",
            "The day before {key}?",
        ),
        "{answer} comes before {key}.",
        _neighbours(_DAYS, -1),
    ),
    Kind(
        "next month",
        (
            "What month comes after {key}?",
            "Which month follows {key}?",
            "Name the month after {key}.",
            "The month after {key}?",
        ),
        "{answer} comes after {key}.",
        _neighbours(_MONTHS, 1),
    ),
    Kind(
        "previous month",
        (
            "What month is before {key}?",
            "Which month precedes {key}?",
            "Name the month before {key}.",
            "The month before {key}?",
        ),
        "{answer} comes before {key}.",
        _neighbours(_MONTHS, -1),
    ),
    Kind(
        "sum",
        ("What is {key}?", "How much is {key}?", "Please add: {key}.", "Tell me what {key} makes."),
        "{key} is {answer}.",
        {f"{one} plus {other}": str(one + other) for one in _NUMBERS for other in _NUMBERS},
    ),
)

CANDIDATES: frozenset[str] = frozenset(answer.lower() for kind in KINDS for answer in kind.facts.values())


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the world, in a fixed order."""
    return tuple(Fact(kind, key, answer) for kind in KINDS for key, answer in kind.facts.items())


@cache
def facts_by_question() -> Mapping[str, Fact]:
    """The fact that each question asks for."""
    return {question: fact for fact in all_facts() for question in fact.questions}
