"""Our side of ``benchmarks/data.py``: one job, measured in this process."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from data_meter import Clock, Job, Memory, do, forget, seconds_alive

import lit_rlhf
from datamodules import PreferenceDataModule
from lit_rlhf.types import PreferenceBatch, num_sequence_tokens

WIDE = 1 << 20  # tokens: nothing is cut
VERSIONS = {package.__name__: package.__version__ for package in (lit_rlhf, torch, transformers)}


def open_data(job: Job) -> PreferenceDataModule:
    """The data module that a user would write down."""
    return PreferenceDataModule(
        train=job["file"],
        tokenizer=job["tokenizer"],
        batch_size=job["batch_size"],
        token_budget=8192,
        max_length=WIDE,
        num_workers=job.get("num_workers", 0),
    )


def throughput(job: Job) -> dict[str, Any]:
    """Read a file to its end, as batches."""
    data = open_data(job)
    assert data.tokenizer.is_fast  # loads it
    num_tokens = num_pairs = 0
    with Clock() as clock:
        for batch in data.train_dataloader():
            num_tokens += sum(num_sequence_tokens(pairs.forest) for pairs in batch.micro_batches)
            num_pairs += batch.num_pairs
    times = {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    return {**times, "num_tokens": num_tokens, "num_pairs": num_pairs, "versions": VERSIONS}


def first_batch(job: Job) -> dict[str, Any]:
    """Open a file nobody has looked at and make the first batch, or, given ``state``, the one that comes next."""
    import_seconds, memory = seconds_alive(), Memory()
    forget(job["file"])
    with Clock() as loading:
        data = open_data(job)
        assert data.tokenizer.is_fast
    with Clock() as reading:
        data.setup("fit")
        if "state" in job:
            data.load_state_dict(job["state"])
        loader = data.train_dataloader()
        batches = iter(loader)
        batch = next(batches)
    del batches  # ends the workers, whose memory is known when they have ended
    with Clock() as counting:
        len(loader)  # what a Trainer asks before it begins, where it trains for a number of epochs
    return {
        "import_seconds": import_seconds,
        "tokenizer_seconds": loading.seconds,
        "seconds": reading.seconds,
        "length_seconds": counting.seconds,
        "peak_mib": memory.peak_mib(),
        "is_right": rows_of(batch) == job["next_rows"] if "next_rows" in job else None,
        "versions": VERSIONS,
    }


def rows_of(batch: PreferenceBatch) -> list[str]:
    """Addresses of the rows of a batch, sorted."""
    return sorted(row for pairs in batch.micro_batches for row in pairs.rows)


def state_at(data: PreferenceDataModule, fraction: float) -> tuple[dict[str, Any], list[str]]:
    """What a checkpoint would hold after ``fraction`` of the first epoch; the rows of the batch that comes next.

    Rows are read but not tokenised on the way there, which no measurement sees.
    """
    loader = data.train_dataloader()
    stream = loader.dataset
    make_batch, stream.make_batch = stream.make_batch, lambda rows, cursor: PreferenceBatch((), {}, cursor)
    batches = iter(loader)
    for _ in range(max(1, int(fraction * len(loader)))):
        cursor = next(batches).cursor
    stream.make_batch = make_batch
    return {**data.state_dict(), "cursor": list(cursor)}, rows_of(next(batches))


def place(job: Job) -> dict[str, Any]:
    """Go to ``fraction`` of a file."""
    state, next_rows = state_at(open_data(job), job["fraction"])
    return {"state": state, "next_rows": next_rows}


def memory(job: Job) -> dict[str, Any]:
    """Read batches for a while and watch the memory that is in use."""
    data = open_data(job)
    assert data.tokenizer.is_fast
    used = Memory()
    ends = time.perf_counter() + job["seconds"]
    seen, num_pairs = [], 0
    for batch in data.train_dataloader():
        num_pairs += batch.num_pairs
        seen.append(used.now_mib())
        if time.perf_counter() > ends:
            break
    early, late = seen[len(seen) // 5], seen[-1]
    return {"num_pairs": num_pairs, "early_mib": early, "late_mib": late, "peak_mib": used.peak_mib()}


if __name__ == "__main__":
    do({"throughput": throughput, "first_batch": first_batch, "place": place, "memory": memory})
