"""Preferences: pairs, rankings and thumbs, from rows of any form."""

from __future__ import annotations

import copy

import pytest

import datamodules
from datamodules import PreferenceDataModule
from lit_rlhf.types import PreferenceBatch, UnpairedBatch

PAIR = {"prompt": "Who?", "chosen": " Me.", "rejected": " You.", "margin": 0.5}
RANKED = {
    "context": "Who?",
    "completions": [
        {"rank": 2, "completion": " No."},
        {"rank": 0, "completion": " Me."},
        {"rank": 1, "completion": " A."},
    ],
}
SCORED = {"instruction": "Who?", "completions": [{"response": "Me.", "score": 4.5}, {"response": "You.", "score": 1.0}]}
THUMB = {"prompt": "Who?", "completion": " Me.", "label": False}


@pytest.fixture
def make_data(tiny_tokenizer):
    def make(rows, **options):
        defaults = {"train": rows, "tokenizer": copy.deepcopy(tiny_tokenizer), "batch_size": 8, "shuffle_buffer": 0}
        return PreferenceDataModule(**{**defaults, **options})

    return make


def texts(part, tokenizer):
    """The text of every response, by the number of its sequence."""
    forest = part.forest
    starts = forest.starts
    return [
        tokenizer.decode(forest.tokens[starts[leaf] : starts[leaf] + forest.lengths[leaf]]) for leaf in forest.leaves
    ]


def pairs_of(part, tokenizer):
    said = texts(part, tokenizer)
    sides = zip(part.chosen.tolist(), part.rejected.tolist(), part.margins.tolist(), strict=True)
    return [(said[chosen], said[rejected], margin) for chosen, rejected, margin in sides]


def test_pairs_of_a_ranking_share_prompt_and_responses(make_data, tiny_tokenizer):
    data = make_data([RANKED])
    (batch,) = data.train_dataloader()
    (part,) = batch.micro_batches
    assert isinstance(batch, PreferenceBatch)
    assert pairs_of(part, tiny_tokenizer) == [
        (" Me.</s>", " A.</s>", 0.0),
        (" Me.</s>", " No.</s>", 0.0),
        (" A.</s>", " No.</s>", 0.0),
    ]
    assert len(part.forest.lengths) == 4
    assert part.rows == ("train:1",) * 3
    assert data.num_examples(batch) == 3


def test_only_the_best_against_the_worst(make_data, tiny_tokenizer):
    (batch,) = make_data([RANKED], pairing="best_worst").train_dataloader()
    (part,) = batch.micro_batches
    assert pairs_of(part, tiny_tokenizer) == [(" Me.</s>", " No.</s>", 0.0)]
    assert len(part.forest.lengths) == 3  # the one in between is not computed


@pytest.mark.parametrize(("margins", "wanted"), [("column", [0.5, 0.0]), ("scores", [0.5, 3.5])])
def test_margins_are_given_or_asked_to_be_the_difference_of_scores(margins, wanted, make_data):
    (batch,) = make_data([PAIR, SCORED], margins=margins).train_dataloader()
    (part,) = batch.micro_batches
    assert part.margins.tolist() == wanted


def test_thumbs(make_data, tiny_tokenizer):
    data = make_data([THUMB, PAIR, RANKED], kind="unpaired")
    (batch,) = data.train_dataloader()
    (part,) = batch.micro_batches
    assert isinstance(batch, UnpairedBatch)
    judged = list(zip(part.rows, texts(part, tiny_tokenizer), part.labels.tolist(), strict=True))
    assert judged == [
        ("train:1", " Me.</s>", False),
        ("train:2", " Me.</s>", True),
        ("train:2", " You.</s>", False),
        ("train:3", " Me.</s>", True),
        ("train:3", " No.</s>", False),
    ]
    assert data.examples == "responses"
    assert data.num_examples(batch) == 5


def test_a_thumb_is_no_pair_and_an_instruction_no_thumb(make_data):
    with pytest.raises(ValueError, match=r"^train:1: .*data\.kind=unpaired"):
        list(make_data([THUMB]).train_dataloader())
    with pytest.raises(ValueError, match=r"^train:1: .*nobody judged"):
        list(make_data([{"prompt": "Who?", "completion": " Me."}], kind="unpaired").train_dataloader())


def test_good_and_bad_answers_to_one_question_are_pairs(make_data):
    graded = {
        "question": "1 + 1?",
        "small": {"is_correct": False, "solution": "3"},
        "large": {"is_correct": True, "solution": "2"},
        "other": {"is_correct": False, "solution": "4"},
    }
    (batch,) = make_data([graded]).train_dataloader()
    assert batch.num_pairs == 2
    one_sided = {**graded, "large": {"is_correct": False, "solution": "5"}}
    (dropped,) = make_data([one_sided], on_bad_row="drop").train_dataloader()
    assert dropped.notes["dropped/no_pair"] == 1


def test_responses_that_are_alike_are_counted(make_data):
    twins = {**RANKED, "completions": [*RANKED["completions"], {"rank": 3, "completion": " Me."}]}
    (batch,) = make_data([twins]).train_dataloader()
    assert (batch.num_pairs, batch.notes["ignored/identical_responses"]) == (3, 1)
    named = next(iter(make_data([[twins], [PAIR]]).train_dataloader()))
    assert named.notes["ignored/identical_responses/train[0]"] == 1


def test_only_the_assistants_words_of_a_response(make_data):
    turns = [
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": "Yes."},
    ]
    row = {"prompt": [{"role": "user", "content": "Where?"}], "chosen": turns, "rejected": turns[:1]}
    counts = {}
    for trained in ("response", "assistant"):
        (batch,) = make_data([row], trained=trained).train_dataloader()
        counts[trained] = len(batch.micro_batches[0].forest.targets)
    assert counts["assistant"] < counts["response"]


def test_fill(make_data):
    (batch,) = make_data([PAIR] * 6, token_budget=32).train_dataloader()
    assert batch.notes["room"] == 32 * len(batch.micro_batches)
    assert batch.notes["tokens"] == sum(part.forest.num_tokens for part in batch.micro_batches)


def test_settings_are_named():
    with pytest.raises(ValueError, match=r"data\.token_budget is 0; it must be at least 1"):
        PreferenceDataModule(token_budget=0)
    with pytest.raises(ValueError, match=r"data\.kind is 'thumbs'; it must be one of pairs, unpaired, graded, steps"):
        PreferenceDataModule(kind="thumbs")


def test_public_names():
    assert all(hasattr(datamodules, name) for name in datamodules.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = datamodules.Nothing
