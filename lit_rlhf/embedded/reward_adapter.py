"""The embedded reward model: a finished run with an adapter, made small enough to ship.

It is a reward model of the embedded world that is right about nine choices in ten that can be known, and wrong in ways
of its own; the critic of the embedded PPO begins as it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

BASE = "../tiny_llama"
"""The base, told from the adapter's folder."""

KEPT = ("reward_model.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def shrink(run: Path, folder: Path) -> None:
    """Write what a reward model's run left into a folder: adapter in bfloat16, score head as it is.

    Args:
        run: folder of a finished run with an adapter.
        folder: is made if need be.

    Raises:
        ValueError: if the run left no adapter.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not (run / "adapter_model.safetensors").is_file():
        raise ValueError(f"{run} holds no adapter_model.safetensors, so it is no run with an adapter")
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / "adapter_model.safetensors")
    small = {name: tensor if "score" in name else tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in small.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").chmod(0o644)
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "base_model_name_or_path": BASE}, indent=2)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    for name in KEPT:
        shutil.copyfile(run / name, folder / name)
