"""Content is read from any offset; a broken or changed file is named, with the place."""

from __future__ import annotations

import gzip
import random

import pytest

from datamodules.readers.files import open_at, opening_of
from datamodules.readers.lines import CompressedLines

CONTENT = "".join(f'{{"number": {number}}}\n' for number in range(5000)).encode()


@pytest.fixture(params=["a.jsonl", "a.jsonl.gz"])
def file(request, tmp_path):
    path = tmp_path / request.param
    path.write_bytes(gzip.compress(CONTENT) if path.suffix == ".gz" else CONTENT)
    return path


@pytest.mark.parametrize("offset", [0, 1, 40_000, len(CONTENT), len(CONTENT) + 5])
def test_open_at(file, offset):
    with open_at(file, offset) as stream:
        assert stream.read() == CONTENT[offset:]
    assert opening_of(file, 7) == CONTENT[:7]


def test_utf_16_is_refused(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "a.csv").write_bytes(("\ufeff" + "a,b\n").encode(encoding))
        with pytest.raises(ValueError, match=r"a\.csv begins with the mark of UTF-16; save the file as UTF-8"):
            opening_of(tmp_path / "a.csv", 9)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (gzip.compress(CONTENT)[:-20], "after byte [1-9][0-9]+ of its content: Compressed file ended"),
        (gzip.compress(CONTENT)[:-8] + b"12345678", "CRC check failed"),
        (gzip.compress(CONTENT)[:2000] + b"\xff" * 50 + gzip.compress(CONTENT)[2050:], "Error -3 while decompressing"),
        (b"not gzip", "after byte 0 of its content: Not a gzipped file"),
    ],
)
def test_a_broken_gzip_is_refused(tmp_path, broken, message):
    (tmp_path / "a.jsonl.gz").write_bytes(broken)
    with pytest.raises(ValueError, match=rf"a\.jsonl\.gz: the compressed file is broken.*{message}"):
        list(CompressedLines(tmp_path / "a.jsonl.gz", "a").blocks(0))


def test_the_content_of_a_compressed_file_is_estimated(tmp_path):
    rng = random.Random(0)
    content = b"".join(b'{"n": %d}\n' % rng.randrange(10**6) for _ in range(60_000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert CompressedLines(path, "a").num_content_bytes == pytest.approx(len(content), rel=0.1)
    path.write_bytes(gzip.compress(b"x" * 9))
    assert CompressedLines(path, "a").num_content_bytes == pytest.approx(9, abs=1)
    path.write_bytes(b"no")
    assert CompressedLines(path, "a").num_content_bytes == 2


def test_fingerprint_sees_both_ends(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    prints = []
    for content in (b"a" + b"." * 9000 + b"b", b"c" + b"." * 9000 + b"b", b"a" + b"." * 9000 + b"d", b"a"):
        path.write_bytes(content)
        prints.append(tuple(CompressedLines(path, "a").fingerprint))
    assert len(set(prints)) == 4
    assert prints[0][:2] == ("a.jsonl.gz", 9002)
