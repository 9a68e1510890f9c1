"""A row belongs to the range that it begins in, whatever lies on the border; counting agrees with reading."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.readers import lines
from datamodules.readers.lines import CompressedLines, Lines


def rows_of(reader):
    return [row for unit in range(reader.num_units) for block in reader.blocks(unit) for row in block.rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(
        st.sampled_from([b"{}", b"{", b"\n", b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b'{"a": 1}', b"x" * 9])
    ),
    block_bytes=st.integers(1, 20),
)
def test_any_content(tmp_path, monkeypatch, content, block_bytes):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    text = b"".join(content)
    (tmp_path / "a.jsonl").write_bytes(text)
    reader = Lines(tmp_path / "a.jsonl", "a")
    whole = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = [(f"a:{number}", line.strip()) for number, line in enumerate(whole, start=1) if line.strip()]
    assert rows_of(reader) == expected
    counts = [sum(reader.counts(unit)) for unit in range(reader.num_units)]
    assert counts == [sum(len(block.rows) for block in reader.blocks(unit)) for unit in range(reader.num_units)]
    assert all(reader.find(address) == row for address, row in expected)


def test_lines_of_a_huge_file_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_MAX_NUMBERED", 30)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 16)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 22}\n{"a": 3}\n{"a": 4}')
    reader = Lines(tmp_path / "a.jsonl", "a")
    assert rows_of(reader) == [
        ("a@0", b'{"a": 1}'),
        ("a@10", b'{"a": 22}'),
        ("a@20", b'{"a": 3}'),
        ("a@29", b'{"a": 4}'),
    ]
    assert "_counted" not in vars(reader)
    assert reader.find("a@20") == b'{"a": 3}'
    with pytest.raises(ValueError, match="there is no row 'a@21'"):
        reader.find("a@21")


def test_a_row_longer_than_many_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    rows = [{"a": "x" * 5000}, {"a": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [json.loads(row) for _, row in rows_of(Lines(tmp_path / "a.jsonl", "a"))] == rows


def test_compressed_lines_go_on_after_blank_ones(write_rows):
    path = write_rows("packed.jsonl.gz", [1, 2])
    reader = CompressedLines(path, "a")
    assert [block.rows for block in reader.blocks(0, [2, 1])] == [[("a:2", b"2")]]
