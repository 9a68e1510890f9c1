"""What a user says about where rows come from. A plain dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """One place that rows come from.

    Args:
        path: a file (.jsonl, .ndjson, .json, .csv, .tsv, any of them with .gz, .parquet or .arrow), a glob, a folder of
            such files, a data set of the Hugging Face hub such as ``Anthropic/hh-rlhf``, or a LLaMA-Factory
            ``dataset_info.json``, of which ``dataset_info.json#one,two`` names entries.
        weight: how many times each row is seen in an epoch: 2 shows every row twice, 0.25 a random quarter of the rows,
            drawn afresh for every epoch.
        name: what to call it in counts and messages; the file or hub name unless given.
        split: split of a hub data set, or of a saved one; ``train``, ``validation`` or ``test`` after its use unless
            given.
        config: configuration of a hub data set.
        revision: branch, tag or commit of a hub data set.
        columns: names of this source's columns, by the names that the row forms are read by: ``{prompt: question}``.
        tags: names used inside conversations, by LLaMA-Factory's keys: ``{role_tag: speaker, user_tag: USER}``.
        limit: read only this many rows, from the first.
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    limit: int | None = None


# What a user may write where rows are wanted. In Python also: data sets of the `datasets` library, lists of rows beside
# other sources, and a mapping from splits to any of these.
SourceLike = str | Path | Source | list[str | Source] | list[dict[str, Any]]
