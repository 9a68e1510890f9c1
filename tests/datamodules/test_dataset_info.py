"""LLaMA-Factory's list of data sets, read as it is."""

from __future__ import annotations

import json

import pytest

from datamodules.dataset_info import read_dataset_info
from datamodules.forms import read_row
from datamodules.options import Source
from datamodules.records import Layout

CHATML = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@pytest.fixture
def write(tmp_path):
    def write(**entries):
        file = tmp_path / "dataset_info.json"
        file.write_text(json.dumps(entries))
        return file

    return write


def test_entries_become_sources(write):
    file = write(
        plain={"file_name": "alpaca.json"},
        pairs={
            "file_name": "sub/pairs.jsonl",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "dialogue", "chosen": "good", "rejected": "bad", "system": None},
            "tags": CHATML,
            "num_samples": 50,
        },
        hub={
            "hf_hub_url": "owner/name",
            "ms_hub_url": "Other/name",
            "subset": "en",
            "split": "test",
            "columns": {"prompt": "question", "response": "output", "kto_tag": "label"},
        },
    )
    columns = {"conversations": "dialogue", "chosen": "good", "rejected": "bad"}
    expected = [
        Source(str(file.parent / "alpaca.json"), name="plain"),
        Source(str(file.parent / "sub/pairs.jsonl"), name="pairs", columns=columns, tags=CHATML, limit=50),
        Source(
            "owner/name", name="hub", config="en", split="test", columns={"instruction": "question", "kto_tag": "label"}
        ),
    ]
    assert read_dataset_info(file) == read_dataset_info(file.parent) == expected
    assert read_dataset_info(file, ["hub", "plain"]) == [expected[2], expected[0]]


ROWS = [
    ({"messages": "messages"}, {"messages": [{"role": "user", "content": "x"}]}, "OpenAI conversation"),
    ({"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}, None, "Alpaca ranking"),
    ({"prompt": "q", "response": "a"}, {"q": "x", "a": "y"}, "Alpaca instruction"),
    ({"prompt": "text"}, {"text": "x"}, "text"),
    (
        {"messages": "talk", "images": "pics"},
        {"talk": [{"from": "human", "value": "x"}], "pics": []},
        "ShareGPT conversation",
    ),
]


@pytest.mark.parametrize(("columns", "row", "form"), ROWS)
def test_rows_of_an_entry_are_read(write, columns, row, form):
    (source,) = read_dataset_info(write(one={"file_name": "x.json", "columns": columns}))
    row = row or {"instruction": "x", "chosen": "a", "rejected": "b"}
    assert read_row(row, Layout(source.columns, source.tags))[0].form == form


BAD = [
    ({"script_url": "x.py"}, "data set 'one' asks for 'script_url', which is not supported; give 'file_name'"),
    ({"ms_hub_url": "x/y"}, "asks for 'ms_hub_url', which is not supported"),
    ({"om_hub_url": "x/y"}, "asks for 'om_hub_url', which is not supported"),
    ({"cloud_file_name": "s3://x"}, "asks for 'cloud_file_name', which is not supported"),
    ({}, "says no place; give 'file_name' or 'hf_hub_url'"),
    ({"hf_hub_url": "x/y", "folder": "en"}, "asks for 'folder', which is not supported"),
    ({"file_name": "../x.json"}, "file_name '../x.json', which lies outside of"),
    ({"file_name": "/etc/passwd"}, "which lies outside of"),
    ({"file_name": 3}, "has file_name 3; it must be text"),
    ({"file_name": "x", "num_samples": 0}, "has num_samples 0; it must be a number above 0"),
    ({"file_name": "x", "num_samples": -1}, "has num_samples -1; it must be a number above 0"),
    ({"file_name": "x", "num_samples": True}, "has num_samples True"),
    (
        {"file_name": "x", "formatting": "shargpt"},
        "has formatting 'shargpt'; it must be one of alpaca, sharegpt, openai",
    ),
    ({"file_name": "x", "ranking": "yes"}, "has ranking 'yes'; it must be true or false"),
    ({"file_name": "x", "column": {}}, "has 'column'; known keys are file_name"),
    ({"file_name": "x", "columns": {"promt": "q"}}, "has columns.promt; known are prompt, query"),
    ({"file_name": "x", "columns": {"prompt": 3}}, "has columns.prompt 3; it must be text"),
    ({"file_name": "x", "columns": ["prompt"]}, "has columns ['prompt']; it must be a mapping"),
    ({"file_name": "x", "tags": {"user": "ME"}}, "has tags.user; known are role_tag"),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_bad_entry(write, entry, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_dataset_info(write(one=entry))
    assert message in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(write, tmp_path):
    (tmp_path / "out.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="lies outside of"):
        read_dataset_info(write(one={"file_name": "out.json"}))


def test_unknown_names_and_broken_files(write, tmp_path):
    file = write(alpaca_en={"file_name": "x.json"}, other={"file_name": "y.json"})
    with pytest.raises(ValueError, match="no data set 'alpaca_e'; did you mean 'alpaca_en'"):
        read_dataset_info(file, ["alpaca_e"])
    with pytest.raises(ValueError, match="no data set 'zzz'; it has alpaca_en, other"):
        read_dataset_info(file, ["zzz"])
    with pytest.raises(ValueError, match=r"no file .*; give LLaMA-Factory's dataset_info"):
        read_dataset_info(tmp_path / "none.json")
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "is not a mapping"),
        ('{"a": 1}', "is not a mapping"),
        ("[" * 99999, "is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_dataset_info(file)
