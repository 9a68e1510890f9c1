"""TRL's side of ``benchmarks/data.py``: one job, measured in this process. Needs TRL 1.16, not this package.

What its trainer does with a file on the way to batches: the conversion to Arrow, ``DPOTrainer._prepare_dataset`` and
its collator. The model is as small as can be, and making it takes no part in the times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from data_meter import Clock, Job, Memory, do, forget, seconds_alive
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

VERSIONS = {package.__name__: package.__version__ for package in (trl, datasets, torch, transformers)}


class WatchedTrainer(DPOTrainer):
    """Times the preparation of the rows."""

    preparing: Clock

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Dataset:
        with Clock() as self.preparing:
            return super()._prepare_dataset(*args, **kwargs)


def make_trainer(job: Job, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> WatchedTrainer:
    """A trainer of the smallest Llama."""
    model = Path(job["scratch"]) / "model"
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(model)
    config = DPOConfig(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["batch_size"],
        max_length=None,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    return WatchedTrainer(str(model), args=config, train_dataset=rows, processing_class=tokenizer)


def throughput(job: Job) -> dict[str, Any]:
    """Prepare a file and read it to its end, as batches."""
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    with Clock() as loading:
        rows = load_dataset("json", data_files=job["file"], split="train")
    trainer = make_trainer(job, rows, tokenizer)
    num_tokens = num_pairs = 0
    with Clock() as collating:
        for batch in trainer.get_train_dataloader():
            num_tokens += int(batch["attention_mask"].sum())
            num_pairs += len(batch["attention_mask"]) // 2
    parts = loading, trainer.preparing, collating
    return {
        "seconds": sum(part.seconds for part in parts),
        "cpu_seconds": sum(part.cpu_seconds for part in parts),
        "load_seconds": loading.cpu_seconds,
        "prepare_seconds": trainer.preparing.cpu_seconds,
        "collate_seconds": collating.cpu_seconds,
        "num_tokens": num_tokens,
        "num_pairs": num_pairs,
        "versions": VERSIONS,
    }


def first_batch(job: Job) -> dict[str, Any]:
    """Prepare a file nobody has looked at and make the first batch."""
    import_seconds, memory = seconds_alive(), Memory()
    forget(job["file"])
    with Clock() as starting:
        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    with Clock() as loading:
        rows = load_dataset("json", data_files=job["file"], split="train")
    trainer = make_trainer(job, rows, tokenizer)
    with Clock() as reading:
        next(iter(trainer.get_train_dataloader()))
    return {
        "import_seconds": import_seconds,
        "tokenizer_seconds": starting.seconds,
        "seconds": sum(part.seconds for part in (loading, trainer.preparing, reading)),
        "peak_mib": memory.peak_mib(),
        "versions": VERSIONS,
    }


if __name__ == "__main__":
    do({"throughput": throughput, "first_batch": first_batch})
