"""What prepares pictures for a model, written beside what was trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import cached_file

from lit_rlhf.models.vision import is_seeing

FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""Names under which transformers keeps the settings of a processor."""


def copy_processor_of(model: PreTrainedModel, folder: Path) -> bool:
    """Copy the settings of a model's processor as files, as what reads them may need parts that are not installed.

    Args:
        model: that was loaded from a folder or by a hub name.
        folder: where they are written.

    Returns:
        Whether there is a processor: there is none where a model reads text alone.
    """
    return is_seeing(model.config) and copy_processor(str(model.name_or_path), folder)


def copy_processor(name: str | Path, folder: Path) -> bool:
    """Copy the settings of the processor that lies in a folder or under a hub name; whether there is one."""
    is_there = False
    for file in FILES:
        found = cached_file(
            str(name),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        is_there = is_there or found is not None
        if found is not None and Path(found).resolve() != (folder / file).resolve():
            shutil.copy(found, folder / file)
    return is_there
