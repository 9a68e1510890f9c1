"""Cells become values; quotes may hold anything; what is broken is named."""

from __future__ import annotations

import pytest

from datamodules.readers.opening import open_file
from datamodules.records import BadRowError


@pytest.fixture
def read(tmp_path):
    def read(content, name="a.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [data for block in open_file(tmp_path / name, "a").blocks(0) for _, data in block.rows]

    return read


def test_cells(read):
    rows = read('a,b,c,d\n1,,"x\r\n,""y""","[{""role"": ""user""}]"\r\n\n[broken,{},"[1",\n z ')
    assert [row.decode() for row in rows] == [
        {"a": "1", "b": None, "c": 'x\r\n,"y"', "d": [{"role": "user"}]},
        {"a": "[broken", "b": {}, "c": "[1", "d": None},
        {"a": " z ", "b": None, "c": None, "d": None},
    ]


def test_delimiters(read):
    for content, name in (("a;b\n1,5;2", "a.csv"), ("a\tb\n1,5\t2", "a.tsv"), ('a,b\n"1,5",2', "a.csv")):
        assert [row.decode() for row in read(content, name)] == [{"a": "1,5", "b": "2"}]
    assert [row.decode() for row in read("a\n1;2")] == [{"a": "1;2"}]


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (b"1,2,3", "broken_csv", "the row has 3 cells, the header 2; quote cells with commas"),
        (b"1,\xff", "bad_encoding", "the row is not UTF-8"),
    ],
)
def test_bad_rows(read, row, reason, message):
    bad, good = read(b"a,b\n" + row + b"\n1,2\n")
    with pytest.raises(BadRowError, match=message) as caught:
        bad.decode()
    assert caught.value.reason == reason
    assert good.decode() == {"a": "1", "b": "2"}


def test_a_quote_in_the_wrong_place_costs_its_row_alone(read):
    one, first, two, last = read('a,b\n1,2\n"3"x,4\n5,"6\n""7"\n8,"9" ""\n')
    assert (one.decode(), two.decode()) == ({"a": "1", "b": "2"}, {"a": "5", "b": '6\n"7'})
    for broken in (first, last):
        with pytest.raises(BadRowError, match=r"the table is broken: .*; double the quotes inside a cell") as caught:
            broken.decode()
        assert caught.value.reason == "broken_csv"


def test_a_row_whose_end_nobody_knows_stops_the_table(read):
    with pytest.raises(ValueError, match=r"^a:2: before byte 25: the table is broken: ',' expected after '\"'"):
        read('a,b\n1,2\n"he said "hi" to\nme, and",4\n')


def test_broken_tables(read):
    with pytest.raises(ValueError, match=r"a\.csv: the header cannot be read: the table is broken"):
        read('a,"b"c\n1,2')
    with pytest.raises(ValueError, match=r"^a:2: before byte 16: the table is broken: .*; is a quote not closed\?"):
        read('a,b\n1,2\n3,"4\n5,6')
    with pytest.raises(ValueError, match=r"a\.csv: the header has the column 'a' twice; rename one"):
        read("a,b,a\n1,2,3")


def test_a_long_cell(read):
    assert len(read("a\n" + "x" * 300_000)[0].decode()["a"]) == 300_000
