"""Data modules: rows of files or the hub to the batches that the algorithms of lit_rlhf read."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.options import Source
    from datamodules.packing import TokenPair, pack_pairs
    from datamodules.pictures import open_image
    from datamodules.preference import PreferenceDataModule
    from datamodules.prompt import PromptDataModule
    from datamodules.prompts_and_texts import PromptAndTextDataModule
    from datamodules.sft import SFTDataModule

_HOMES = {
    "PreferenceDataModule": "datamodules.preference",
    "PromptAndTextDataModule": "datamodules.prompts_and_texts",
    "PromptDataModule": "datamodules.prompt",
    "SFTDataModule": "datamodules.sft",
    "Source": "datamodules.options",
    "TokenPair": "datamodules.packing",
    "open_image": "datamodules.pictures",
    "pack_pairs": "datamodules.packing",
}

__all__ = [
    "PreferenceDataModule",
    "PromptAndTextDataModule",
    "PromptDataModule",
    "SFTDataModule",
    "Source",
    "TokenPair",
    "open_image",
    "pack_pairs",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
