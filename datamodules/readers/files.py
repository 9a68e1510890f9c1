"""Bytes of a file, from any offset on, whether compressed or not."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from datamodules.readers.blocks import BLOCK_BYTES, Place, Reader

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMPRESSED_SAMPLE = 1 << 16  # compressed bytes that tell how far a file unpacks
_SAMPLE = 1 << 12  # bytes at each end that tell whether a file is the same


class FileReader(Reader):
    """Rows of one file.

    Args:
        file: its path.
        name: what addresses begin with.
        num_units: pieces that can be opened by themselves.
    """

    def __init__(self, file: Path, name: str, num_units: int = 1) -> None:
        super().__init__(name, num_units, str(file.parent))
        self.file = file
        self.num_bytes = file.stat().st_size

    @property
    def fingerprint(self) -> list[Any]:
        """Name, bytes, and a checksum of both ends."""
        with self.file.open("rb") as stream:
            ends = stream.read(_SAMPLE)
            stream.seek(max(0, self.num_bytes - _SAMPLE))
            return [self.file.name, self.num_bytes, zlib.crc32(ends + stream.read(_SAMPLE))]

    def check_unchanged(self) -> None:
        """Refuse a file that another process writes to.

        Raises:
            ValueError: if it has not the size that it was opened with.
        """
        if (num_bytes := self.file.stat().st_size) != self.num_bytes:
            raise ValueError(f"{self.file} changed while it was read: it had {self.num_bytes} bytes, now {num_bytes}")


class SequentialReader(FileReader):
    """Rows of a text file that can only be read from front to back: one unit, whose places begin with an offset."""

    def size(self, unit: int, place: Place = None) -> float:
        """Blocks that are left."""
        return max(0.0, self.num_content_bytes - (place[0] if place else 0)) / BLOCK_BYTES

    @cached_property
    def num_content_bytes(self) -> float:
        """Bytes of the content: of a compressed file, as the compression of its beginning tells."""
        if self.file.suffix != ".gz":
            return self.num_bytes
        with self.file.open("rb") as stream:
            compressed = stream.read(_COMPRESSED_SAMPLE)
        unpacking = zlib.decompressobj(wbits=31)
        try:
            content = unpacking.decompress(compressed)
        except zlib.error:  # told when it is read, with the place
            return self.num_bytes
        taken = len(compressed) - len(unpacking.unused_data)
        return self.num_bytes * len(content) / max(taken, 1)


@contextmanager
def open_at(file: Path, offset: int = 0) -> Iterator[BinaryIO]:
    """Open a file at an offset of its content. A compressed file is unpacked up to there.

    Raises:
        ValueError: if the file is compressed and broken, whenever that shows.
    """
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as opened:
        stream = cast(BinaryIO, opened)
        try:
            stream.seek(offset)
            yield stream
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{file}: the compressed file is broken after byte {stream.tell()} of its content: {error}"
            ) from None


def opening_of(file: Path, num_bytes: int) -> bytes:
    """The first bytes of a text file's content.

    Raises:
        ValueError: if they say that it is no UTF-8.
    """
    with open_at(file) as stream:
        opening = stream.read(num_bytes)
    if opening.startswith(_UTF_16):
        raise ValueError(f"{file} begins with the mark of UTF-16; save the file as UTF-8")
    return opening
