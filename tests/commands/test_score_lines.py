"""Scores as JSON lines: what stands in them, that they are whole, and what is said at the end."""

from __future__ import annotations

import json

import pytest

from datamodules.sources import Row
from lit_rlhf.commands.score_lines import quick, write

PAIR = {"prompt": "a", "chosen": " yes!", "rejected": " no"}
SINGLE = {"prompt": "a", "response": " fine"}
LONG = {"prompt": "long", "response": "x"}
EMPTY = {"prompt": "a", "response": ""}


def rows(*contents):
    return (Row(f"rows:{number}", "rows", content) for number, content in enumerate(contents, start=1))


def written(scorer, contents, tmp_path, *, drop=False, normalise=False):
    out = tmp_path / "scores.jsonl"
    try:
        write(scorer, rows(*contents), out, drop=drop, normalise=normalise)
    finally:
        text = out.read_text()
        assert text.endswith("\n") or not text
        lines = [json.loads(line) for line in text.splitlines()]
        out.unlink()
    return lines


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (SINGLE, {"score": 5.0}),
        (PAIR, {"chosen": 5.0, "rejected": 3.0}),
        (LONG, {"score": 1.0, "truncated": ["prompt"]}),
        (
            {"prompt": "a", "response_0": "no", "response_1": "yes", "better_response_id": 1},
            {"chosen": 3.0, "rejected": 2.0},
        ),
        (
            {"prompt": "a", "completions": ["b", "cc", "ddd"], "scores": [3, 2, 1]},
            {"scores": [1.0, 2.0, 3.0], "ranks": [0, 1, 2]},
        ),
        ({"prompt": "a", "completions": ["b", "cc"], "scores": [1, 1]}, {"scores": [1.0, 2.0], "ranks": [0, 0]}),
    ],
)
def test_a_line_names_what_it_holds(length_scorer, tmp_path, content, line):
    assert written(length_scorer, [content], tmp_path) == [{"row": "rows:1", **line}]


def test_normalised(length_scorer, tmp_path):
    assert written(length_scorer, [PAIR], tmp_path, normalise=True) == [
        {"row": "rows:1", "chosen": 0.5, "rejected": 0.3}
    ]


def test_several_objectives_stand_beside_the_score(length_scorer, tmp_path):
    def two(rows):
        return [one._replace(objectives={"good": [2.0, 1.0], "short": [3.0, 4.0]}) for one in length_scorer(rows)]

    two.normalise = length_scorer.normalise
    (line,) = written(two, [PAIR], tmp_path)
    assert line["objectives"] == {
        "good": {"chosen": 2.0, "rejected": 1.0},
        "short": {"chosen": 3.0, "rejected": 4.0},
    }


def test_a_bad_row_stops_with_its_address_and_what_was_before_it_is_there(length_scorer, tmp_path):
    out = tmp_path / "scores.jsonl"
    with pytest.raises(ValueError, match=r"rows:2: .*empty response.*--on_bad_row drop"):
        write(length_scorer, rows(SINGLE, EMPTY, SINGLE), out, drop=False, normalise=False)
    assert out.read_text() == '{"row": "rows:1", "score": 5.0}\n'


def test_a_dropped_row_keeps_its_line_and_is_counted(length_scorer, tmp_path, capsys):
    lines = written(length_scorer, [EMPTY, PAIR, EMPTY], tmp_path, drop=True)
    assert [line.get("dropped") for line in lines] == ["empty_response", None, "empty_response"]
    assert "3 rows, 2 responses; mean 4, std 1; dropped empty_response 2; " in capsys.readouterr().err


def test_a_row_without_a_number_stops_whatever_is_dropped(length_scorer, tmp_path):
    with pytest.raises(ValueError, match="rows:2: the model gives it the score nan"):
        written(length_scorer, [SINGLE, {"prompt": "a", "response": "nan"}], tmp_path, drop=True)


def test_rows_are_read_as_they_are_scored(length_scorer, tmp_path):
    """Never more than one batch of rows is held, and its lines are there before the next is read."""
    out = tmp_path / "scores.jsonl"
    seen = []

    def stream():
        for row in rows(*[SINGLE] * 200):
            seen.append(out.read_text().count("\n"))
            yield row

    write(length_scorer, stream(), out, drop=False, normalise=False)
    assert length_scorer.calls == [64, 64, 64, 8]
    assert seen == [0] * 64 + [64] * 64 + [128] * 64 + [192] * 8


def test_an_interrupt_leaves_whole_lines_and_says_how_far_it_came(length_scorer, tmp_path, capsys):
    def stream():
        yield from rows(*[SINGLE] * 100)
        raise KeyboardInterrupt

    out = tmp_path / "scores.jsonl"
    with pytest.raises(SystemExit) as end:
        write(length_scorer, stream(), out, drop=False, normalise=False)
    assert end.value.code == 130
    assert out.read_text().count("\n") == 64
    assert capsys.readouterr().err.startswith("64 rows, 64 responses; mean 5, std 0; ")


def test_lines_on_the_screen_and_a_summary_beside_them(length_scorer, capsys):
    write(length_scorer, rows(SINGLE, LONG), None, drop=False, normalise=False)
    said = capsys.readouterr()
    assert [json.loads(line)["score"] for line in said.out.splitlines()] == [5.0, 1.0]
    assert said.err.startswith("2 rows, 2 responses; mean 3, std 2; truncated prompt 1; ")


def test_an_output_that_exists_is_never_written(length_scorer, tmp_path):
    out = tmp_path / "mine"
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        write(length_scorer, rows(SINGLE), out, drop=False, normalise=False)
    assert out.read_text() == "mine"


def test_no_rows_are_no_error(length_scorer, tmp_path, capsys):
    assert written(length_scorer, [], tmp_path) == []
    assert capsys.readouterr().err.startswith("0 rows, 0 responses; ")


def test_one_quick_score(length_scorer):
    assert quick(length_scorer, "a", " fine", normalise=False) == {"score": 5.0}
    with pytest.raises(ValueError, match=r"--prompt and --response: .*empty"):
        quick(length_scorer, "a", "", normalise=False)
