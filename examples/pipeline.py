"""The whole path on the embedded default: SFT, then a reward model, DPO and PPO, and one page that compares them.

    python examples/pipeline.py --folder runs/pipeline          (the same: make pipeline)

Every step is a plain command, printed before it runs: with other files behind --data.train, --prompts and
name_or_path it trains on your own. A step that is finished is not run again, and one that was interrupted goes on from
its last checkpoint: start the same line again. The end is FOLDER/report.html, and a table of answers to held-out
prompts, by the true preference of the embedded world (docs/pipeline.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_rlhf.callbacks.sampled_score import win_rate
from lit_rlhf.embedded.facts import facts_by_question
from lit_rlhf.embedded.world import is_right, true_score

CONFIGS = os.path.relpath(Path(__file__).parents[1] / "configs")
MODELS = ("base", "sft", "dpo", "ppo")
ASKED = ("--prompts", "embedded:prompts_test.jsonl", "--max_new_tokens", "64", "--batch_size", "143")
_NUM_SAMPLES = 6

Row = dict[str, Any]


def training(folder: Path) -> Iterator[list[str]]:
    """The four runs. Each later one goes on from the adapter that SFT left."""

    def fit(name: str, *words: str) -> list[str]:
        place = f"--trainer.default_root_dir={folder / name}"
        return ["fit", "--config", f"{CONFIGS}/{name}.yaml", *words, place, "--ckpt_path=auto"]

    begin = f"--model.backbone.adapter={folder / 'sft'}"
    reward = f"{{class_path: lit_rlhf.rewards.ModelReward, init_args: {{model: {folder / 'reward'}}}}}"
    yield fit("sft")
    yield fit(
        "reward", begin, "--model.backbone.lora.enabled=true", "--model.optimizer.lr=3e-3", "--trainer.max_epochs=1"
    )
    # What SFT has learnt is easily lost at the rate that suits the untrained model.
    yield fit("dpo", begin, "--model.optimizer.lr=1e-4")
    yield fit("ppo", begin, f"--model.rewards=[{{reward: {reward}}}]")


def asking(folder: Path) -> Iterator[list[str]]:
    """The same prompts to all four models, and the reward model's scores of what they answer."""
    for name in MODELS:
        whose = [str(folder / "sft"), "--reference"] if name == "base" else [str(folder / name), "--kl"]
        yield ["generate", *whose, *ASKED, "--out", str(folder / f"answers_{name}.jsonl")]
    files = [str(folder / f"answers_{name}.jsonl") for name in MODELS]
    yield ["score", str(folder / "reward"), *files, "--out", str(folder / "scores.jsonl")]


def run(words: Sequence[str], folder: Path) -> None:
    """Print a command and run it, unless FOLDER/finished.txt knows it already.

    Raises:
        SystemExit: with the status of the command where it failed.
    """
    finished = folder / "finished.txt"
    line = shlex.join(["python", "-m", "lit_rlhf", *words])
    is_finished = finished.is_file() and line in finished.read_text(encoding="utf-8").splitlines()
    print(f"\n$ {line}{'     (finished before)' if is_finished else ''}", flush=True)
    if is_finished:
        return
    if "--out" in words:  # what an interrupted step left of it
        Path(words[words.index("--out") + 1]).unlink(missing_ok=True)
    if status := _status([sys.executable, "-m", "lit_rlhf", *words]):
        print("\nThat step did not end. The same line goes on from here.", file=sys.stderr)
        raise SystemExit(status)
    with finished.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def compare(folder: Path) -> tuple[list[Row], list[Row]]:
    """What the four models are worth, and what they say.

    Returns:
        A row per model, and a row per prompt for the first few prompts.
    """
    answers = {name: _rows(folder / f"answers_{name}.jsonl") for name in MODELS}
    judged = iter(_rows(folder / "scores.jsonl"))
    scores = {name: [next(judged)["score"] for _ in rows] for name, rows in answers.items()}
    true = {name: [true_score(row["prompt"], row["response"]) for row in rows] for name, rows in answers.items()}
    table = [
        {
            "model": name,
            "true score": round(statistics.fmean(true[name]), 2),
            "standard error": round(statistics.stdev(true[name]) / len(rows) ** 0.5, 2),
            "right (%)": round(100 * statistics.fmean(map(_is_right, rows))),
            "better than sft (%)": None if name == "sft" else round(100 * win_rate(true[name], true["sft"])),
            "reward model's score": round(statistics.fmean(scores[name]), 2),
            "KL from base (nats)": round(statistics.fmean(row.get("kl", 0.0) for row in rows), 2),
            "length (tokens)": round(statistics.fmean(row["length"] for row in rows), 1),
        }
        for name, rows in answers.items()
    ]
    samples = [
        {
            "prompt": rows[0]["prompt"][-1]["content"],
            **dict(zip(MODELS, (row["response"] for row in rows), strict=True)),
        }
        for rows in zip(*answers.values(), strict=True)
    ]
    return table, samples[:_NUM_SAMPLES]


def show(table: Sequence[Row]) -> None:
    """Print rows with the same keys: a column for each, named by the first key."""
    _, *keys = table[0]
    shown = Table("", *(str(row["model"]) for row in table), box=None, header_style="bold")
    for column in shown.columns[1:]:
        column.justify = "right"
    for key in keys:
        shown.add_row(key, *("" if row[key] is None else str(row[key]) for row in table))
    Console().print(shown)


def main(words: Sequence[str] | None = None) -> list[Row]:
    """Take the whole path.

    Args:
        words: of the command line; those of the process where None.

    Returns:
        What each model is worth.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/pipeline"), help="where everything goes")
    parser.add_argument("more", nargs="*", metavar="-- WORDS", help="more words for each of the four runs")
    args = parser.parse_args(words)
    began = time.monotonic()
    args.folder.mkdir(parents=True, exist_ok=True)
    for step in training(args.folder):
        run([*step, *args.more], args.folder)
    for step in asking(args.folder):
        run(step, args.folder)
    table, samples = compare(args.folder)
    (args.folder / "comparison.json").write_text(json.dumps(tables_of(table, samples), indent=2), encoding="utf-8")
    runs = [str(args.folder / name) for name in ("sft", "reward", "dpo", "ppo")]
    tables, page = str(args.folder / "comparison.json"), str(args.folder / "report.html")
    run(["report", *runs, "--tables", tables, "--out", page], args.folder)
    print()
    show(table)
    print(f"\n{page}  ({(time.monotonic() - began) / 60:.1f} minutes)")
    return table


def tables_of(table: list[Row], samples: list[Row]) -> list[Row]:
    """What the page begins with, as docs/report.md describes it."""
    note = "One answer to each of the 143 prompts of the test split; the best score is 3 (docs/embedded_default.md)."
    return [
        {"title": "The true preference", "note": note, "rows": table},
        {"title": "Answers", "note": "The first prompts of the test split.", "rows": samples},
    ]


def _status(command: list[str]) -> int:
    """Run a command; Ctrl-C is its own affair, so that it saves what it has."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _is_right(row: Row) -> bool:
    return is_right(facts_by_question()[row["prompt"][-1]["content"]], row["response"])


def _rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
