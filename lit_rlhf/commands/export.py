"""Turn a finished run into a folder that needs nothing of this package.

Without --merge the folder holds the adapter, to be loaded on its base by PEFT. With --merge it is a whole Hugging Face
model: a causal language model, or a sequence classifier with one output where the run trained a reward model. A run in
4 or 8 bits is merged into the full-precision base: merging into quantised weights would lose much of what was learnt.
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
    config = finished_run.backbone_config(args.run, args.base, args.dtype)
    whole = args.merge or config.adapter is None
    if finished_run.is_reward_model(args.run):
        export_reward_model(config, args.run, args.out, merge=args.merge)
        kind = "sequence classifier" if whole else "adapter with its score head"
    else:
        export_policy(config, args.run, args.out, merge=args.merge)
        kind = "whole model" if whole else "adapter"
    print(f"{kind}: {args.out} (README.md says how to load it)")  # noqa: T201


def export_policy(config: finished_run.BackboneConfig, run: Path, out: Path, *, merge: bool) -> None:
    """Write a policy: its adapter, or the model that it makes of its base.

    Args:
        config: what to load.
        run: folder of the run.
        out: folder to write to.
        merge: whether an adapter is merged into the full-precision base.

    Raises:
        ValueError: if the base is stored quantised, or adapter and base do not fit.
    """
    from lit_rlhf.callbacks.readme import policy_readme
    from lit_rlhf.models.adapters import load_adapter
    from lit_rlhf.models.loading import load_causal_lm
    from lit_rlhf.models.processors import copy_processor

    tokenizer = finished_run.load_tokenizer(run)
    if config.adapter is not None and not merge:
        out.mkdir(parents=True, exist_ok=True)
        for file in (*run.glob("adapter_model*"), run / "adapter_config.json"):
            shutil.copy(file, out)
    else:
        model = load_causal_lm(config)
        _refuse_quantized(model.config.to_dict(), config.name_or_path)
        if config.adapter is not None:
            model = load_adapter(model, config.adapter, dropout=0.0).merge_and_unload()
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    sees = copy_processor(run, out)
    text = policy_readme(out, config.name_or_path, f"exported from the run {run}", sees=sees)
    (out / "README.md").write_text(text, encoding="utf-8")


def export_reward_model(config: finished_run.BackboneConfig, run: Path, out: Path, *, merge: bool) -> None:
    """Write a reward model with one output, its objectives summed by weight.

    Args:
        config: what to load.
        run: folder of the run.
        out: folder to write to.
        merge: whether an adapter is merged into the full-precision base.

    Raises:
        ValueError: if the base is stored quantised, or head, adapter and base do not fit.
    """
    from peft import PeftModel

    from lit_rlhf.callbacks.export import save_reward_tokenizer
    from lit_rlhf.models.backbone import Backbone
    from lit_rlhf.models.heads.reward_model import RewardModel, load_reward_model

    base = config.name_or_path if config.adapter else None
    loaded = load_reward_model(run, base, config.dtype)
    backbone = loaded.backbone
    if merge and isinstance(backbone.model, PeftModel):
        _refuse_quantized(backbone.base.config.to_dict(), config.name_or_path)
        backbone = Backbone(backbone.model.merge_and_unload())
    model = RewardModel(backbone, loaded.score.collapsed())
    tokenizer = finished_run.load_tokenizer(run)
    model.save(out)
    text = save_reward_tokenizer(model, tokenizer, out, f"exported from the run {run}")
    (out / "README.md").write_text(text, encoding="utf-8")


def _refuse_quantized(config: dict[str, object], name: str) -> None:
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"the base '{name}' is stored quantised, and merging into it would lose much of what was "
            "learnt: name the full-precision model with --base"
        )
