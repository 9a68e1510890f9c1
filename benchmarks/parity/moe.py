"""Train a Mixtral with TRL's DPOTrainer and with DPOModule, router and experts too, and compare the loss of every step.

The load-balancing loss is part of it. TRL takes it from transformers, where it is right: one layer of experts, and one
micro-batch to a step (docs/moe.md says what becomes of it elsewhere). So the model is the first layer of the given one;
its adapter is on attention, router and experts, as PEFT makes it. TRL runs in its own environment:

    python benchmarks/parity/moe.py --trl-python /path/to/trl/bin/python --model DIR --data hh.jsonl.gz --out OUT

Exits with an error if a loss differs by more than 1e-4 relative at any step. ``OUT`` keeps the curves.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dpo
import torch
from beside_trl import Plan, compare_losses, fit, parser, run_both
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf import BackboneConfig, DPOModule
from lit_rlhf.schedules import WarmupDecay

SETTINGS: dict[str, dict[str, Any]] = {
    "without": {"router_aux_loss_coef": 0.0},
    "balanced": {"router_aux_loss_coef": 0.2},
}
NUMBERS: dict[str, Any] = {**dpo.NUMBERS, "steps": 12, "token_budget": 4096}


def run(plan: Plan, settings: dict[str, Any]) -> dpo.Losses:
    """Train with one coefficient, the way TRL's side does."""
    module = DPOModule(
        BackboneConfig(plan["model"], adapter=plan["adapter"], dtype="float32", **settings),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, decay="constant"),
    )
    fit(module, plan["rows"], plan, watch := dpo.Losses())
    return watch


def make_plan(folder: Path, model: str, data: Path, numbers: dict[str, Any]) -> Plan:
    """Write model, rows and adapter into a folder; what both sides are told."""
    first_layer = AutoModelForCausalLM.from_pretrained(model, num_hidden_layers=1, dtype=torch.float32)
    first_layer.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "model")
    return {**dpo.make_plan(folder, str(folder / "model"), data, numbers), "settings": SETTINGS}


def main() -> None:
    """Prepare the start, run both sides, compare."""
    options = parser(__doc__, is_start_embedded=False).parse_args()
    script = Path(__file__).with_name("moe_trl.py")
    run_both(
        script, options, lambda out: make_plan(out, options.model, options.data, NUMBERS), partial(compare_losses, run)
    )


if __name__ == "__main__":
    main()
