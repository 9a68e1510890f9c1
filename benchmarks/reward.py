"""Reward models beside TRL 1.16 on real pairs: tokens per second and peak memory, as ``side_by_side.py`` measures them.

    python benchmarks/reward.py --trl-python /path/to/trl/bin/python --data hh.jsonl.gz --out benchmarks/results
    python benchmarks/reward.py ... --device cuda --arch reference --dtype bfloat16 --quantization nf4

TRL's careful user turns gradient checkpointing off and puts pairs of one length into one batch: the rows of the
measured steps are sorted by length for it, longest first, as its sampler does.
"""

from __future__ import annotations

from typing import Any

from proxy_model import body_flops
from side_by_side import Comparison, compare, parse, write_plan


def trl(gradient_checkpointing: bool, is_sorted: bool = False) -> dict[str, Any]:
    """A setting of TRL's side."""
    return {"side": "trl", "gradient_checkpointing": gradient_checkpointing, "is_sorted": is_sorted}


def ours(gradient_checkpointing: bool = False, fused: bool = True, token_budget: int = 4096) -> dict[str, Any]:
    """A setting of our side."""
    return {
        "side": "lit_rlhf",
        "gradient_checkpointing": gradient_checkpointing,
        "fused": fused,
        "token_budget": token_budget,
    }


DEFAULT, CAREFUL = "TRL default (checkpointing)", "TRL careful (no checkpointing, sorted by length)"
SETTINGS = {
    DEFAULT: trl(gradient_checkpointing=True),
    "TRL, no checkpointing": trl(gradient_checkpointing=False),
    CAREFUL: trl(gradient_checkpointing=False, is_sorted=True),
    "stock layers": ours(fused=False),
    "fused layers": ours(),
    "fused layers, 512 tokens a micro-batch": ours(token_budget=512),
    "fused layers, checkpointing": ours(gradient_checkpointing=True),
}


def useful_flops(arch: str, tokens: dict[str, int], setting: dict[str, Any]) -> float:
    """Forward and gradient of activations; the score head is next to nothing."""
    return body_flops(arch, 2, tokens)


REWARD = Comparison("reward", "Reward model", SETTINGS, DEFAULT, CAREFUL, useful_flops)


def main() -> None:
    """Measure all settings."""
    options = parse(REWARD)
    compare(REWARD, options, write_plan(options))


if __name__ == "__main__":
    main()
