"""DPO with QLoRA on one GPU: the frozen base in 4 bits, policy and reference on it.

    python examples/qlora.py --model meta-llama/Llama-3.2-1B-Instruct --train pairs.jsonl --out runs/qlora

Without --model and --train it runs on the embedded default, on a CPU too. It ends with an adapter folder: to merge it
into a model in 16 bits, load the base in bfloat16, put the adapter on, and `merge_and_unload()`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import PreferenceDataModule
from lit_rlhf import BackboneConfig, DPOModule, LoraOptions
from lit_rlhf.embedded import resolve
from lit_rlhf.models.options import ReferenceOptions


def train(model: str, rows: str, out: Path, steps: int = -1, lr: float = 5e-6) -> DPOModule:
    """Train for one pass over the rows, or for some steps, and save the adapter.

    Args:
        model: folder or hub name.
        rows: file of preference pairs, in any form of docs/data_formats.md.
        out: folder of the adapter.
        steps: optimizer steps; -1 = one pass.
        lr: learning rate; 5e-6 is usual for a model of billions of weights.
    """
    seed_everything(0)
    module = DPOModule(
        BackboneConfig(
            model,
            quantization="nf4",  # 4 bits, their scales quantised once more
            dtype="bfloat16",  # what 4-bit weights are computed in
            gradient_checkpointing=True,  # layers are computed again in the backward pass: less memory, more time
            lora=LoraOptions(r=16, alpha=32),  # on all linear layers
        ),
        beta=0.1,
        reference=ReferenceOptions(cache=True, cache_folder=str(out / "reference_logprobs")),
        # Adam's state in 8 bits is lit_rlhf's to leave and yours to take: bitsandbytes.optim.AdamW8bit.
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
    )
    # The token budget is what to lower when memory runs out: it changes no number but the seconds.
    data = PreferenceDataModule(train=rows, tokenizer=model, batch_size=16, token_budget=4096, max_length=1024)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=data)
    module.model.save(out)
    loss = float(trainer.callback_metrics["train/loss"])
    peak = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most" if torch.cuda.is_available() else ""
    print(f"loss {loss:.3f}{peak}; adapter: {out / 'adapter_model.safetensors'}")
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=resolve("embedded:tiny_llama"), help="folder or hub name")
    parser.add_argument("--train", default=resolve("embedded:dpo_train.jsonl"), help="file of preference pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/qlora"), help="folder of the adapter")
    parser.add_argument("--steps", type=int, default=-1, help="optimizer steps; -1 = one pass over the rows")
    parser.add_argument("--lr", type=float, default=5e-6, help="learning rate; 1e-3 for the embedded model")
    arguments = parser.parse_args()
    train(arguments.model, arguments.train, arguments.out, arguments.steps, arguments.lr)
