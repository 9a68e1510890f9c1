"""Train with TRL's DPOTrainer and with DPOModule from the same start, and compare the loss of every step.

Same model, same adapter (its B matrices not zero, so that the reference is a frozen copy of it), same rows in the same
order, same optimizer; each side reads the rows by its own tokenization. TRL runs in its own environment:

    python benchmarks/parity/dpo.py --trl-python /path/to/trl/bin/python --model DIR --data hh.jsonl.gz --out OUT

Exits with an error if a loss differs by more than 1e-4 relative at any step. ``OUT`` keeps the curves.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lit_rlhf.losses
from datamodules import PreferenceDataModule
from lit_rlhf import BackboneConfig, DPOModule
from lit_rlhf.losses.terms import LossTerm
from lit_rlhf.schedules import WarmupDecay
from lit_rlhf.types import PreferenceBatch

TOLERANCE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {"losses": ["sigmoid"], "weights": [1.0], "beta": 0.1},
    "ipo": {"losses": ["ipo"], "weights": [1.0], "beta": 0.1},
    "hinge": {"losses": ["hinge"], "weights": [1.0], "beta": 0.1},
    "apo_zero": {"losses": ["apo_zero"], "weights": [1.0], "beta": 0.1},
    "mpo": {"losses": ["sigmoid", "bco_pair", "sft"], "weights": [0.8, 0.2, 1.0], "beta": 0.1},
}
# The gradient's norm crosses 7 from step to step, so that clipping counts; our token budget changes no number.
NUMBERS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 4,
    "max_length": 512,
    "token_budget": 1024,
    "lr": 1e-3,
    "max_grad_norm": 7.0,
    "settings": SETTINGS,
}
ASSISTANT = "\n\nAssistant:"


def hh_rows(path: Path, model: str, num_rows: int, max_length: int) -> list[dict[str, str]]:
    """The first rows of an HH file that need no truncation and have two responses to one prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows: list[dict[str, str]] = []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            (prompt, chosen), (other, rejected) = (_last_turn(json.loads(line)[key]) for key in ("chosen", "rejected"))
            longest = max(len(tokenizer(prompt + text).input_ids) for text in (chosen, rejected))
            if prompt == other and chosen.strip() and rejected.strip() and chosen != rejected and longest < max_length:
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
            if len(rows) == num_rows:
                return rows
    raise ValueError(f"{path} holds {len(rows)} rows under {max_length} tokens, {num_rows} are needed")


def _last_turn(dialogue: str) -> tuple[str, str]:
    end = dialogue.rindex(ASSISTANT) + len(ASSISTANT)
    return dialogue[:end], dialogue[end:]


def write_adapter(model: str, folder: Path) -> None:
    """A LoRA adapter on all linear layers, random on both sides."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)


class Losses(Callback):
    """Collects the loss of every step, and the tokens of every row, by row number."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens: dict[int, dict[str, list[int]]] = {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Keep what one step came to."""
        self.losses.append(outputs["loss"].item())
        for pairs in batch.micro_batches:
            forest = pairs.forest
            segments = forest.tokens.split(forest.lengths)
            for row, chosen, rejected in zip(pairs.rows, pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True):
                leaves = forest.leaves[chosen], forest.leaves[rejected]
                root = forest.parents[leaves[0]]
                names = ("prompt_ids", "chosen_ids", "rejected_ids")
                texts = (segments[segment].tolist() for segment in (root, *leaves))
                self.tokens[int(row.rpartition(":")[2])] = dict(zip(names, texts, strict=True))


def run(plan: dict[str, Any], settings: dict[str, Any]) -> Losses:
    """Train with one loss, the way TRL's side does."""
    parts = zip(settings["losses"], settings["weights"], strict=True)
    module = DPOModule(
        BackboneConfig(plan["model"], adapter=plan["adapter"], dtype="float32"),
        losses=[LossTerm(getattr(lit_rlhf.losses, f"{name}_loss"), weight) for name, weight in parts],
        beta=settings["beta"],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0),
        lr_scheduler=lambda optimizer: WarmupDecay(optimizer, decay="constant"),
    )
    data = PreferenceDataModule(
        plan["rows"],
        tokenizer=plan["model"],
        batch_size=plan["batch_size"],
        max_length=plan["max_length"],
        token_budget=plan["token_budget"],
        shuffle_buffer=0,
    )
    watch = Losses()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=plan["steps"],
        gradient_clip_val=plan["max_grad_norm"],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
        default_root_dir=plan["scratch"],
    )
    trainer.fit(module, datamodule=data)
    return watch


def make_plan(folder: Path, model: str, data: Path, numbers: dict[str, Any]) -> dict[str, Any]:
    """Write rows and adapter into a folder; what both sides are told."""
    rows = hh_rows(data, model, numbers["steps"] * numbers["batch_size"], numbers["max_length"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_adapter(model, folder / "adapter")
    paths = {name: str(folder / name) for name in ("rows.jsonl", "adapter", "scratch")}
    return {**numbers, "model": str(Path(model).resolve()), "rows": paths.pop("rows.jsonl"), **paths}


def compare(plan: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Run our side of every setting; the worst relative difference of its losses to TRL's."""
    worst = {}
    for name, settings in plan["settings"].items():
        ours = run(plan, settings)
        if [tokens for _, tokens in sorted(ours.tokens.items())] != theirs["tokens"]:
            raise ValueError("both sides must be trained on the same tokens, and were not")
        pairs = list(zip(theirs[name], ours.losses, strict=True))
        worst[name] = max(abs(mine - other) / max(abs(other), 1e-8) for other, mine in pairs)
        first, last = pairs[0][0], pairs[-1][0]
        print(f"{name:>10}: {first:.6f} -> {last:.6f} in {len(pairs)} steps, worst relative {worst[name]:.1e}")
    return worst


def main() -> None:
    """Prepare the start, run both sides, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL 1.16")
    parser.add_argument("--model", required=True, help="folder of a small Llama and its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="rows in Anthropic's HH form, .jsonl or .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--golden", type=Path, help="also keep TRL's losses here, for the tests")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plan = make_plan(out, options.model, options.data, NUMBERS)
    (out / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("dpo_trl.py")
    subprocess.run([options.trl_python, str(script), str(out / "plan.json")], check=True)
    theirs = json.loads((out / "trl.json").read_text())
    if options.golden:
        losses = {name: theirs[name] for name in SETTINGS}
        golden = {"trl": theirs["version"], "numbers": NUMBERS, "losses": losses}
        options.golden.write_text(json.dumps(golden, indent=1) + "\n")
    worst = compare(plan, theirs)
    (out / "parity.json").write_text(json.dumps(worst))
    if bad := [name for name, difference in worst.items() if not difference <= TOLERANCE]:
        sys.exit(f"more than {TOLERANCE:.0e} relative apart: {', '.join(bad)}")


if __name__ == "__main__":
    main()
