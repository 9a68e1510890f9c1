"""Turn a finished run into a folder that needs nothing of this package.

Without --merge the folder holds the adapter, to be loaded on its base by PEFT. With --merge it is a whole Hugging Face
model. A run in 4 or 8 bits is merged into the full-precision base: merging into quantised weights would lose much of
what was learnt.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lit_rlhf.commands import finished_run
from lit_rlhf.commands.quiet import quieten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    finished_run.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--merge", action="store_true", help="write a whole model, the adapter merged into its base")


def run(args: argparse.Namespace) -> None:
    """Write the folder.

    Raises:
        ValueError: if there is nothing to export, the folder exists, or adapter and base do not fit.
    """
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out={args.out} exists already; choose another folder or remove it")
    quieten()
    from lit_rlhf.callbacks.export import readme

    config = finished_run.backbone_config(args.run, args.base, args.dtype)
    tokenizer = finished_run.load_tokenizer(args.run)
    if config.adapter is not None and not args.merge:
        args.out.mkdir(parents=True, exist_ok=True)
        for file in (*args.run.glob("adapter_model*"), args.run / "adapter_config.json"):
            shutil.copy(file, args.out)
    else:
        merge(config, args.out)
    tokenizer.save_pretrained(args.out)
    text = readme(args.out, config.name_or_path, f"exported from the run {args.run}")
    (args.out / "README.md").write_text(text, encoding="utf-8")
    kind = "whole model" if args.merge or config.adapter is None else "adapter"
    print(f"{kind}: {args.out} (README.md says how to load it)")  # noqa: T201


def merge(config: finished_run.BackboneConfig, out: Path) -> None:
    """Write the model of a run, its adapter merged into the full-precision base.

    Args:
        config: what to load.
        out: folder to write to.

    Raises:
        ValueError: if the base is stored quantised, or adapter and base do not fit.
    """
    from lit_rlhf.models.adapters import load_adapter
    from lit_rlhf.models.loading import load_causal_lm

    model = load_causal_lm(config)
    if model.config.to_dict().get("quantization_config") is not None:
        raise ValueError(
            f"the base '{config.name_or_path}' is stored quantised, and merging into it would lose much of what was "
            "learnt: name the full-precision model with --base"
        )
    if config.adapter is not None:
        model = load_adapter(model, config.adapter, dropout=0.0).merge_and_unload()
    model.save_pretrained(out)
