"""One text, one score: a reward model trained in a plain Trainer, then asked in four ways.

    python examples/one_score.py --steps 60 --out runs/one_score

It is asked as the module that was trained, as the folder that it was saved to, as a PEFT adapter on the sequence
classifier of transformers, and merged into that. All four give the same number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from datamodules import PreferenceDataModule
from lit_rlhf import BackboneConfig, LoraOptions, RewardModule, load_reward_model
from lit_rlhf.embedded import resolve
from lit_rlhf.types import Forest, Segment

BASE = resolve("embedded:tiny_llama")
QUESTION = "What colour is a banana?"
ANSWERS = ("Sure! A banana is yellow.", "Duh. A banana is blue.")


def train(steps: int, out: Path) -> RewardModule:
    """Train a reward model on the embedded pairs and save it."""
    module = RewardModule(
        BackboneConfig(BASE, dtype="float32", lora=LoraOptions(r=16)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    data = PreferenceDataModule(
        train=resolve("embedded:dpo_train.jsonl"), validation=resolve("embedded:dpo_validation.jsonl"), tokenizer=BASE
    )
    trainer = Trainer(accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    module.model.save(out)
    return module


def forest_of(texts: list[list[int]]) -> Forest:
    """Texts of their own, each a root alone."""
    return Forest.pack([[Segment(tokens, [False] * len(tokens))] for tokens in texts])


@torch.no_grad()
def ask(module: RewardModule, out: Path) -> dict[str, list[float]]:
    """Score both answers in four ways."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    turns = [[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    texts = [tokenizer.apply_chat_template(turn, return_dict=False) for turn in turns]
    scores = {
        "the module": module.model.eval().scores(forest_of(texts)).tolist(),
        "its folder": load_reward_model(out, dtype="float32").scores(forest_of(texts)).tolist(),
    }
    rows = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    base = AutoModelForSequenceClassification.from_pretrained(
        BASE, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    peft = PeftModel.from_pretrained(base, out).eval()
    scores["PEFT"] = peft(**rows).logits[:, 0].tolist()
    scores["merged"] = peft.merge_and_unload()(**rows).logits[:, 0].tolist()
    return scores


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Train, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--out", type=Path, default=Path("runs/one_score"), help="folder of the reward model")
    options = parser.parse_args(arguments)
    seed_everything(0)
    scores = ask(train(options.steps, options.out), options.out)
    for way, (good, bad) in scores.items():
        print(f"{way:<12}{good:>12.6f}{bad:>12.6f}")
    return scores


if __name__ == "__main__":
    main()
