"""Preference pairs about pictures out of NLVR: rows of ``image``, ``prompt``, ``chosen`` and ``rejected``."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Conversations that hold their pictures, so that they can be read from anywhere; one row for each picture.

    Args:
        path: a .jsonl file; pictures are named relative to its folder.
    """
    seen = set()
    with path.open() as lines:
        for line in lines:
            row = json.loads(line)
            if row["image"] in seen:
                continue
            seen.add(row["image"])
            picture = base64.b64encode((path.parent / row["image"]).read_bytes()).decode()
            yield {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")},
                "images": [{"bytes": picture}],
            }


def texts_of(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows say, to train a tokenizer on."""
    return [row[key][0]["content"] for row in rows for key in ("prompt", "chosen", "rejected")]
