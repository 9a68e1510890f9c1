"""Columns of images of the ``datasets`` library, left as files for whoever looks at them.

The library decodes them as soon as a row is asked for: also for a model of text alone, and a broken one ends the run
without saying where. So rows are asked for as they are stored, ``{"bytes": ..., "path": ...}``; of images that are
stored by a path alone the library reads the file, when the row is decoded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from datamodules.readers.blocks import Undecoded
from datamodules.records import BadRowError


class ImageRow(Undecoded):
    """A row with columns of images.

    Args:
        row: as it is stored.
        features: of its columns, by name.
    """

    __slots__ = ("features", "row")

    def __init__(self, row: dict[str, Any], features: Any) -> None:
        self.row = row
        self.features = features

    def decode(self) -> object:
        """Return the row with what its images hold.

        Raises:
            BadRowError: if the file of one cannot be read.
        """
        return _with_content(self.row, self.features)


class StoredRows(Sequence[Any]):
    """Rows of a data set as they are stored.

    Args:
        rows: a ``datasets.Dataset``.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows.with_format("arrow")

    def __len__(self) -> int:
        """Rows."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """The row of a number, not decoded."""
        (row,) = self.rows[index : index + 1].to_pylist()
        return ImageRow(row, self.rows.features)


def has_image_columns(rows: Any) -> bool:
    """Whether rows are a data set of the library that has columns of images."""
    library = sys.modules.get("datasets")
    if library is None or not isinstance(rows, library.Dataset | library.IterableDataset):
        return False
    return rows.features is not None and _holds_image(rows.features)


def _holds_image(feature: Any) -> bool:
    return _is_image(feature) or any(map(_holds_image, _parts(feature)))


def _is_image(feature: Any) -> bool:
    return isinstance(feature, sys.modules["datasets"].Image)


def _parts(feature: Any) -> list[Any]:
    """The features inside of one."""
    if isinstance(feature, dict):
        return list(feature.values())
    if isinstance(feature, list):
        return feature
    return [feature.feature] if "feature" in vars(feature) else []  # lists, of a length or of any


def _with_content(value: Any, feature: Any) -> Any:
    """A value as it is stored, with the content of files in the place of their paths."""
    if value is None or not _holds_image(feature):
        return value
    if _is_image(feature):
        return value if not isinstance(value, dict) or value["bytes"] is not None else _read(value)
    if isinstance(feature, dict):
        return {name: _with_content(part, feature[name]) for name, part in value.items()}
    (inside,) = _parts(feature)
    if isinstance(inside, dict) and isinstance(value, dict):  # older versions turn lists of mappings inside out
        return {name: [_with_content(part, inside[name]) for part in parts] for name, parts in value.items()}
    return [_with_content(part, inside) for part in value]


def _read(value: dict[str, Any]) -> Any:
    """Let the library read a file, which may lie in an archive or on the hub."""
    try:
        return sys.modules["datasets"].Image().decode_example(value)
    except Exception as error:  # of the file system, the network or the decoder
        message = f"the picture {value['path']!r} cannot be read: {type(error).__name__}: {error}"
        raise BadRowError("broken_image", message) from None
