"""What ``estimate`` predicts beside what real steps take: the table of docs/estimate.md.

    python benchmarks/estimate.py                   all settings, each in a fresh process; minutes
    python benchmarks/estimate.py --only "DPO"      those whose names begin so

Memory is what torch's allocator gave out on a CPU, phase by phase, of models with random weights; it does not depend on
how fast the machine is. The estimate reads what the command line reads: the configuration, and the data's lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import commit, hardware
from transformers import AutoConfig, AutoModelForCausalLM

from lit_rlhf.commands.estimate_config import Said, read
from lit_rlhf.embedded import resolve
from lit_rlhf.estimating.advice import advise
from lit_rlhf.estimating.phases import memory

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "estimate"
PAGE = HERE.parent / "docs" / "estimate.md"
SIZES = {
    **{"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8},
    **{"num_key_value_heads": 4, "vocab_size": 2000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 32},
    "gemma2": {"model_type": "gemma2", **SIZES, "head_dim": 32},
    "phi3": {"model_type": "phi3", **SIZES},
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 8, "vocab_size": 2000},
    "mixtral": {"model_type": "mixtral", **SIZES, "num_hidden_layers": 3},
}
PAIRS = ["--data.batch_size", "64", "--data.token_budget", "1024"]
REWARD = "[{reward: {class_path: lit_rlhf.rewards.FunctionReward, init_args: {function: %s}}}]"
ROLLOUTS = [
    *("--model.rewards", REWARD % "lit_rlhf.embedded.world.true_score_of_chat"),
    *("--data.batch_size", "32", "--model.updates.token_budget", "1024"),
]
HALF = ["--model.backbone.dtype", "bfloat16"]
LLAMA_3_8B = {
    **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "dtype": "bfloat16"},
}
CARDS = (12, 16, 24, 80)
"""Sizes of cards, in GB."""
AT_ONCE = ["--data.batch_size", "8", "--model.updates.token_budget", "4096", "--model.updates.num_minibatches", "1"]
"""What is drawn fits one pass, whose graph waits for the first step."""
AGAIN = ["--model.backbone.gradient_checkpointing", "true"]
WHOLE = ["--model.backbone.lora.enabled", "false"]
PLANS: dict[str, tuple[str, str, list[str]]] = {
    "SFT": ("sft", "llama", PAIRS),
    "SFT, bfloat16": ("sft", "llama", [*PAIRS, *HALF]),
    "SFT, all weights": ("sft", "llama", [*PAIRS, *WHOLE]),
    "reward model": ("reward", "llama", [*PAIRS, "--model.backbone.lora.enabled", "true"]),
    "reward model, all weights": ("reward", "llama", PAIRS),
    "DPO": ("dpo", "llama", PAIRS),
    "DPO, recomputed": ("dpo", "llama", [*PAIRS, *AGAIN]),
    "DPO, NF4": ("dpo", "llama", [*PAIRS, "--model.backbone.quantization", "nf4"]),
    "DPO, Qwen3": ("dpo", "qwen3", PAIRS),
    "DPO, Gemma 2": ("dpo", "gemma2", PAIRS),
    "DPO, Phi-3, bfloat16": ("dpo", "phi3", [*PAIRS, *HALF]),
    "DPO, GPT-2": ("dpo", "gpt2", PAIRS),
    "DPO, Mixtral, bfloat16": ("dpo", "mixtral", [*PAIRS, *HALF]),
    "PPO": ("ppo", "llama", ROLLOUTS),
    "PPO, shared critic": ("ppo", "llama", [*ROLLOUTS, "--model.critic.kind", "shared"]),
    "PPO, in one pass": ("ppo", "llama", [*ROLLOUTS, *AT_ONCE]),
    "PPO, shared critic, in one pass": ("ppo", "llama", [*ROLLOUTS, *AT_ONCE, "--model.critic.kind", "shared"]),
    "PPO, recomputed": ("ppo", "llama", [*ROLLOUTS, *AGAIN]),
    "GRPO": ("grpo", "llama", ROLLOUTS),
    "GRPO, in one pass": ("grpo", "llama", [*ROLLOUTS, *AT_ONCE]),
    "RLOO": ("rloo", "llama", ROLLOUTS),
    "REINFORCE": ("reinforce", "llama", ROLLOUTS),
    "online DPO": ("online_dpo", "llama", ROLLOUTS),
}


def make_model(family: str, folder: Path) -> None:
    """A model with random weights that speaks the embedded default's tokens."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES[family])).save_pretrained(folder)
    for file in Path(resolve("embedded:tiny_llama")).glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(Path(resolve("embedded:tiny_llama")) / "chat_template.jinja", folder)


def compare(name: str, work: Path) -> dict[str, Any]:
    """Predict and measure one setting."""
    algorithm, family, changes = PLANS[name]
    folder = work / family
    if not folder.is_dir():
        make_model(family, folder)
    words = ["--config", str(HERE.parent / "configs" / f"{algorithm}.yaml")]
    words += ["--model.backbone.name_or_path", str(folder), *changes]
    run, _ = read(words, Said())
    needed = memory(run)
    given, found = work / "plan.json", work / "found.json"
    given.write_text(json.dumps({"words": words, "folder": str(work)}))
    paths = os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    probe = [sys.executable, str(HERE / "sides" / "estimate_probe.py"), str(given), str(found)]
    subprocess.run(probe, env=environment, stdout=sys.stderr, check=True)
    measured = json.loads(found.read_text())
    return {
        "name": name,
        "origin": needed.origin,
        "predicted": {phase: needed.peaks[phase] for phase in measured},
        "measured": measured,
        "static": needed.static,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """One line per phase of each setting, and the largest error of the peaks."""
    head = ["run", "phase", "counted by", "predicted, MB", "measured, MB", "ratio"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --- | --- | --- | --- |"]
    for run in runs:
        for phase, measured in run["measured"].items():
            predicted = run["predicted"][phase]
            worst = "**" if measured == max(run["measured"].values()) else ""
            cells = [run["name"], f"{worst}{phase}{worst}", run["origin"]]
            sizes = [f"{predicted / 1e6:.1f}", f"{measured / 1e6:.1f}", f"{predicted / measured:.3f}"]
            lines.append(f"| {' | '.join([*cells, *sizes])} |")
    errors = [abs(error_of_peak(run)) for run in runs]
    mean = sum(errors) / len(errors)
    lines.append(f"\nThe peak of a run (bold) is at most {max(errors):.1%} off, {mean:.1%} on average.")
    return "\n".join(lines)


def error_of_peak(run: dict[str, Any]) -> float:
    """By what share the predicted peak of a run is too high."""
    return max(run["predicted"].values()) / max(run["measured"].values()) - 1.0


def main() -> None:
    """Compare what is asked for, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="settings whose names begin so (none: tables alone)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the results, without .json and .md")
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    known = {run["name"]: run for run in json.loads(file.read_text())["runs"]} if file.is_file() else {}
    with tempfile.TemporaryDirectory() as work:
        for name in PLANS:
            if name.startswith(options.only or ""):
                known[name] = compare(name, Path(work))
                keep([known[each] for each in PLANS if each in known], options.out)
    tables = {"cards": cards_table(), "measured": table([known[name] for name in PLANS if name in known])}
    print(*tables.values(), sep="\n\n")
    if options.out == RESULTS:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")


def cards_table() -> str:
    """What `configs/llama3_8b/ppo_qlora.yaml` needs, and what to change for smaller cards."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(LLAMA_3_8B))
        words = ["--config", str(HERE.parent / "configs" / "llama3_8b" / "ppo_qlora.yaml")]
        run, _ = read(words, Said(model_config=file, prompt_tokens=512))
    peak = memory(run).peak
    lines = ["| card | peak as it is | to fit, append | peak then |", "| --- | --- | --- | --- |"]
    for size in CARDS:
        changes = list(advise(run, size * 1e9))
        flags = " ".join(f"`{change.flags}`" for change in changes) or "nothing"
        left = changes[-1].peak if changes else peak
        lines.append(f"| {size} GB | {peak / 1e9:.2f} GB | {flags} | {left / 1e9:.2f} GB |")
    return "\n".join(lines)


def rewritten(page: str, tables: dict[str, str]) -> str:
    """The page with each table between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    for name, told in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{told}\n\n{end}{rest.split(end)[1]}"
    return page


def keep(runs: list[dict[str, Any]], out: Path) -> None:
    """Write results as far as they are known."""
    about = {"hardware": hardware("cpu"), "torch": torch.__version__, "transformers": transformers.__version__}
    about["commit"] = commit()
    out.with_suffix(".json").write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
    told = "; ".join(f"{name} {value}" for name, value in about.items())
    out.with_suffix(".md").write_text(f"# Estimated and measured\n\n{table(runs)}\n\n{told}.\n")


if __name__ == "__main__":
    main()
