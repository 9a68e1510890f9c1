"""DPO beside TRL 1.16 on real pairs: tokens per second and peak memory, as ``side_by_side.py`` measures them.

    python benchmarks/dpo.py --trl-python /path/to/trl/bin/python --data hh.jsonl.gz --out benchmarks/results
    python benchmarks/dpo.py ... --device cuda --arch reference --dtype bfloat16 --quantization nf4

On a CPU, TRL is given the response-only head that it has on a GPU.
"""

from __future__ import annotations

import shutil
from typing import Any

from proxy_model import ARCHITECTURES, body_flops
from side_by_side import Comparison, chosen, compare, measure, parse, write_plan


def trl(gradient_checkpointing: bool, cached_reference: bool) -> dict[str, Any]:
    """A setting of TRL's side."""
    return {
        "side": "trl",
        "gradient_checkpointing": gradient_checkpointing,
        "cached_reference": cached_reference,
    }


def ours(
    cached_reference: bool = False,
    gradient_checkpointing: bool = False,
    fused: bool = True,
    token_budget: int = 4096,
) -> dict[str, Any]:
    """A setting of our side."""
    return {
        "side": "lit_rlhf",
        "cached_reference": cached_reference,
        "gradient_checkpointing": gradient_checkpointing,
        "fused": fused,
        "token_budget": token_budget,
    }


DEFAULT, CAREFUL = "TRL default (checkpointing, live reference)", "TRL careful (no checkpointing, cached reference)"
SETTINGS = {
    DEFAULT: trl(gradient_checkpointing=True, cached_reference=False),
    CAREFUL: trl(gradient_checkpointing=False, cached_reference=True),
    "stock layers, live reference": ours(fused=False),
    "stock layers, cached reference": ours(fused=False, cached_reference=True),
    "stock layers, cached reference, checkpointing": ours(
        fused=False, cached_reference=True, gradient_checkpointing=True
    ),
    "fused layers, live reference": ours(),
    "fused layers, cached reference": ours(cached_reference=True),
    "fused layers, cached reference, 512 tokens a micro-batch": ours(cached_reference=True, token_budget=512),
    "fused layers, cached reference, checkpointing": ours(cached_reference=True, gradient_checkpointing=True),
}


def useful_flops(arch: str, tokens: dict[str, int], setting: dict[str, Any]) -> float:
    """Forward, gradient of activations, and the forward of a reference that is not cached."""
    hidden, _, _, _, vocabulary = ARCHITECTURES[arch]
    passes = 2 + (not setting["cached_reference"])
    return body_flops(arch, passes, tokens) + 2.0 * passes * tokens["scored"] * hidden * vocabulary


DPO = Comparison("dpo", "DPO", SETTINGS, DEFAULT, CAREFUL, useful_flops)


def main() -> None:
    """Measure; the cache of reference log-probabilities is filled first."""
    options = parse(DPO)
    cache = options.work.resolve() / "reference_logprobs"
    shutil.rmtree(cache, ignore_errors=True)  # of an earlier run with other rows
    plan = write_plan(options, cache=str(cache))
    ours_cached = (s for s in chosen(DPO, options).values() if s["side"] == "lit_rlhf" and s["cached_reference"])
    if fills := next(ours_cached, None):
        measure(plan, DPO.name, fills, options.trl_python)
    compare(DPO, options, plan)


if __name__ == "__main__":
    main()
