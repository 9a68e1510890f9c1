"""Numbers as a person reads them, what is said of a source and what is not, and text that no terminal obeys."""

from __future__ import annotations

import pytest
from rich.console import Console

from datamodules.inspection import inspect
from datamodules.preference import PreferenceDataModule
from datamodules.sampling import Sample
from lit_rlhf.commands import preview_screen
from lit_rlhf.commands.preview_screen import epoch_table, example, printable, source_panel

GOOD = {"prompt": "Question", "chosen": " yes", "rejected": " no"}


@pytest.fixture
def printed():
    def printed(thing):
        console = Console(width=150, color_system=None)
        with console.capture() as captured:
            console.print(thing)
        return captured.get()

    return printed


@pytest.fixture
def seen(tiny_tokenizer):
    """The data module of some rows, and its report."""

    def seen(rows, **options):
        data = PreferenceDataModule(train=rows, tokenizer=tiny_tokenizer, **options)
        (report,) = inspect(data, "train")
        return report, data

    return seen


def lines(text):
    """The facts of a panel by their labels."""
    inside = [line.strip("│ \n") for line in text.splitlines() if line.startswith("│")]
    return {label.strip(): value.strip() for label, _, value in (line.partition("  ") for line in inside)}


def test_percentiles_are_lengths_that_occur():
    percentile = preview_screen._percentile
    assert [percentile(list(range(1, 101)), percent) for percent in (0, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert [percentile([3, 8], percent) for percent in (0, 50, 51, 100)] == [3, 3, 8, 8]
    assert percentile([7], 50) == 7


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 3, "33.3 %"),
        (1, 10_000, "under 0.1 %"),
        (9999, 10_000, "over 99.9 %"),
        (0, 0, "0 %"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part, whole, said):
    assert preview_screen._share(part, whole) == said


def test_an_estimate_has_two_digits():
    assert preview_screen._number(1_234_567, False) == "1,234,567"
    assert preview_screen._number(1_254_567, True) == "about 1,300,000"
    assert preview_screen._number(7, True) == "about 7"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (Sample([None] * 3, 3, True), "3, all read"),
        (Sample([], 0, True), "none"),
        (Sample([None] * 3, 4000, True), "3 of 4,000, from all over it"),
        (Sample([None] * 3, 4321, False), "3 of about 4,300, from all over it"),
        (Sample([None] * 3, 4321, False, True), "the first 3 of about 4,300"),
        (Sample([None] * 3, None, False, True), "the first 3 of an unknown number"),
    ],
)
def test_rows_are_counted_as_well_as_is_known(seen, sample, said):
    report, data = seen([GOOD])
    report.sample = sample
    assert preview_screen._rows(report, data) == said


def test_what_is_as_it_should_be_is_not_mentioned(seen, printed):
    assert set(lines(printed(source_panel(*seen([GOOD]))))) == {
        "rows", "form", "of use", "chosen", "a step", "", "tokens", "prompt", "response", "whole",
    }  # fmt: skip


def test_the_panel_of_rows_with_every_trouble(seen, printed):
    rows = [GOOD, GOOD, {**GOOD, "prompt": "Q " * 50}, {**GOOD, "chosen": ""}, {**GOOD, "images": ["a.png"]}]
    report, data = seen(rows, max_length=40, images="ignore")
    said = lines(printed(source_panel(report, data)))
    most = max(report.lengths["whole"])
    assert said["rows"] == "5, all read"
    assert said["of use"] == "4 of 5 examples (80.0 %)"
    assert said["lost"].startswith(("1 example (20.0 %), listed below", "number"))
    assert said["too long"] == f"1 example (25.0 %) for max_length 40; {most} would do for all"
    assert said["cut"] == "the prompt of 1"
    assert said["repeated"] == "1 example (25.0 %) with the tokens of an earlier one"
    assert said["pictures"] == "1, none of which the model sees"


def test_the_length_that_would_do_for_nearly_all(seen):
    rows = [{**GOOD, "prompt": "Q " * 40}] * 150 + [{**GOOD, "prompt": "Q " * 90}]
    report, data = seen(rows, max_length=20)
    nearly_all, most = sorted(set(report.lengths["whole"]))
    said = preview_screen._too_long(report, data)
    assert said == f"151 examples (100 %) for max_length 20; {nearly_all} would do for 99 %, {most} for all"


def test_a_step_of_several_micro_batches_tells_their_fill(seen):
    report, data = seen([GOOD] * 8, batch_size=4, token_budget=1000)
    tokens = report.steps[0][0]
    assert (
        preview_screen._step(report, data) == f"4 rows, {tokens} tokens: one micro-batch, as token_budget 1,000 allows"
    )
    report.steps = [(900, 2), (900, 4)]
    assert preview_screen._step(report, data) == (
        "4 rows, 900 tokens: 3.0 micro-batches, 30.0 % of token_budget 1,000; a larger token_budget or batch_size "
        "fills them better"
    )
    report.steps = [(2700, 3)]
    assert preview_screen._step(report, data) == "4 rows, 2,700 tokens: 3.0 micro-batches, 90.0 % of token_budget 1,000"


def test_training_goes_on_where_bad_rows_are_dropped_or_only_long(seen, printed):
    bad, long = {**GOOD, "chosen": ""}, {**GOOD, "prompt": "Q " * 50}
    for rows, options, stops in (
        ([GOOD, bad], {}, True),
        ([GOOD, bad], {"on_bad_row": "drop"}, False),
        ([GOOD, long], {"max_length": 20, "truncation": "drop"}, False),
    ):
        assert ("training would stop at" in printed(source_panel(*seen(rows, **options)))) == stops


def test_shares_of_an_epoch(seen, printed):
    (one, data), (other, _) = seen([GOOD] * 6), seen([GOOD] * 2)
    one.sample, other.sample = one.sample._replace(num_rows=3000), other.sample._replace(num_rows=1000)
    out = printed(epoch_table([one, other], data, "train"))
    assert [line.split()[1:] for line in out.splitlines()[1:3]] == [
        ["1", "3,000", "75.0", "%", "75.0", "%"],
        ["1", "1,000", "25.0", "%", "25.0", "%"],
    ]
    assert out.splitlines()[-1] == "an epoch: 250 steps of 16 rows"
    one.sample = one.sample._replace(num_rows=3111, is_exact=False)
    assert "an epoch: about 260 steps of 16 rows" in printed(epoch_table([one, other], data, "train"))
    one.sample = one.sample._replace(num_rows=None)
    assert printed(epoch_table([one, other], data, "train")).startswith("an epoch: nobody knows")


def test_weights_count_in_training_order_alone(seen, printed):
    report, data = seen([GOOD] * 32)
    report.source.weight = 2.0
    assert "an epoch: 4 steps" in printed(epoch_table([report], data, "train"))
    assert "an epoch: 2 steps" in printed(epoch_table([report], data, "validation"))
    data.shuffle_buffer = 0
    assert "an epoch: 2 steps" in printed(epoch_table([report], data, "train"))


def test_the_middle_of_a_long_part_is_left_out(seen, printed):
    report, data = seen([{**GOOD, "prompt": "begin " + "x " * 500 + "end"}])
    short, whole = (printed(example(report.shown[0], data, is_whole)) for is_whole in (False, True))
    number = report.lengths["prompt"][0]
    assert f"... {number - 300:,} tokens, which --row shows ..." in short
    assert "begin" in short
    assert "end" in short
    assert whole.count("x") - short.count("x") > 100
    assert "--row" not in whole


def test_what_a_terminal_would_obey_or_hide_is_escaped():
    assert printable("a\x1b[2J\rb\u202e\u200b\xa0\ud800") == "a\\x1b[2J\\rb\\u202e\\u200b\\xa0\\ud800"
    assert printable("two\nlines, «quoted», 中文, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645") == (
        "two\nlines, «quoted», 中文, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
