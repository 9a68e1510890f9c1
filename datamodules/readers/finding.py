"""Which files a path names."""

from __future__ import annotations

import difflib
import glob
import json
import re
import warnings
from pathlib import Path

from datamodules.readers.opening import SUFFIXES

# Files that describe data, beside the data.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")

# Names by which `datasets` knows loaders of its own, which would read the working folder.
_LOADERS = (
    "arrow",
    "audiofolder",
    "csv",
    "imagefolder",
    "json",
    "pandas",
    "parquet",
    "text",
    "videofolder",
    "webdataset",
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def find_files(path: str, split: str = "train") -> tuple[Path, ...]:
    """Files that ``path`` names, sorted; none if it is the name of a hub data set.

    Args:
        path: a file, a folder, a glob, or the name of a hub data set.
        split: part of a folder whose files are of several: one that ``DatasetDict.save_to_disk`` wrote, or one in which
            names say so, such as ``train-00000.parquet`` beside ``test.jsonl``. What is left out is warned of.

    Raises:
        ValueError: if there is no such file, the folder holds no data, or the type is unknown.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = _in_folder(place, split)
    elif place.exists():
        files = [place]
    elif glob.has_magic(path):
        files = sorted(file for file in map(Path, glob.glob(str(place), recursive=True)) if not file.is_dir())
    elif _is_hub_name(place, path):
        return ()
    else:
        raise ValueError(f"no file {path!r}; {_hint(place)}")
    if not files:
        raise ValueError(f"{path!r} holds no data file; known types are {', '.join(SUFFIXES)}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{str(file)!r} is no regular file, or a link that leads nowhere")
        if not file.name.endswith(SUFFIXES):
            raise ValueError(f"{str(file)!r} is of an unknown type; known types are {', '.join(SUFFIXES)}")
    return tuple(files)


def shown(path: str | Path) -> str:
    """What a path is called in addresses and names: seen from the working directory where it lies in it.

    The whole path and not the file's name alone, because the files of two folders are often called alike.
    """
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_absolute() and place.is_relative_to(Path.cwd()) else str(path)


def _in_folder(folder: Path, split: str) -> list[Path]:
    """Data files of a folder and those below, hidden ones left out."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise ValueError(f"{str(folder)!r} has no split {split!r}; it has {', '.join(splits)}")
        folder = folder / split
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]  # others are caches of `datasets`
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.name.endswith(SUFFIXES)
        and file.name not in _DESCRIPTIONS
        and not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    return _of_split(folder, files, split)


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files that are not of another split by their names; all of them where those do not tell splits apart."""
    named = {file: _split_of(file.relative_to(folder)) for file in files}
    splits = sorted({name for name in named.values() if name})
    if len(splits) < 2:
        return files
    kept = [file for file in files if named[file] in (split, None)]
    if not kept:
        raise ValueError(f"{str(folder)!r} holds files of {' and '.join(splits)}, but none of {split}")
    if left := [file.name for file in files if file not in kept]:
        others = f" and {len(left) - 5} more" if len(left) > 5 else ""
        message = f"{str(folder)!r} is read for {split}: left out, by their names, are {', '.join(left[:5])}{others}"
        warnings.warn(f"{message}; name files to read them", stacklevel=2)
    return kept


def _split_of(file: Path) -> str | None:
    """The split that a path names."""
    words = re.split(r"[\W_]+", str(file).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _is_hub_name(place: Path, path: str) -> bool:
    """Whether a path that does not exist can be ``owner/name`` or ``name``."""
    if path.endswith(SUFFIXES) or place.is_absolute() or path.startswith((".", "~")):
        return False
    if path.count("/") == 1:
        return not place.parent.is_dir()
    return "/" not in path and not place.suffix and path not in _LOADERS and not _near(place)


def _near(place: Path) -> list[str]:
    siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
    return difflib.get_close_matches(place.name, siblings, n=1)


def _hint(place: Path) -> str:
    near = _near(place)
    return f"did you mean {str(place.parent / near[0])!r}?" if near else f"looked in {str(place.parent.absolute())!r}"
