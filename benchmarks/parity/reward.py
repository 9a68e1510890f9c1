"""Train with TRL's RewardTrainer and with RewardModule from the same start, and compare every step of both.

Same model, same adapter and score head (or all weights), same rows in the same order, same optimizer; each side reads
the rows by its own tokenization. TRL runs in its own environment:

    python benchmarks/parity/reward.py --trl-python /path/to/trl/bin/python --model DIR --data hh.jsonl.gz --out OUT

Without ``--model`` and ``--data`` the embedded model is trained on the embedded pairs. Exits with an error if a loss, a
mean margin or an accuracy is off by more than 1e-4 at any step. ``OUT`` keeps the curves.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from beside_trl import Course, Plan, fit, parser, rows_that_fit, run_both, save_stirred, write_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf import BackboneConfig, LoraOptions, RewardModule
from lit_rlhf.embedded import ASSETS
from lit_rlhf.losses import bradley_terry_loss, centring_loss
from lit_rlhf.losses.reward_terms import RewardTerm
from lit_rlhf.schedules import WarmupDecay

# At ten times the rate the whole model would magnify rounding alone a thousandfold in 40 steps.
SETTINGS: dict[str, dict[str, Any]] = {
    f"{tuning}{name}": {"tuning": tuning, "lr": lr, "centring": centring, "margins": margins}
    for tuning, lr in (("lora", 1e-3), ("full", 1e-4))
    for name, centring, margins in (("", 0.0, False), ("_centred", 0.01, False), ("_margins", 0.0, True))
}
# Gradients are longer than this at some steps of every run and shorter at others, so that clipping counts.
NUMBERS: dict[str, Any] = {
    "steps": 40,
    "batch_size": 8,
    "max_length": 512,
    "token_budget": 1024,
    "max_grad_norm": 0.7,
}
COLUMNS = {"loss": "train/loss", "margin": "train/scores/margin", "accuracy": "train/scores/accuracy"}


def embedded_rows(num_rows: int) -> list[dict[str, Any]]:
    """The first of the pairs that come with the package."""
    with (ASSETS / "dpo_train.jsonl").open() as lines:
        return [json.loads(line) for line in islice(lines, num_rows)]


def write_starts(model: str, folder: Path, seed: int = 0) -> dict[str, str]:
    """An adapter with a score head, random both, and a whole classifier with the same head; their folders."""
    torch.manual_seed(seed)
    whole = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(whole.score.weight, std=0.1)
    whole.save_pretrained(folder / "full")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "full")
    adapted = get_peft_model(whole, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear"))
    save_stirred(adapted, folder / "adapter")
    return {name: str(folder / name) for name in ("full", "adapter")}


def make_plan(folder: Path, model: str | None, data: Path | None, numbers: dict[str, Any]) -> Plan:
    """Write rows and starts into a folder; what both sides are told."""
    model = str(Path(model or ASSETS / "tiny_llama").resolve())
    needed = numbers["steps"] * numbers["batch_size"]
    rows = rows_that_fit(data, model, numbers["max_length"], needed) if data else embedded_rows(needed)
    margins = [{**row, "margin": number % 5 / 4} for number, row in enumerate(rows)]
    return {
        **numbers,
        "numbers": numbers,
        "settings": SETTINGS,
        "model": model,
        "rows": write_rows(rows, folder / "rows.jsonl"),
        "rows_with_margins": write_rows(margins, folder / "rows_with_margins.jsonl"),
        "scratch": str(folder / "scratch"),
        **write_starts(model, folder),
    }


def make_module(plan: Plan, settings: dict[str, Any]) -> RewardModule:
    """What to train under one setting, from the start that TRL's side has."""
    if settings["tuning"] == "full":
        backbone = BackboneConfig(plan["full"], dtype="float32", lora=LoraOptions(enabled=False))
    else:
        backbone = BackboneConfig(plan["model"], adapter=plan["adapter"], dtype="float32")
    centring = [RewardTerm(centring_loss, settings["centring"])] if settings["centring"] else []
    return RewardModule(
        backbone,
        losses=[RewardTerm(bradley_terry_loss), *centring],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=settings["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, decay="constant"),
    )


def run(plan: Plan, settings: dict[str, Any]) -> Course:
    """Train under one setting, the way TRL's side does."""
    module = make_module(plan, settings)
    rows = plan["rows_with_margins" if settings["margins"] else "rows"]
    fit(module, rows, plan, watch := Course(COLUMNS))
    return watch


def compare(plan: Plan, theirs: dict[str, Any]) -> dict[str, float]:
    """Run our side of every setting; the worst difference of its losses, margins and accuracies to TRL's."""
    worst = {}
    for name, settings in plan["settings"].items():
        ours = run(plan, settings)
        tokens = [
            {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")}
            for _, row in sorted(ours.tokens.items())
        ]
        if tokens != theirs["tokens"]:
            raise ValueError("both sides must be trained on the same tokens, and were not")
        apart = {
            column: max(
                abs(mine - other) for mine, other in zip(ours.course[column], theirs[name][column], strict=True)
            )
            for column in COLUMNS
        }
        worst[name] = max(apart.values())
        losses = theirs[name]["loss"]
        said = ", ".join(f"{column} {difference:.1e}" for column, difference in apart.items())
        print(f"{name:>13}: {losses[0]:.6f} -> {losses[-1]:.6f} in {len(losses)} steps, worst difference: {said}")
    return worst


def main() -> None:
    """Prepare the start, run both sides, compare."""
    options = parser(__doc__, is_start_embedded=True).parse_args()
    script = Path(__file__).with_name("reward_trl.py")
    run_both(script, options, lambda out: make_plan(out, options.model, options.data, NUMBERS), compare)


if __name__ == "__main__":
    main()
