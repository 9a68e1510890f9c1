"""The side of ``benchmarks/data.py`` that uses Hugging Face ``datasets`` by hand: one job, measured in this process.

The least that makes batches: whole sequences, tokenised in batches and padded. Where the response begins is not found.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import torch
import transformers
from data_meter import Clock, Job, Memory, do, forget, seconds_alive
from datasets import Dataset, IterableDataset, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

SHUFFLE_BUFFER = 10_000  # rows, as the data module holds unless told otherwise
VERSIONS = {package.__name__: package.__version__ for package in (datasets, torch, transformers)}


class Tokenize:
    """Columns of rows to columns of token ids.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Tokenise prompt and response together, both responses."""
        return {key: self._ids(rows, key) for key in ("chosen", "rejected")}

    def _ids(self, rows: Mapping[str, list[Any]], key: str) -> list[list[int]]:
        responses = rows[key]
        prompts = rows["prompt"] if "prompt" in rows else [type(response)() for response in responses]
        wholes = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        if isinstance(wholes[0], str):
            return self.tokenizer([whole + self.tokenizer.eos_token for whole in wholes])["input_ids"]
        texts = [self.tokenizer.apply_chat_template(whole, tokenize=False) for whole in wholes]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


class Collate:
    """Rows of a batch to padded tensors: all chosen ones, then all rejected ones.

    Args:
        tokenizer: a fast one.
        are_tokens: whether the rows hold token ids; else they are tokenised first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, are_tokens: bool) -> None:
        self.tokenizer = tokenizer
        self.are_tokens = are_tokens

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad."""
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        ids = columns if self.are_tokens else Tokenize(self.tokenizer)(columns)
        return dict(self.tokenizer.pad({"input_ids": ids["chosen"] + ids["rejected"]}, return_tensors="pt"))


def throughput(job: Job) -> dict[str, Any]:
    """Map a file and read it to its end, as batches."""
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    with Clock() as loading:
        rows = load_dataset("json", data_files=job["file"], split="train")
    with Clock() as preparing:
        tokens = rows.map(Tokenize(tokenizer), batched=True, remove_columns=rows.column_names)
    num_tokens = num_pairs = 0
    with Clock() as collating:
        for batch in DataLoader(tokens, job["batch_size"], shuffle=True, collate_fn=Collate(tokenizer, True)):
            num_tokens += int(batch["attention_mask"].sum())
            num_pairs += len(batch["attention_mask"]) // 2
    parts = loading, preparing, collating
    return {
        "seconds": sum(part.seconds for part in parts),
        "cpu_seconds": sum(part.cpu_seconds for part in parts),
        "load_seconds": loading.cpu_seconds,
        "prepare_seconds": preparing.cpu_seconds,
        "collate_seconds": collating.cpu_seconds,
        "num_tokens": num_tokens,
        "num_pairs": num_pairs,
        "versions": VERSIONS,
    }


def streamed(job: Job) -> IterableDataset:
    """The shuffled rows of a file, read as they are asked for."""
    rows = load_dataset("json", data_files=job["file"], split="train", streaming=True)
    return rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)


def converted(job: Job) -> Dataset:
    """The shuffled rows of a file that is converted to Arrow first."""
    return load_dataset("json", data_files=job["file"], split="train").shuffle(seed=0)


def batches_of(job: Job, rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase) -> DataLoader[Any]:
    """Batches whose tokens are made when they are asked for."""
    collate = Collate(tokenizer, are_tokens=False)
    return DataLoader(rows, job["batch_size"], num_workers=job.get("num_workers", 0), collate_fn=collate)


def first_batch(job: Job) -> dict[str, Any]:
    """Open a file nobody has looked at and make the first batch, or the one after ``skip`` rows or a ``state``."""
    import_seconds, memory = seconds_alive(), Memory()
    forget(job["file"])
    with Clock() as starting:
        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    with Clock() as reading:
        rows = streamed(job) if job["streaming"] else converted(job)
        if "state" in job:
            rows.load_state_dict(job["state"])
        if "skip" in job:
            rows = rows.skip(job["skip"])
        batches = iter(batches_of(job, rows, tokenizer))
        next(batches, None)  # nothing is left where the shuffle buffer held all rows that were
    del batches  # ends the workers, whose memory is known when they have ended
    peak_mib = memory.peak_mib()
    return {
        "import_seconds": import_seconds,
        "tokenizer_seconds": starting.seconds,
        "seconds": reading.seconds,
        "peak_mib": peak_mib,
        "is_right": marks_of(iter(rows), job["batch_size"]) == job["next_rows"] if "next_rows" in job else None,
        "versions": VERSIONS,
    }


def marks_of(rows: Iterator[dict[str, Any]], num_rows: int) -> list[int]:
    """Check sums of the next rows."""
    return [zlib.crc32(repr(row["chosen"]).encode()) for row in itertools.islice(rows, num_rows)]


def place(job: Job) -> dict[str, Any]:
    """Go to row ``num_rows`` of a stream; which rows come next."""
    rows = streamed(job)
    reading = iter(rows)
    for _ in range(job["num_rows"]):
        next(reading)
    return {"state": rows.state_dict(), "next_rows": marks_of(reading, job["batch_size"])}


def memory(job: Job) -> dict[str, Any]:
    """Read batches for a while and watch the memory that is in use."""
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    used = Memory()
    ends = time.perf_counter() + job["seconds"]
    seen, num_pairs = [], 0
    for batch in batches_of(job, streamed(job), tokenizer):
        num_pairs += len(batch["attention_mask"]) // 2
        seen.append(used.now_mib())
        if time.perf_counter() > ends:
            break
    early, late = seen[len(seen) // 5], seen[-1]
    return {"num_pairs": num_pairs, "early_mib": early, "late_mib": late, "peak_mib": used.peak_mib()}


if __name__ == "__main__":
    do({"throughput": throughput, "first_batch": first_batch, "place": place, "memory": memory})
