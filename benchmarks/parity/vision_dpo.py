"""Train a small LLaVA on pairs about pictures with TRL's DPOTrainer and with DPOModule, and compare every step.

Same model, same adapter (its B matrices not zero, so that the reference is a frozen copy of it), same rows in the same
order, same optimizer; each side prepares pictures and text by its own way. TRL runs in its own environment:

    python benchmarks/parity/vision_dpo.py --trl-python /path/to/trl/bin/python --data color_pairs_dev.jsonl --out OUT

The model (CLIP and Llama of two layers) is made in ``OUT``. Exits with an error if at any step the loss, or the mean
log-probability of the chosen or of the rejected responses, differs by more than 1e-4 relative. ``OUT`` keeps
the curves.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from beside_trl import Course, Plan, fit, parser, run_both, save_stirred, write_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from lit_rlhf import BackboneConfig, DPOModule
from lit_rlhf.schedules import WarmupDecay

sys.path.append(str(Path(__file__).parents[1]))
from llava_model import make_llava
from nlvr_rows import read_rows, texts_of

DECODER = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
EYES = r".*(vision_tower.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|multi_modal_projector\.linear_[12])"
SETTINGS: dict[str, dict[str, str]] = {
    "decoder": {"adapter": "decoder"},
    "tower, projector and decoder": {"adapter": "all"},
}
"""What is trained."""

TARGETS = {"decoder": DECODER, "all": f"{DECODER}|{EYES}"}
# The gradient's norm crosses 0.4 from step to step, so that clipping counts.
NUMBERS: dict[str, Any] = {
    "steps": 8,
    "batch_size": 4,
    "max_length": 512,
    "token_budget": 256,
    "lr": 1e-3,
    "max_grad_norm": 0.4,
}
COLUMNS = {"loss": "train/loss", "chosen": "train/logprobs/chosen", "rejected": "train/logprobs/rejected"}


def run(plan: Plan, settings: dict[str, str]) -> Course:
    """Train with one adapter, the way TRL's side does."""
    module = DPOModule(
        BackboneConfig(plan["model"], adapter=plan["adapters"][settings["adapter"]], dtype="float32"),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, decay="constant"),
    )
    fit(module, plan["rows"], plan, watch := Course(COLUMNS))
    return watch


def write_adapter(model: Path, targets: str, folder: Path) -> str:
    """A LoRA adapter on the layers whose names match, random on both sides; its folder."""
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0))
    save_stirred(adapted, folder)
    return str(folder)


def make_plan(folder: Path, data: Path, numbers: dict[str, Any]) -> Plan:
    """Write model, rows and adapters into a folder; what both sides are told.

    Raises:
        ValueError: if there are too few rows.
    """
    needed = numbers["steps"] * numbers["batch_size"]
    rows = list(islice(read_rows(data), needed))
    if len(rows) < needed:
        raise ValueError(f"{data} shows {len(rows)} pictures, {needed} are needed")
    make_llava("tiny", "light", texts_of(rows), folder / "model", std=0.15)
    return {
        **numbers,
        "numbers": numbers,
        "settings": SETTINGS,
        "model": str(folder / "model"),
        "rows": write_rows(rows, folder / "rows.jsonl"),
        "adapters": {
            name: write_adapter(folder / "model", targets, folder / name) for name, targets in TARGETS.items()
        },
        "scratch": str(folder / "scratch"),
    }


def compare(plan: Plan, theirs: dict[str, Any]) -> dict[str, float]:
    """Run our side of every setting; the worst relative difference of a loss or log-probability to TRL's."""
    worst = {}
    for name, settings in plan["settings"].items():
        ours = run(plan, settings)
        if [tokens for _, tokens in sorted(ours.tokens.items())] != theirs["tokens"]:
            raise ValueError("both sides must be trained on the same tokens, and were not")
        apart = {column: farthest(ours.course[column], theirs[name][column]) for column in COLUMNS}
        worst[name] = max(apart.values())
        said = ", ".join(f"{column} {difference:.1e}" for column, difference in apart.items())
        losses = theirs[name]["loss"]
        print(f"{name}: loss {losses[0]:.6f} -> {losses[-1]:.6f} in {len(losses)} steps; worst relative: {said}")
    return worst


def farthest(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(mine - other) / abs(other) for mine, other in zip(ours, theirs, strict=True))


def main() -> None:
    """Prepare the start, run both sides, compare."""
    options = parser(__doc__, is_start_embedded=True).parse_args()
    script = Path(__file__).with_name("vision_dpo_trl.py")
    run_both(script, options, lambda out: make_plan(out, options.data, NUMBERS), compare)


if __name__ == "__main__":
    main()
