"""Values that are no lines: what is taken for an array, values across chunks, and what is broken by its number."""

from __future__ import annotations

import json

import pytest

from datamodules.readers import arrays
from datamodules.readers.arrays import Values, find_values
from datamodules.readers.blocks import Broken
from datamodules.readers.opening import open_file
from datamodules.records import BadRowError


@pytest.mark.parametrize(
    ("opening", "is_lines", "found"),
    [
        (b"", False, None),
        (b" \n", False, None),
        (b'{"a": 1}\n{"a": 2}', False, None),
        (b'{"a": 1}', False, None),
        (b'[{"a": 1}]', True, (1, True)),
        (b'\xef\xbb\xbf [\n{"a": 1}', True, (5, True)),
        (b"[1]\n[2]", True, None),
        (b"[[1, 2],\n[3]]", False, (1, True)),
        (b'{"data": [{"a": 1}]}', True, None),
        (b'{"data": [{"a": 1}]}', False, (10, True)),
        (b'{\n "version" : "\xc3\xa9",\n "x": {"data": []}, "rows" : [', False, (51, True)),
        (b'{\n "messages": [\n', False, (0, False)),
        (b'{"a": \n{"a": 1}', False, None),
        (b'{"a": ', False, None),
        (b'{"data": {"a": [1]}}', False, None),
        (b'{"a" 1,\n "b": 2}', False, (0, False)),
    ],
)
def test_find_values(opening, is_lines, found):
    assert find_values(opening, is_lines) == found


def rows_of(path):
    return [(address, row) for block in open_file(path, path.name).blocks(0) for address, row in block.rows]


@pytest.mark.parametrize("chunk", [1, 2, 7, 50])
def test_values_across_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", chunk)
    rows = [123456, '\u4f60\U0001f600 \\ " ]', True, None, -1.5e300, {"a": ["]", {}]}, [], "x" * 300]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}, indent=3), encoding="utf-8")
    for name in ("a.json", "b.json"):
        assert [row for _, row in rows_of(tmp_path / name)] == rows


@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}, {"a": ',
        '[{"a": 1}, {"a": ]]',
        '[{"a": 1}',
        '[{"a": 1}, "b',
        '[{"a": 1}, {"a": "1" 2"}, {"a": 3}]',
        '[{"a": 1}, {"a": "1"2}]',
        '[{"a": 1}, {"a\n, {"a": "{\\"b\\": 2}"}]',  # quotes that are off by one must not swallow the next row
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_broken_array_is_refused(tmp_path, monkeypatch, content, chunk):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", chunk)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json:2: the JSON array breaks off or is not JSON"):
        rows_of(tmp_path / "a.json")


def test_a_broken_array_is_refused_before_it_is_read_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('[{"a": 1} {"a" "b"]' + ', {"a": 1}' * 100_000 + "]")
    reader, read = open_file(tmp_path / "a.json", "a"), []
    monkeypatch.setattr(arrays, "open_at", lambda *args: Spy(args[0], read))
    with pytest.raises(ValueError, match=r"^a:2: "):
        list(reader.blocks(0))
    assert sum(read) < 300_000


def test_a_huge_value_is_tried_a_few_times_only(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps(["x" * 8_000_000, "y"]))
    reader, read = open_file(tmp_path / "a.json", "a"), []
    monkeypatch.setattr(arrays, "open_at", lambda *args: Spy(args[0], read))
    assert [len(block.rows) for block in reader.blocks(0)] == [1, 1]
    assert len(read) < 15


class Spy:
    """A stream that notes how much is read of it."""

    def __init__(self, file, read):
        self.stream, self.noted = file.open("rb"), read

    def __enter__(self):
        self.stream.seek(1)
        return self

    def __exit__(self, *error):
        self.stream.close()

    def read(self, size):
        self.noted.append(size)
        return self.stream.read(size)


def test_what_python_cannot_hold_is_refused_by_number(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + "[" * 100_000 + "]")
    with pytest.raises(
        ValueError, match=r"a\.json:2: the JSON array breaks off or is not JSON: maximum recursion depth"
    ):
        rows_of(tmp_path / "a.json")


@pytest.mark.parametrize(
    "bad",
    [
        '{"a": }',
        '{"a": 1 2}',
        '{"a": "\t]"}',
        '{"a": "\\"}\\q"}',
        "nonsense",
        '"\x00"',
        "1" * 5000,
        '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}",
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_a_broken_row_whose_end_can_be_told_is_a_bad_row(tmp_path, monkeypatch, bad, chunk):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", chunk)
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + bad + ', {"a": [2]} , ' + bad + "\n]")
    one, first, two, last = (row for _, row in rows_of(tmp_path / "a.json"))
    assert (one, two) == ({"a": 1}, {"a": [2]})
    for broken in (first, last):
        with pytest.raises(BadRowError, match="the row is not JSON: ") as caught:
            broken.decode()
        assert caught.value.reason == "broken_json"


def test_rows_behind_the_array_are_not_passed_over(tmp_path):
    for more in ('[{"a": 2}]', ' {"a": 2}', ', {"a": 2}', "]"):
        (tmp_path / "a.json").write_text('[{"a": 1}]' + more)
        with pytest.raises(ValueError, match=r"a\.json: the array of rows ends after row 1, but more follows: "):
            rows_of(tmp_path / "a.json")
    for more in ("\n \n", "}", ' , "end": [1]}'):
        (tmp_path / "a.json").write_text('{"data": [{"a": 1}]' + more)
        assert len(rows_of(tmp_path / "a.json")) == 1


def test_a_row_that_is_not_utf_8_is_a_bad_row(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}, {"a": "\xc3\xa9"}]')
    (_, first), second = rows_of(tmp_path / "a.json")
    assert second == ("a.json:2", {"a": "\u00e9"})
    assert isinstance(first, Broken)
    with pytest.raises(BadRowError, match="the row is not UTF-8") as caught:
        first.decode()
    assert caught.value.reason == "bad_encoding"


def test_values_end_with_the_file_only_where_nothing_closes_them(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n"a": 1\n}\n{\n"a": 2\n}\n')
    assert [row for block in Values(path, "a", 0, is_array=False).blocks(0) for _, row in block.rows] == [
        {"a": 1},
        {"a": 2},
    ]
    with pytest.raises(ValueError, match=r"a:3: the JSON array breaks off"):
        list(Values(path, "a", 0, is_array=True).blocks(0))
