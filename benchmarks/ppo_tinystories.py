"""PPO on a real small Llama that writes little stories, beside TRL 1.12: score, KL, seconds and peak memory.

    python benchmarks/ppo_tinystories.py --trl-python TRL --model DIR --prompts DIR

Both sides get the same numbers, the same rewards (Python functions of the response) and equally many samples. What
they end with is judged by fresh samples on held-out prompts, drawn by transformers alone. One thread; seconds are
processor time. A reward that is noise is the control: what grows there was not learned.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side import HERE, commit, hardware

NUMBERS: dict[str, Any] = {
    "steps": 60,
    "batch_size": 64,
    "num_ppo_epochs": 2,
    "num_minibatches": 2,
    "max_new_tokens": 48,
    "lr": 5e-4,
    "max_grad_norm": 1.0,
    "kl_coef": 0.01,
    "vf_coef": 1.0,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
}
NUM_JUDGED = 256
SIDES = ("lit_rlhf", "trl")


class Gate(NamedTuple):
    """What the judged samples must reach.

    Args:
        metric: of the judged samples.
        least: the least that it may be.
        most: the most that it may be.
    """

    metric: str
    least: float = float("-inf")
    most: float = float("inf")

    def is_passed(self, judged: dict[str, float]) -> bool:
        """Whether the samples of a run reach it."""
        return self.least <= judged[self.metric] <= self.most


GATES = {
    "positive_words": [Gate("positive_words", least=0.6), Gate("kl", least=1.0)],
    "closed_quotation": [Gate("closed_quotation", least=0.9), Gate("length", most=20)],
    "noise": [Gate("positive_words", most=0.15)],
}
COLUMNS = {
    "positive words": ("positive_words", "{:.3f}"),
    "quotation": ("closed_quotation", "{:.3f}"),
    "KL, nats": ("kl", "{:.1f}"),
    "length": ("length", "{:.1f}"),
    "CPU s": ("seconds", "{:.0f}"),
    "rollout": ("rollout", "{:.0f}"),
    "score": ("score", "{:.0f}"),
    "update": ("update", "{:.0f}"),
    "peak MiB": ("peak_mib", "{:.0f}"),
    "gate": ("gate", "{}"),
}
GATE_WORDS = {True: "passed", False: "missed", None: ""}


def train(work: Path, python: str, side: str, plan: dict[str, Any]) -> dict[str, Any]:
    """One run in a fresh process."""
    file, out = work / "plan.json", work / "measured.json"
    file.write_text(json.dumps(plan))
    script = HERE / "sides" / f"ppo_tinystories_{side}.py"
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    command = [python, str(script), str(file), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(out.read_text())


def judge(plan: dict[str, Any], policy: str) -> dict[str, float]:
    """What a stored policy writes."""
    if str(HERE / "sides") not in sys.path:
        sys.path.append(str(HERE / "sides"))
    from ppo_stories import judge

    return judge(policy, plan["model"], plan["test"], NUM_JUDGED, plan["max_new_tokens"])


def run(options: argparse.Namespace, side: str, reward: str, seed: int) -> dict[str, Any]:
    """Train one policy and judge it; or, going on, read what an earlier call noted of it."""
    work = options.work.resolve()
    note = work / f"{reward}_{side}_{seed}.json"
    if options.go_on and note.is_file():
        return json.loads(note.read_text())
    plan = {
        **NUMBERS,
        "model": str(options.model.resolve()),
        "train": str(options.prompts.resolve() / "train.jsonl"),
        "test": str(options.prompts.resolve() / "test.jsonl"),
        "scratch": str(work / "scratch"),
        "policy": str(work / "policy"),
        "reward": reward,
        "seed": seed,
    }
    measured = train(work, options.trl_python if side == "trl" else sys.executable, side, plan)
    judged = judge(plan, plan["policy"])
    passed = all(gate.is_passed(judged) for gate in GATES[reward])
    made = {"side": side, "reward": reward, "seed": seed, **measured, "judged": judged, "is_passed": passed}
    note.write_text(json.dumps(made))
    return made


def line(made: dict[str, Any]) -> list[str]:
    """What a run came to, as cells of the table."""
    values = {**made["judged"], **made, **made.get("phases", {}), "gate": GATE_WORDS[made["is_passed"]]}
    cells = [form.format(values[key]) if key in values else "" for key, form in COLUMNS.values()]
    return [made["reward"], made["side"], str(made["seed"]), *cells]


def table(runs: list[dict[str, Any]]) -> str:
    """All runs as Markdown."""
    head = ["reward", "side", "seed", *COLUMNS]
    rows = [head, ["---"] * len(head), *map(line, runs)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def write(options: argparse.Namespace, runs: list[dict[str, Any]]) -> Path:
    """JSON with every run and its course, Markdown with the table."""
    versions = {key: value for made in runs for key, value in made.get("versions", {}).items()}
    facts = {
        "hardware": hardware("cpu"),
        "load": options.load,
        "versions": versions,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": options.model.resolve().name,
        "judged_samples": NUM_JUDGED,
        **NUMBERS,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "ppo_tinystories"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value)
    stem.with_suffix(".md").write_text(f"# PPO on little stories beside TRL\n\n{table(runs)}\n\n{said}\n")
    return stem.with_suffix(".md")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", help="interpreter of an environment with TRL 1.12; without it, ours alone")
    parser.add_argument("--model", type=Path, required=True, help="folder of a small Llama that writes stories")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with their openings, train and test.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rewards", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--trl-rewards", nargs="*", choices=GATES, default=["positive_words"], help="to train TRL on")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "benchmark_ppo_tinystories")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that --work holds of an earlier call")
    parser.add_argument("--load", default="", help="what else the machine was doing, to be noted")
    return parser.parse_args()


def main() -> None:
    """Train and judge, sides alternated; exit with an error if one of our runs misses its gate."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    start = str(options.model.resolve())
    judged = judge({"model": start, "test": options.prompts / "test.jsonl", **NUMBERS}, start)
    runs = [{"side": "start", "reward": "", "seed": "", "judged": judged, "is_passed": None}]
    print(table(runs), flush=True)
    for reward in options.rewards:
        sides = SIDES if options.trl_python and reward in options.trl_rewards else SIDES[:1]
        for seed in options.seeds:
            for side in sides:
                runs.append(run(options, side, reward, seed))
                print("| " + " | ".join(line(runs[-1])) + " |", flush=True)
    print(write(options, runs))
    if missed := [made for made in runs if made["side"] == "lit_rlhf" and not made["is_passed"]]:
        sys.exit("gate missed: " + ", ".join(f"{made['reward']} with seed {made['seed']}" for made in missed))


if __name__ == "__main__":
    main()
