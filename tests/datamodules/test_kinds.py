"""What becomes of rows by what they are for, what each kind says of rows for another, and groups of rows."""

from __future__ import annotations

import copy
import json
import math
from itertools import chain

import pytest

from datamodules import PreferenceDataModule, Source
from datamodules.kinds import GradedTask
from lit_rlhf.types import GradedBatch, JudgedStepsBatch

PAIR = {"prompt": "Who?", "chosen": " Me.", "rejected": " You."}
CHAT = {
    "prompt": [{"role": "user", "content": "Who?"}],
    "chosen": [{"role": "assistant", "content": "Me."}],
    "rejected": [{"role": "assistant", "content": "You, I think."}],
}
RANKED = {
    "context": "Who?",
    "completions": [{"rank": 2, "completion": " No."}, {"rank": 0, "completion": " Me."}],
}
THUMB = {"prompt": "Who?", "completion": " Me.", "label": False}
STEPS = {"prompt": "1 + 1 + 1 =", "completions": ["1 + 1 is 2.", "2 + 1 is 4."], "labels": [True, False]}


@pytest.fixture
def make_data(tiny_tokenizer):
    def make(rows, **options):
        defaults = {"train": rows, "tokenizer": copy.deepcopy(tiny_tokenizer), "batch_size": 8, "shuffle_buffer": 0}
        return PreferenceDataModule(**{**defaults, "kind": "graded", **options})

    return make


@pytest.fixture
def only_part(make_data):
    """The one micro-batch of some rows."""

    def only_part(rows, **options):
        (batch,) = make_data(rows, **options).train_dataloader()
        (part,) = batch.micro_batches
        return part

    return only_part


def sequences(part):
    """Address and tokens of every sequence, its prompt included."""
    forest, starts = part.forest, part.forest.starts
    paths = [[range(starts[at], starts[at] + forest.lengths[at]) for at in forest.path(leaf)] for leaf in forest.leaves]
    return [forest.tokens[list(chain(*path))].tolist() for path in paths]


def known(part):
    return [[None if math.isnan(grade) else grade for grade in grades] for grades in part.grades.tolist()]


def test_every_row_with_a_response_is_graded(only_part, make_data, tiny_tokenizer):
    rows = [
        {"prompt": "Who?", "response": " Me.", "score": 2},
        {"prompt": "Who?", "responses": [" b", " a"], "scores": [1, 3]},
        {**PAIR, "score": [0.5, None]},
        THUMB,
        {"context": "Who?", "response1": "a", "response2": "b", "overall_preference": 0},
        {"prompt": "Who?", "responses": [" a", " b"]},
        {"text": "Once upon a time."},
    ]
    data = make_data(rows)
    (batch,) = data.train_dataloader()
    (part,) = batch.micro_batches
    assert isinstance(batch, GradedBatch)
    assert part.groups.tolist() == [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6]
    assert part.ranks.tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert known(part) == [[2.0], [3.0], [1.0], [0.5], [None], [None], [None], [None], [None], [None], [None]]
    assert part.rows == tuple(f"train:{row}" for row in (1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7))
    assert tiny_tokenizer.decode(sequences(part)[1]) == "<s>Who? a</s>"
    assert (data.num_examples(batch), data.examples) == (11, "responses")


def test_several_objectives(only_part):
    rows = [
        {"prompt": "Who?", "response": " Me.", "helpfulness": 4, "verbosity": 1},
        {"prompt": "Who?", "responses": [" b", " a"], "helpfulness": [2, None]},
    ]
    part = only_part(rows, objectives=["verbosity", "helpfulness"])
    assert known(part) == [[1.0, 4.0], [None, 2.0], [None, None]]
    assert only_part(rows, objectives=[]).grades.shape == (3, 0)


def test_a_grade_that_is_no_number_is_a_bad_row(make_data):
    rows = [PAIR, {"prompt": "Who?", "response": " Me.", "style": "good"}]
    with pytest.raises(ValueError, match=r"^train:2: style\[0\] is str 'good'; it must be a finite number; mend"):
        list(make_data(rows, objectives=["style"]).train_dataloader())
    (batch,) = make_data(rows, objectives=["style"], on_bad_row="drop").train_dataloader()
    assert batch.notes["dropped/wrong_type"] == 1


@pytest.mark.parametrize("row", [PAIR, CHAT, RANKED, {"prompt_ids": [1, 5], "chosen_ids": [6, 2], "rejected_ids": [7]}])
def test_a_text_has_the_same_tokens_whatever_it_is_for(only_part, row):
    pairs, unpaired, graded = (only_part([row], kind=kind) for kind in ("pairs", "unpaired", "graded"))
    assert sequences(pairs) == sequences(unpaired) == sequences(graded)
    assert pairs.forest.lengths == graded.forest.lengths
    assert pairs.forest.targets.tolist() == graded.forest.targets.tolist()


@pytest.mark.parametrize("ending", ["", "</s>"])
def test_a_stop_token_is_written_once(only_part, tiny_tokenizer, ending):
    row = {**PAIR, "chosen": f" Me.{ending}"}
    for kind in ("pairs", "unpaired", "graded"):
        assert tiny_tokenizer.decode(sequences(only_part([row], kind=kind))[0]) == "<s>Who? Me.</s>"


def test_rows_in_tokens_are_graded(only_part):
    rows = [
        {"input_ids": [1, 5, 6, 2], "labels": [-100, -100, 6, 2]},
        {"input_ids": [7, 8, 9]},
        {"prompt_ids": [1, 5], "chosen_ids": [6, 2], "rejected_ids": [7]},
    ]
    assert sequences(only_part(rows)) == [[1, 5, 6, 2], [7, 8, 9], [1, 5, 6, 2], [1, 5, 7]]


def test_what_has_no_prompt_begins_with_its_own_first_token(only_part, make_data):
    shared = {"prompt_ids": [], "chosen_ids": [5, 6], "rejected_ids": [5, 7, 8]}
    assert sequences(only_part([shared])) == [[5, 6], [5, 7, 8]]
    for rows in ([{**shared, "rejected_ids": [6, 7]}], [{"input_ids": [5]}]):
        with pytest.raises(ValueError, match="the prompt has no tokens"):
            list(make_data(rows).train_dataloader())
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        list(make_data([shared], kind="pairs").train_dataloader())


def test_what_says_the_same_is_graded_and_nowhere_preferred(make_data, only_part):
    twins = {**PAIR, "rejected": " Me."}
    assert len(only_part([twins]).rows) == 2
    cut = {**PAIR, "chosen": " a" * 9 + " b", "rejected": " a" * 9 + " c"}
    assert len(only_part([cut], max_length=8).rows) == 2
    for kind in ("pairs", "unpaired"):
        (batch,) = make_data([twins, PAIR], kind=kind, on_bad_row="drop").train_dataloader()
        assert batch.notes["dropped/identical_responses"] == 1


def test_steps(make_data, tiny_tokenizer):
    chat = {**STEPS, "prompt": CHAT["prompt"], "labels": [0.25, None]}
    data = make_data([STEPS, chat], kind="steps", step_separator="\n\n")
    (batch,) = data.train_dataloader()
    (part,) = batch.micro_batches
    assert isinstance(batch, JudgedStepsBatch)
    assert part.labels.tolist() == [1.0, 0.0, 0.25]
    assert part.forest.sequences.tolist() == [0, 0, 1]
    whole = sequences(part)
    assert tiny_tokenizer.decode(whole[0]) == "<s>1 + 1 + 1 =1 + 1 is 2.\n\n2 + 1 is 4.\n\n</s>"
    ends = part.forest.positions[part.forest.targets].tolist()
    read = [tiny_tokenizer.decode(whole[number][: end + 1]) for number, end in zip((0, 0, 1), ends, strict=True)]
    assert [text.endswith("2.\n\n") for text in read] == [True, False, True]
    assert read[1].endswith("4.\n\n")
    assert data.num_examples(batch) == 2


def test_steps_that_are_cut_are_counted(make_data):
    longer = {**STEPS, "completions": ["1", "2 " * 30], "labels": [0.5, 1]}
    lost = {**longer, "labels": [None, 1]}
    data = make_data([STEPS, longer, lost], kind="steps", max_length=45)
    with pytest.warns(UserWarning, match="train:3: no judged step ends within max_length=45"):
        (batch,) = data.train_dataloader()
    assert batch.micro_batches[0].labels.tolist() == [1.0, 0.0, 0.5]
    counts = {name: number for name, number in batch.notes.items() if "/" in name}
    assert counts == {"ignored/cut_steps": 1, "dropped/cut_steps": 1, "truncated/response": 1}


@pytest.mark.parametrize("kind", ["pairs", "unpaired", "graded"])
def test_judged_steps_are_of_their_own_kind(make_data, kind):
    with pytest.raises(ValueError, match=r"^train:1: read as stepwise supervision: .*data\.kind=steps takes such rows"):
        list(make_data([STEPS], kind=kind).train_dataloader())


def test_other_rows_are_told_what_they_lack(make_data):
    with pytest.raises(ValueError, match=r"^train:1: read as TRL preference, explicit: no steps to judge; give"):
        list(make_data([PAIR], kind="steps").train_dataloader())
    with pytest.raises(ValueError, match=r"^train:1: the row has no response; give 'chosen' and 'rejected', or 'comp"):
        list(make_data([{"prompt": "Who?"}]).train_dataloader())
    tie = {"prompt": "Who?", "responses": [" a", " b"], "scores": [1, 1]}
    with pytest.raises(ValueError, match=r"^train:1: all responses are of one rank.*data\.kind=graded takes such rows"):
        list(make_data([tie], kind="pairs").train_dataloader())


BENCH = [
    {**PAIR, "subset": "chat", "id": 1},
    {**PAIR, "id": 2},
    {**PAIR, "subset": 0, "id": 3},
    {**PAIR, "subset": None, "id": 4},
]


@pytest.mark.parametrize(("kind", "each"), [("pairs", 1), ("unpaired", 2), ("graded", 2)])
def test_a_column_names_groups_of_rows(only_part, kind, each):
    named = [name for name in ("chat", "train", "0", "train") for _ in range(each)]
    assert list(only_part(BENCH, kind=kind, group_by="subset").sources) == named
    assert set(only_part(BENCH, kind=kind).sources) == {"train"}


def test_steps_in_groups_and_counts_by_source(make_data, only_part):
    assert only_part([{**STEPS, "subset": "sums"}], kind="steps", group_by="subset").sources == ("sums",)
    sources = [[{**PAIR, "chosen": "", "subset": "chat"}, *BENCH], BENCH]
    (batch,) = make_data(sources, kind="pairs", group_by="subset", on_bad_row="drop", batch_size=20).train_dataloader()
    assert batch.notes["dropped/empty_response/train[0]"] == 1
    assert set(batch.micro_batches[0].sources) == {"chat", "0", "train[0]", "train[1]"}


@pytest.mark.parametrize("kind", ["pairs", "unpaired", "graded"])
def test_a_group_is_text_or_a_number(make_data, kind):
    rows = [{**PAIR, "subset": ["chat"]}]
    with pytest.raises(
        ValueError, match=r"^train:1: 'subset' is list .*; it must be text or a number, for data\.group_by"
    ):
        list(make_data(rows, kind=kind, group_by="subset").train_dataloader())


def test_the_budget_cuts_between_rows(make_data):
    rows = [{"prompt": f"Who {number}?", "responses": [" a", " b"], "scores": [1, 2]} for number in range(6)]
    whole, cut = (next(iter(make_data(rows, token_budget=size).train_dataloader())) for size in (4096, 20))
    assert len(cut.micro_batches) > len(whole.micro_batches) == 1
    assert sorted(row for part in cut.micro_batches for row in part.rows) == sorted(whole.micro_batches[0].rows)
    assert all(part.groups.tolist()[0] == 0 for part in cut.micro_batches)


@pytest.mark.parametrize(("kind", "row"), [("graded", RANKED), ("steps", STEPS)])
def test_a_stream_goes_on_where_it_was(make_data, kind, row):
    key = "context" if kind == "graded" else "prompt"
    rows = [{**row, key: f"Who {number}?"} for number in range(11)]
    options = {"kind": kind, "batch_size": 3, "shuffle_buffer": 5}
    whole = [[part.rows for part in batch.micro_batches] for batch in make_data(rows, **options).train_dataloader()]
    cursors = [batch.cursor for batch in make_data(rows, **options).train_dataloader()]
    for done in (1, 2):
        data = make_data(rows, **options)
        data.load_state_dict({**data.state_dict(), "cursor": json.loads(json.dumps(cursors[done - 1]))})
        assert [[part.rows for part in batch.micro_batches] for batch in data.train_dataloader()] == whole[done:]


def test_objectives_are_kept_as_they_are_named(make_data):
    task = make_data([PAIR], objectives=["a", "b"]).task()
    assert isinstance(task, GradedTask)
    assert task.objectives == ("a", "b")


@pytest.mark.parametrize("name", ["hh_rlhf_harmless/rows_0_1799.jsonl.gz", "llama_factory/dpo_en_demo.json"])
def test_real_rows_have_the_same_tokens_whatever_they_are_for(make_data, shared_data, name):
    source = Source(str(shared_data / name), limit=40)
    found = []
    for kind in ("pairs", "unpaired", "graded"):
        (batch,) = make_data(source, kind=kind, batch_size=40, token_budget=10**6, max_length=10**5).train_dataloader()
        found.append(sequences(batch.micro_batches[0]))
    assert len(found[0]) == 80
    assert found[0] == found[1] == found[2]


def test_a_row_without_the_column_to_group_by_is_told_once(make_data):
    with pytest.warns(UserWarning, match=r"train:1 has no column 'subest', so its source names it") as told:
        (batch,) = make_data([{**BENCH[0], "subset": "a"}] * 3, kind="pairs", group_by="subest").train_dataloader()
    assert len([one for one in told if "subest" in str(one.message)]) == 1
    assert set(batch.micro_batches[0].sources) == {"train"}
