"""What TRL makes of preference rows: token ids of prompt, chosen and rejected, for tests/datamodules to compare with.

Run in an environment of its own with TRL 1.16, only when rows are added:

    python benchmarks/parity/dpo_tokens.py tests/golden/trl_dpo_tokens

The folder holds a tokenizer and ``rows.json``; the answer goes to ``tokens.json`` beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOTrainer


def tokens_of(row: dict, tokenizer: object) -> list[list[int]]:
    """Let TRL's trainer prepare a data set of this one row."""
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None)
    (pair,) = DPOTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tokenizer, args, "golden")
    return [pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]]


def main(folder: Path) -> None:
    """Write the tokens of every row in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "rows.json").read_text())
    lines = ",\n".join(json.dumps(tokens_of(row, tokenizer)) for row in rows)
    (folder / "tokens.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
