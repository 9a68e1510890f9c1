"""Opening what a run left: the backbone with its adapter, and the tokenizer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlhf.commands.run_folder import ADAPTER_CONFIG, MODEL_CONFIG
from lit_rlhf.embedded import resolve
from lit_rlhf.models.options import BackboneConfig, LoraOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command on a finished run takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how what a run left is loaded."""
    parser.add_argument("--base", help="base model, if it is no longer where the run found it: a folder or hub name")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights; auto is what the base is stored in",
    )


def backbone_config(folder: Path, base: str | None, dtype: str, quantization: str = "none") -> BackboneConfig:
    """What to load for a run: its base with its adapter, or its whole model.

    Args:
        folder: of the run.
        base: takes the place of the base that the adapter names.
        dtype: as in :class:`BackboneConfig`.
        quantization: as in :class:`BackboneConfig`.

    Raises:
        ValueError: if the folder holds neither an adapter nor a model, or the base is not there.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    if is_adapter(folder):
        name = base or base_of(folder)
        if not Path(name).is_dir() and Path(name).is_absolute():
            raise ValueError(f"{folder}: its base model '{name}' is not there; say where it is with --base")
        return BackboneConfig(resolve(name), str(folder), quantization=quantization, dtype=dtype)  # type: ignore[arg-type]
    if not (folder / MODEL_CONFIG).is_file():
        raise ValueError(f"{folder} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}: no run has finished there")
    return BackboneConfig(str(folder), dtype=dtype, lora=LoraOptions(enabled=False))  # type: ignore[arg-type]


def is_adapter(folder: Path) -> bool:
    """Whether a run left an adapter, rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_reward_model(folder: Path) -> bool:
    """Whether a run left a reward model, or somebody else's lies in the folder: there is a score or value head."""
    from lit_rlhf.models.heads.head_files import read_head

    return read_head(folder, num_objectives=None) is not None


def base_of(folder: Path) -> str:
    """Name of the base model that an adapter was trained on."""
    return json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies in the folder of a run.

    Raises:
        ValueError: if there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no tokenizer") from error
