"""References to pictures, as rows give them, to what can be opened.

A path is relative to a folder, and nothing outside of that folder is ever opened, however it is written: absolute, with
``..`` or through a symbolic link. No address is asked for: a row could make a run read what only its machine may see.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL.Image import Image

from datamodules.forms.values import wrong_type
from datamodules.records import BadRowError

Found = Path | bytes | Image
"""A file, the content of one, or a picture in memory."""

_WANTED = "a path, bytes, a data: URL, {'bytes', 'path'} or a PIL image"
_SHOWN = 80  # characters of a reference in messages


def find_image(reference: object, folder: Path) -> Found:
    """Find what a reference stands for.

    Args:
        reference: a path, the content of a file, a ``data:`` URL, ``{"bytes": ..., "path": ...}`` as the ``datasets``
            library has it, or a PIL image.
        folder: that paths are relative to, and must not leave.

    Raises:
        BadRowError: if it is none of these, is an address, leads out of the folder, or no file is there.
    """
    if isinstance(reference, Image | bytes):
        return reference
    if isinstance(reference, Mapping):
        return _in_mapping(reference, folder)
    if isinstance(reference, Path):
        reference = str(reference)
    if not isinstance(reference, str):
        raise wrong_type("a picture", reference, _WANTED)
    scheme = reference.partition(":")[0].lower()
    return _BY_SCHEME.get(scheme, _in_folder)(reference, folder)


def _in_mapping(reference: Mapping[str, Any], folder: Path) -> Found:
    content = next((reference[name] for name in ("bytes", "data") if reference.get(name) is not None), None)
    if isinstance(content, str):  # JSON has no bytes
        return _from_base64(content)
    if isinstance(content, bytes):
        return content
    if content is None and isinstance(reference.get("path"), str):
        return find_image(reference["path"], folder)
    raise wrong_type("a picture", dict(reference), _WANTED)


def _in_folder(path: str, folder: Path) -> Path:
    """The file at a path inside of a folder."""
    if Path(path).is_absolute() or PureWindowsPath(path).is_absolute():
        message = f"{_shown(path)} is an absolute path; give it relative to {str(folder)!r}, or set data.image_dir"
        raise BadRowError("image_outside", message)
    try:
        root = folder.resolve()
        file = (root / path).resolve()
        is_file = file.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        raise BadRowError("missing_image", f"{_shown(path)} is no path that a file can have") from None
    if not file.is_relative_to(root):
        message = (
            f"{_shown(path)} leads out of {str(folder)!r}, to which it is relative; set data.image_dir to widen it"
        )
        raise BadRowError("image_outside", message)
    if not is_file:
        message = f"no file {_shown(path)} lies in {str(folder)!r}; mend the path, or set data.image_dir"
        raise BadRowError("missing_image", message)
    return file


def _in_data_url(url: str, folder: Path) -> bytes:
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadRowError("broken_image", f"{_shown(url)} is no data: URL in base64")
    return _from_base64(content)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRowError("broken_image", f"{_shown(text)} is not base64: {error}") from None


def _refuse_remote(url: str, folder: Path) -> Found:
    message = (
        f"{_shown(url)} is an address, and addresses in rows are not asked for; download it first and give its path"
    )
    raise BadRowError("remote_image", message)


def _refuse_file(url: str, folder: Path) -> Found:
    raise BadRowError(
        "image_outside", f"{_shown(url)} is an address of a file; give a path relative to {str(folder)!r}"
    )


def _shown(reference: str) -> str:
    return repr(reference if len(reference) <= _SHOWN else f"{reference[:_SHOWN]}...")


_BY_SCHEME: dict[str, Callable[[str, Path], Found]] = {
    "data": _in_data_url,
    "file": _refuse_file,
    **dict.fromkeys(("http", "https", "ftp", "ftps", "s3", "gs", "hf", "az"), _refuse_remote),
}
