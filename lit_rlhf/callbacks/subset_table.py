"""A table of a test by subset, as benchmarks of reward models print it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

FILE = "test_table.csv"

REWARD_BENCH = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,  # 447 pairs that weigh as much as the code subsets together
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Weights of the subsets in each section: Lambert et al. (2024), RewardBench, https://arxiv.org/abs/2403.13787."""


class SubsetRow(NamedTuple):
    """One line of the table.

    Args:
        subset: its name, or what it is a mean over.
        pairs: how many.
        accuracy: share of untied pairs ordered rightly; None where all are tied.
        ties: share of pairs whose scores are equal.
        margin: mean of chosen minus rejected score; None in a section.
    """

    subset: str
    pairs: int
    accuracy: float | None
    ties: float
    margin: float | None


class SubsetTable(Callback):
    """Prints a table of ``test`` by subset and writes it to ``test_table.csv`` in the folder of the run.

    A subset is a source of the test data, or what ``data.group_by`` makes one. Where they are those of RewardBench, its
    four sections and their mean follow.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write."""
        blocks = table_of(trainer.callback_metrics)
        if not blocks or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        Console().print(_as_rich(blocks))
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FILE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(SubsetRow._fields)
            writer.writerows(
                [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row]
                for block in blocks
                for row in block
            )


def table_of(metrics: Mapping[str, Tensor]) -> list[list[SubsetRow]]:
    """The rows of the table in blocks: subsets, means, sections of RewardBench.

    Args:
        metrics: of a test: ``test/scores/{accuracy,ties,margin}``, whole and by subset, and ``test/pairs`` by subset.

    Returns:
        Blocks with at least one row; none without subsets.
    """
    begin = "test/pairs/"
    names = sorted(name.removeprefix(begin) for name in metrics if name.startswith(begin))
    subsets = [_row(metrics, name, f"/{name}", int(metrics[begin + name])) for name in names]
    if not subsets:
        return []
    num_pairs = sum(row.pairs for row in subsets)
    accuracies = [row.accuracy for row in subsets if row.accuracy is not None]
    margins = [row.margin for row in subsets if row.margin is not None]
    mean = fmean(accuracies) if accuracies else None
    ties = fmean(row.ties for row in subsets)
    over_pairs = _row(metrics, "mean over pairs", "", num_pairs)
    over_subsets = SubsetRow("mean over subsets", num_pairs, mean, ties, fmean(margins))
    return [block for block in (subsets, [over_pairs, over_subsets], reward_bench_sections(subsets)) if block]


def reward_bench_sections(subsets: Sequence[SubsetRow]) -> list[SubsetRow]:
    """Rows of RewardBench's sections, where all subsets are its own; a section needs all of its subsets.

    As there, a tie is lost: it lowers the accuracy of a section. The mean is over the four sections.
    """
    found = {row.subset: row._replace(accuracy=(row.accuracy or 0.0) * (1 - row.ties)) for row in subsets}
    if not set(found) <= {name for weights in REWARD_BENCH.values() for name in weights}:
        return []
    rows = [
        _section(section, [found[name] for name in weights], list(weights.values()))
        for section, weights in REWARD_BENCH.items()
        if set(weights) <= set(found)
    ]
    if len(rows) == len(REWARD_BENCH):
        rows.append(_section("mean over sections", rows, [1] * len(rows)))
    return rows


def _section(name: str, rows: Sequence[SubsetRow], weights: Sequence[int]) -> SubsetRow:
    accuracy = fmean([row.accuracy or 0.0 for row in rows], weights)
    ties = fmean([row.ties for row in rows], weights)
    return SubsetRow(name, sum(row.pairs for row in rows), accuracy, ties, None)


def _row(metrics: Mapping[str, Tensor], name: str, part: str, num_pairs: int) -> SubsetRow:
    accuracy = metrics.get(f"test/scores/accuracy{part}")
    return SubsetRow(
        name,
        num_pairs,
        None if accuracy is None else float(accuracy),
        float(metrics[f"test/scores/ties{part}"]),
        float(metrics[f"test/scores/margin{part}"]),
    )


def _as_rich(blocks: Sequence[Sequence[SubsetRow]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Test by subset", title_justify="left", pad_edge=False)
    for column in SubsetRow._fields:
        table.add_column(column, justify="left" if column == "subset" else "right")
    for number, block in enumerate(blocks):
        for name, pairs, *shares in block:
            cells = ["-" if share is None else f"{share:.3f}" for share in shares]
            table.add_row(name, f"{pairs:,}", *cells, style="bold" if number else None)
        table.add_section()
    return table
