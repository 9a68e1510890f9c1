"""Responses in a report."""

from __future__ import annotations

import json
from html import unescape

import pytest

from lit_rlhf.reports.answers import before_and_after, best_and_worst, by_prompt, marks, readable
from lit_rlhf.reports.left import read_run


def test_the_same_prompts_before_and_after(finished):
    shown = before_and_after(read_run(finished()))
    assert shown.count("<article") == 6
    first = shown.split("<article")[1]
    assert first.index("before (iteration 0)") < first.index("Answer 0 at 0.") < first.index("after (iteration 3)")
    assert "Answer 0 at 3." in first
    assert first.count("cut off") == 2
    assert "cut off" not in shown.split("<article")[2]
    assert "score 4" in shown.split("<article")[2]


def test_one_moment_alone(finished):
    only = [row for row in read_run(finished()).samples if row["step"] == 3]
    shown = before_and_after(read_run(finished("one", responses=only)))
    assert shown.count('class="answer"') == 6
    assert before_and_after(read_run(finished("none", responses=[]))) is None


def test_the_best_and_the_worst_by_score(finished):
    run = read_run(finished())
    shown = best_and_worst(run)
    found = [text.partition(" at 3.")[0] for text in shown.split("Answer ")[1:]]
    assert found == ["6", "5", "4", "0", "1", "2"]
    run.samples = run.samples[-5:]
    assert best_and_worst(run) is None
    run.samples = [{"step": 1, "prompt": "a", "response": "b"}] * 9
    assert best_and_worst(run) is None


def test_long_texts_are_cut_and_empty_ones_said(finished):
    rows = [{"step": 0, "prompt": "a", "response": "x" * 1500}, {"step": 0, "prompt": "b", "response": " "}]
    shown = before_and_after(read_run(finished(responses=rows)))
    assert "x" * 1200 in shown
    assert "x" * 1201 not in shown
    assert "and 300 more letters" in shown
    assert "(empty)" in shown


def test_prompts_are_shown_without_special_tokens(finished):
    rows = [{"step": 0, "prompt": "<s><|user|>Hi <b><|assistant|>", "response": "x"}]
    folder = finished(responses=rows)
    assert list(by_prompt(read_run(folder), rows)) == [rows[0]["prompt"]]
    tokens = [("<s>", True), ("<|user|>", True), ("<|assistant|>", True), ("<b>", False)]
    added = [{"content": text, "special": special} for text, special in tokens]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert list(by_prompt(read_run(folder), rows)) == ["Hi <b>"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"added_tokens": [1]}', '{"added_tokens": [{"special": true}]}'])
def test_a_tokenizer_that_cannot_be_read_has_no_marks(text, tmp_path):
    assert marks(tmp_path) == []
    (tmp_path / "tokenizer.json").write_text(text)
    assert marks(tmp_path) == []


def test_a_longer_mark_goes_before_one_inside_it():
    assert readable("a<|end|>b<|e", ["<|end|>", "<|e"]) == "a\nb"


def test_what_is_no_text_is_shown_as_what_it_is(finished):
    rows = [{"step": 0, "prompt": ["a"], "response": None, "score": "high", "finished": 1}]
    assert "['a']" in unescape(before_and_after(read_run(finished(responses=rows))))
