"""Every algorithm trained while things go wrong: what was injected, what was survived, and how many rows were lost.

    python benchmarks/soak.py --faults 6 --out benchmarks/results

A run is started, a fault strikes at a moment that is drawn, and the run is started again with ``--ckpt_path=auto``,
until it has ended by itself. Then its weights must be those of a run that nothing happened to, to the bit, and it must
have read the same rows. Faults: SIGKILL; SIGTERM; SIGKILL and a damaged newest checkpoint; a disk without room for the
next checkpoint; a reward server that is gone. Besides, in all of these runs the rows are mixed with broken ones, and
the reward server answers late, wrongly or not at all now and then.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from side_by_side import commit, hardware
from soaking.faults import FAULTS, Attempt, Ended, undisturbed
from soaking.server import FlakyServer
from soaking.tasks import EPOCHS, TASKS, Task, overlay, write_rows

from lit_rlhf.checkpoints.folder import newest_valid

CONFIGS = Path(__file__).parents[1] / "configs"
COLUMNS = (
    "algorithm",
    "steps",
    "starts",
    *FAULTS,
    "server faults",
    "examples read",
    "rows broken",
    "rows lost",
    "same weights",
)


class Soaked:
    """One algorithm, and what became of it.

    Args:
        task: which algorithm.
        folder: scratch.
        seed: of all that is drawn.
        num_broken: rows among the others that cannot be used.
    """

    def __init__(self, task: Task, folder: Path, seed: int, num_broken: int) -> None:
        self.task, self.folder, self.draw = task, folder, random.Random(f"{seed}:{task.name}")
        self.num_broken, self.seed = num_broken, seed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.num_examples = write_rows(task, folder / "rows.jsonl", num_broken, seed)
        self.problems: list[str] = []

    def run(self, num_faults: int) -> dict[str, Any]:
        """Train undisturbed, then with faults, and compare."""
        began = time.monotonic()
        with FlakyServer(self.seed, late=1.5, is_flaky=False) as server:
            ended = undisturbed(self._attempt("plain", server, 0.0))
        seconds = time.monotonic() - began
        if ended.status:
            raise RuntimeError(f"{self.task.name}: the undisturbed run failed, see {self.folder / 'plain.log'}")
        struck: collections.Counter[str] = collections.Counter()
        starts = 0
        with FlakyServer(self.seed, late=1.5, is_flaky=True) as server:
            while True:
                is_disturbed = struck.total() < num_faults
                name, ended = self._start_again(server, seconds, is_disturbed)
                starts += 1
                struck.update([name] if ended.has_struck else [])
                self._look(name, ended)
                if ended.status == 0 and self._has_ended():
                    break
                if starts > 4 * num_faults + 20:
                    self.problems.append(f"does not come to an end in {starts} starts")
                    break
            counts = server.counts
        return self._compare(struck, starts, counts)

    def _start_again(self, server: FlakyServer, seconds: float, is_disturbed: bool) -> tuple[str, Ended]:
        if not is_disturbed:
            return "", undisturbed(self._attempt("disturbed", server, 0.0))
        names = [name for name in FAULTS if self.task.has_rollouts or name != "rewards gone"]
        name = self.draw.choice(names)
        return name, FAULTS[name](self._attempt("disturbed", server, self.draw.uniform(0.5, seconds / 2)))

    def _attempt(self, name: str, server: FlakyServer, seconds: float) -> Attempt:
        run, file = self.folder / name, self.folder / f"{name}.yaml"
        url = server.url if self.task.has_rollouts else None
        file.write_text(yaml.safe_dump(overlay(self.task, self.folder / "rows.jsonl", run, url), sort_keys=False))
        command = [sys.executable, "-m", "lit_rlhf", "fit", "--config", str(CONFIGS / f"{self.task.name}.yaml")]
        command += ["--config", str(file), "--ckpt_path=auto"]
        asks = server if self.task.has_rollouts else None
        return Attempt(command, self.folder / f"{name}.log", run / "checkpoints", seconds, asks, self.draw)

    def _look(self, name: str, ended: Ended) -> None:
        """After each end: a good checkpoint must be there if there ever was one, and no scraps of one."""
        place = self.folder / "disturbed" / "checkpoints"
        found = newest_valid(place).path if place.is_dir() else None
        if found is None and place.is_dir() and any(place.glob("*.ckpt")):
            self.problems.append(f"no good checkpoint after: {name} {ended.note}".strip())

    def _has_ended(self) -> bool:
        return any((self.folder / "disturbed").glob("*.safetensors"))

    def _compare(
        self, struck: collections.Counter[str], starts: int, counts: collections.Counter[str]
    ) -> dict[str, Any]:
        plain, disturbed = (_weights(self.folder / name) for name in ("plain", "disturbed"))
        said = [_data_line(self.folder / f"{name}.log") for name in ("plain", "disturbed")]
        read, dropped = _rows(said[1])
        lost = EPOCHS * (self.num_examples + self.num_broken) - read - dropped
        if said[0] != said[1]:
            self.problems.append(f"counts differ: {said[0]} | {said[1]}")
        scraps = [file.name for file in (self.folder / "disturbed" / "checkpoints").iterdir() if file.suffix != ".ckpt"]
        if scraps:
            self.problems.append(f"left beside the checkpoints: {', '.join(scraps)}")
        return {
            "algorithm": self.task.name,
            "steps": EPOCHS * -(-(self.task.num_rows + self.num_broken) // self.task.batch_size),
            "starts": starts,
            **{name: struck[name] for name in FAULTS},
            "server faults": counts.total() - counts["answered"],
            "examples read": read,
            "rows broken": dropped,
            "rows lost": lost,
            "same weights": "yes" if plain == disturbed else "NO",
            "problems": self.problems,
            "server": dict(counts),
        }


def _weights(folder: Path) -> dict[str, str]:
    """Digest of every file of weights that a run left."""
    files = [file for file in folder.rglob("*.safetensors") if "checkpoints" not in file.parts]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _data_line(log: Path) -> str:
    """What a run says of its rows, at its end."""
    lines = re.findall(r"^data: .*$", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return lines[-1] if lines else ""


def _rows(line: str) -> tuple[int, int]:
    """Examples that were used, and rows that were dropped, of what a run says."""
    counts = {name: int(number) for name, number in re.findall(r"([\w/]+) (\d+)(?:,|$)", line.removeprefix("data: "))}
    used = next((counts[name] for name in ("pairs", "texts", "prompts") if name in counts), 0)
    return used, sum(number for name, number in counts.items() if name.startswith("dropped/"))


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table in Markdown, with the conditions."""
    lines = ["# Soak", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    injected = sum(row[name] for row in rows for name in FAULTS)
    problems = [f"- {row['algorithm']}: {problem}" for row in rows for problem in row["problems"]]
    survived = injected if not problems and all(row["same weights"] == "yes" for row in rows) else "not all"
    lost = sum(row["rows lost"] for row in rows)
    lines += ["", f"Faults injected: {injected}. Faults survived: {survived}. Rows lost: {lost}.", "", *problems]
    facts = {
        "hardware": hardware("cpu").replace("one thread of", "cores:"),
        "python": sys.version.split()[0],
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": options.seed,
        "faults per algorithm": options.faults,
        "command": f"python benchmarks/soak.py --faults {options.faults} --seed {options.seed}",
    }
    return "\n".join([*lines, *(f"- {key}: {value}" for key, value in facts.items())]) + "\n"


def main() -> None:
    """Soak all algorithms, one after another, and write what came of it, as far as it has come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=6, help="faults that strike each algorithm")
    parser.add_argument("--broken-rows", type=int, default=40, help="rows among the others that cannot be used")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--only", nargs="*", default=[task.name for task in TASKS], help="algorithms")
    parser.add_argument("--work", type=Path, default=Path("runs/soak"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CONFIGS.parent), os.environ.get("PYTHONPATH", "")])
    rows: list[dict[str, Any]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        if task.name in options.only:
            soaked = Soaked(task, options.work.resolve() / task.name, options.seed, options.broken_rows)
            rows.append(soaked.run(options.faults))
            print(json.dumps(rows[-1]), flush=True)
            (options.out / "soak.json").write_text(json.dumps(rows, indent=1) + "\n")
            (options.out / "soak.md").write_text(report(rows, options))
    print(report(rows, options))
    if any(row["problems"] or row["rows lost"] or row["same weights"] != "yes" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
