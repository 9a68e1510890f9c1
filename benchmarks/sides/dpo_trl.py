"""TRL's side of ``benchmarks/dpo.py``: one setting, measured in this process. Needs TRL 1.16, not this package."""

from __future__ import annotations

from typing import Any

import trl
from steps_trl import arguments, load, parts, run
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer


def make(plan: dict[str, Any], setting: dict[str, Any], rows: list[dict[str, Any]]) -> DPOTrainer:
    """The trainer. On a CPU its head would score every position; it is let score responses alone, as on a GPU."""
    if plan["device"] == "cpu":
        trl.trainer.utils._use_triton = lambda device: True
    config = DPOConfig(precompute_ref_log_probs=setting["cached_reference"], **arguments(plan, setting))
    return DPOTrainer(load(plan, AutoModelForCausalLM), args=config, **parts(plan, rows, "CAUSAL_LM"))


if __name__ == "__main__":
    run(__doc__, make)
