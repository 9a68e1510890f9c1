"""LLaMA-Factory's ``dataset_info.json``: its entries as sources.

Where we depart from LLaMA-Factory:

1. ``formatting`` and ``ranking`` are checked but not needed: the form is decided row by row.
2. ``num_samples`` takes the first rows, not random ones.
3. A usual column that ``columns`` leaves out is read all the same, such as ``system``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.forms.messages import TAGS
from datamodules.forms.prompts import CONVERSATIONS
from datamodules.options import Source

# What LLaMA-Factory calls columns -> what the forms call them.
_SAME = ("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag")
_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
    **{name: name for name in _SAME},
}
_FORMATTINGS = ("alpaca", "sharegpt", "openai")
_ELSEWHERE = ("script_url", "cloud_file_name", "ms_hub_url", "om_hub_url")
_KNOWN = (
    *(
        "file_name",
        "hf_hub_url",
        "subset",
        "split",
        "folder",
        "num_samples",
        "formatting",
        "ranking",
        "columns",
        "tags",
    ),
    *_ELSEWHERE,
)


def read_dataset_info(path: str | Path, names: Sequence[str] = ()) -> list[Source]:
    """Read entries of a ``dataset_info.json`` as sources.

    Args:
        path: the file, or the folder that it lies in.
        names: the entries wanted; all of them unless given.

    Returns:
        One source for each entry, called by the name of the entry.

    Raises:
        ValueError: if the file is not such a file, has no entry of a name, or an entry asks for what is not supported.
    """
    file = Path(path)
    file = file / "dataset_info.json" if file.is_dir() else file
    entries = _read(file)
    for name in names:
        if name not in entries:
            near = difflib.get_close_matches(name, entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(entries) or 'none'}"
            raise ValueError(f"{file} has no data set {name!r}; {hint}")
    return [_source(file, name, entries[name]) for name in names or entries]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"no file {str(file)!r}; give LLaMA-Factory's dataset_info.json or its folder")
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{file} is not a mapping of names to data sets, each a mapping")
    return entries


def _source(file: Path, name: str, entry: dict[str, Any]) -> Source:
    where = f"{file}: data set {name!r}"
    _check_keys(where, entry)
    return Source(
        _place(where, file, entry),
        name=name,
        config=_text(where, entry, "subset"),
        split=_text(where, entry, "split"),
        columns=_columns(where, entry),
        tags=_names(where, entry, "tags", TAGS),
        limit=_count(where, entry, "num_samples"),
    )


def _check_keys(where: str, entry: Mapping[str, Any]) -> None:
    for key in entry:
        if key not in _KNOWN:
            raise ValueError(f"{where} has {key!r}; known keys are {', '.join(_KNOWN)}")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in _FORMATTINGS:
        raise ValueError(f"{where} has formatting {formatting!r}; it must be one of {', '.join(_FORMATTINGS)}")
    if not isinstance(entry.get("ranking", False), bool):
        raise ValueError(f"{where} has ranking {entry['ranking']!r}; it must be true or false")


def _place(where: str, file: Path, entry: Mapping[str, Any]) -> str:
    """The path or hub name of an entry. A hub of Hugging Face comes before others that hold the same data."""
    hub = _text(where, entry, "hf_hub_url")
    file_name = _text(where, entry, "file_name")
    if hub is None and file_name is None:
        asked = [key for key in _ELSEWHERE if key in entry]
        why = f"asks for {asked[0]!r}, which is not supported" if asked else "says no place"
        raise ValueError(f"{where} {why}; give 'file_name' or 'hf_hub_url'")
    if hub is not None and entry.get("folder") is not None:
        raise ValueError(f"{where} asks for 'folder', which is not supported; name a configuration by 'subset'")
    if hub is not None:
        return hub
    root = file.parent.resolve()
    found = (root / str(file_name)).resolve()
    if not found.is_relative_to(root):
        raise ValueError(f"{where} has file_name {file_name!r}, which lies outside of {str(file.parent)!r}")
    return str(file.parent / str(file_name))


def _columns(where: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """The columns that forms know by another name; the rest may be absent from any row, so they are not named."""
    given = _names(where, entry, "columns", _COLUMNS)
    if given == {"prompt": "text"}:
        return {}  # texts to go on training on, which LLaMA-Factory lists as prompts
    if given.get("messages") in CONVERSATIONS:
        del given["messages"]
    return {_COLUMNS[key]: own for key, own in given.items() if own != _COLUMNS[key]}


def _names(where: str, entry: Mapping[str, Any], key: str, known: Iterable[str]) -> dict[str, str]:
    """A mapping from known words to words of the data set; null leaves one out."""
    names = entry.get(key) or {}
    if not isinstance(names, dict):
        raise ValueError(f"{where} has {key} {names!r}; it must be a mapping")
    for word, own in names.items():
        if word not in known:
            raise ValueError(f"{where} has {key}.{word}; known are {', '.join(known)}")
        if own is not None and not isinstance(own, str):
            raise ValueError(f"{where} has {key}.{word} {own!r}; it must be text")
    return {word: own for word, own in names.items() if own is not None}


def _text(where: str, entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{where} has {key} {value!r}; it must be text")
    return value


def _count(where: str, entry: Mapping[str, Any], key: str) -> int | None:
    value = entry.get(key)
    if value is not None and (type(value) is not int or value <= 0):
        raise ValueError(f"{where} has {key} {value!r}; it must be a number above 0")
    return value
