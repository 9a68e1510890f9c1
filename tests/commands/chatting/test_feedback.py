"""Feedback is what training reads, and is in the file whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from datamodules import PreferenceDataModule
from datamodules.forms import read_row
from lit_rlhf.commands.chatting.feedback import append_row, pair_row, thumb_row

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two words,\nplease? \u6f22"}]
VOICES = ("dpo", "sft")


@pytest.mark.parametrize("prompt", [TALK, "1 + 1 ="], ids=["messages", "text"])
def test_rows_say_what_was_said(prompt):
    (record,) = read_row(thumb_row(prompt, "no", is_good=False, voice="sft"))
    assert (record.prompt, record.responses[0].label) == (prompt, False)
    (record,) = read_row(pair_row(prompt, "yes", "no", voices=VOICES))
    better, worse = (
        response.text if isinstance(prompt, str) else response.text[0]["content"] for response in record.responses
    )
    assert (record.prompt, better, worse) == (prompt, "yes", "no")
    assert [response.rank for response in record.responses] == [0, 1]


@pytest.mark.parametrize("prompt", [TALK, "1 + 1 ="], ids=["messages", "text"])
def test_the_data_module_of_training_reads_the_file(prompt, tmp_path, tiny_tokenizer):
    file = tmp_path / "new" / "mine.jsonl"
    append_row(file, thumb_row(prompt, "kind", is_good=True, voice="dpo"))
    append_row(file, pair_row(prompt, "yes", "no", voices=VOICES))
    append_row(file, thumb_row(prompt, "rude", is_good=False, voice="sft"))

    def batch(kind, **options):
        data = PreferenceDataModule(str(file), tokenizer=tiny_tokenizer, kind=kind, batch_size=3, **options)
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    thumbs = batch("unpaired").micro_batches
    assert sorted(label for part in thumbs for label in part.labels.tolist()) == [False, False, True, True]
    (pairs,) = batch("pairs", on_bad_row="drop").micro_batches
    assert len(pairs.rows) == 1
    with pytest.raises(ValueError, match=r"mine\.jsonl:1"):
        batch("pairs")


def test_a_last_line_without_an_end_gets_one(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"a": 1}')
    append_row(file, {"b": "two\nlines"})
    append_row(file, {"c": 3})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"a": 1}, {"b": "two\nlines"}, {"c": 3}]


def test_many_writers_mix_no_lines(tmp_path):
    file = tmp_path / "mine.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_row(file, {"n": number, "x": "x" * 5000}), range(40)))
    assert sorted(json.loads(line)["n"] for line in file.read_text().splitlines()) == list(range(40))


def test_a_full_disk_leaves_no_half_line(tmp_path):
    resource = pytest.importorskip("resource")
    file = tmp_path / "mine.jsonl"
    append_row(file, {"a": 1})
    before = file.read_bytes()
    child = os.fork()
    if child == 0:  # the limit holds for the whole process
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 7, len(before) + 7))
        try:
            append_row(file, {"b": "far too long to fit"})
        except OSError:
            os._exit(errno.ENOSPC)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.ENOSPC
    assert file.read_bytes() == before
