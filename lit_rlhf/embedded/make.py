"""Make everything that is embedded: ``python -m lit_rlhf.embedded.make [--only data|model] [--folder FOLDER]``.

The data are the same bits everywhere. The model takes about ten minutes on two CPU cores, and its weights depend on the
machine's arithmetic in their last digits. ``--reward_run RUN`` ships the adapter of a finished reward run instead.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lit_rlhf.embedded import ASSETS
from lit_rlhf.embedded.reward_adapter import shrink
from lit_rlhf.embedded.rows import SPLITS, demonstration_rows, preference_rows, prompt_rows, ranking_rows

DATA_SETS: dict[str, Callable[[str], Iterator[Mapping[str, Any]]]] = {
    "dpo": preference_rows,
    "reward": ranking_rows,
    "sft": demonstration_rows,
    "prompts": prompt_rows,
}


COMPRESSED = {"reward"}
"""Data sets of a megabyte and more, which are shipped as .jsonl.gz."""


def make_data(folder: Path) -> None:
    """Write ``<data set>_<split>.jsonl``, or ``.jsonl.gz``, for every data set and split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in DATA_SETS.items():
        for split in SPLITS:
            lines = [json.dumps(row) + "\n" for row in rows(split)]
            content = "".join(lines).encode()
            if name in COMPRESSED:
                (folder / f"{name}_{split}.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                (folder / f"{name}_{split}.jsonl").write_bytes(content)


def main(arguments: list[str] | None = None) -> None:
    """Make the data, the model or both, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m lit_rlhf.embedded.make", description="Remake what is embedded.")
    parser.add_argument("--only", choices=("data", "model"), help="make only this")
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where to write; the package itself by default")
    parser.add_argument("--reward_run", type=Path, help="ship this run's adapter as the embedded reward model, only")
    options = parser.parse_args(arguments)
    if options.reward_run is not None:
        shrink(options.reward_run, options.folder / "reward_adapter")
        return
    if options.only != "model":
        make_data(options.folder)
    if options.only != "data":
        from lit_rlhf.embedded import tiny_llama  # imports transformers, which the data do without

        tiny_llama.make(options.folder / "tiny_llama", report=partial(print, flush=True))


if __name__ == "__main__":
    main()
