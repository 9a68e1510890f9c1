"""Rows of Anthropic's HH files (two whole dialogues each) as prompt, chosen and rejected."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

ASSISTANT = "\n\nAssistant:"


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a .jsonl or .jsonl.gz file whose two dialogues answer one prompt, and answer it differently."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            row = json.loads(line)
            turns = {key: row[key].rpartition(ASSISTANT) for key in ("chosen", "rejected")}
            chosen, rejected = turns["chosen"], turns["rejected"]
            if chosen[0] == rejected[0] and chosen[2].strip() and rejected[2].strip() and chosen[2] != rejected[2]:
                yield {"prompt": chosen[0] + ASSISTANT, "chosen": chosen[2], "rejected": rejected[2]}
