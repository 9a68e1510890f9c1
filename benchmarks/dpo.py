"""DPO beside TRL 1.16 on real preference pairs: tokens per second and peak memory.

Fresh process for every measurement, sides alternated, medians. A real token is one of prompt + response, the prompt
counted once per response, padding never. On a CPU, time is processor time of one thread, and TRL is given the
response-only head that it has on a GPU. On a GPU, time is on the clock.

    python benchmarks/dpo.py --trl-python /path/to/trl/bin/python --data hh.jsonl.gz --out benchmarks/results
    python benchmarks/dpo.py ... --device cuda --arch reference --dtype bfloat16 --quantization nf4

The model has random weights, its tokenizer is a BPE trained on the rows; both are made in ``--work``.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
ASSISTANT = "\n\nAssistant:"
TOKENIZER_SIZE = 4800

# hidden, layers, heads, MLP, vocabulary. The head of "proxy" has the share of the work that it has in "reference".
ARCHITECTURES = {
    "tiny": (64, 2, 4, 128, TOKENIZER_SIZE),
    "proxy": (512, 8, 8, 1376, TOKENIZER_SIZE),
    "reference": (4096, 32, 32, 11008, 151_936),
}


def trl(gradient_checkpointing: bool, cached_reference: bool) -> dict[str, Any]:
    """A setting of TRL's side."""
    return {
        "side": "trl",
        "gradient_checkpointing": gradient_checkpointing,
        "cached_reference": cached_reference,
    }


def ours(
    cached_reference: bool = False,
    gradient_checkpointing: bool = False,
    fused: bool = True,
    token_budget: int = 4096,
) -> dict[str, Any]:
    """A setting of our side."""
    return {
        "side": "lit_rlhf",
        "cached_reference": cached_reference,
        "gradient_checkpointing": gradient_checkpointing,
        "fused": fused,
        "token_budget": token_budget,
    }


DEFAULT, CAREFUL = "TRL default (checkpointing, live reference)", "TRL careful (no checkpointing, cached reference)"
SETTINGS = {
    DEFAULT: trl(gradient_checkpointing=True, cached_reference=False),
    CAREFUL: trl(gradient_checkpointing=False, cached_reference=True),
    "stock layers, live reference": ours(fused=False),
    "stock layers, cached reference": ours(fused=False, cached_reference=True),
    "stock layers, cached reference, checkpointing": ours(
        fused=False, cached_reference=True, gradient_checkpointing=True
    ),
    "fused layers, live reference": ours(),
    "fused layers, cached reference": ours(cached_reference=True),
    "fused layers, cached reference, 512 tokens a micro-batch": ours(cached_reference=True, token_budget=512),
    "fused layers, cached reference, checkpointing": ours(cached_reference=True, gradient_checkpointing=True),
}


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of an HH file whose two dialogues answer one prompt, as prompt, chosen, rejected."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            row = json.loads(line)
            turns = {key: row[key].rpartition(ASSISTANT) for key in ("chosen", "rejected")}
            chosen, rejected = turns["chosen"], turns["rejected"]
            if chosen[0] == rejected[0] and chosen[2].strip() and rejected[2].strip() and chosen[2] != rejected[2]:
                yield {"prompt": chosen[0] + ASSISTANT, "chosen": chosen[2], "rejected": rejected[2]}


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds <s> before a text, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_model(arch: str, dtype: str, device: str, folder: Path) -> None:
    """A Llama with random weights."""
    hidden, layers, heads, mlp, vocabulary = ARCHITECTURES[arch]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype=dtype,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)


def prepare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make model, tokenizer and rows; what both sides are told."""
    rows = list(read_rows(options.data))
    tokenizer = train_tokenizer([text for row in rows for text in row.values()])
    make_model(options.arch, options.dtype, options.device, work / "model")
    tokenizer.save_pretrained(work / "model")
    rows = [row for row in rows if len(tokenizer(row["prompt"]).input_ids) < options.max_length]  # else TRL drops it
    needed = options.batch_size * (options.steps + options.warmup)
    if len(rows) < needed:
        raise ValueError(f"{options.data} holds {len(rows)} usable rows, {needed} are needed")
    shutil.rmtree(work / "reference_logprobs", ignore_errors=True)  # of an earlier run with other rows
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:needed]))
    return {
        "model": str(work / "model"),
        "rows": str(work / "rows.jsonl"),
        "cache": str(work / "reference_logprobs"),
        "scratch": str(work / "scratch"),
        "lora": {"r": 16, "lora_alpha": 32},
        "steps": options.steps + options.warmup,
        "warmup": options.warmup,
        **{name: getattr(options, name) for name in ("batch_size", "max_length", "device", "dtype", "quantization")},
    }


def measure(plan: Path, setting: dict[str, Any], trl_python: str) -> dict[str, Any]:
    """One setting in a fresh process."""
    out = plan.with_name("measured.json")
    python = trl_python if setting["side"] == "trl" else sys.executable
    script = HERE / "sides" / f"dpo_{setting['side']}.py"
    threads = {"OMP_NUM_THREADS": "1"} if json.loads(plan.read_text())["device"] == "cpu" else {}
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **threads, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, str(script), str(plan), json.dumps(setting), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} {setting} failed:\n{done.stdout[-3000:]}")
    return json.loads(out.read_text())


def useful_flops(arch: str, tokens: dict[str, int], live_reference: bool) -> float:
    """Multiply-adds times two that a step cannot do without: each token once, weight gradients of adapters left out."""
    hidden, layers, _, mlp, vocabulary = ARCHITECTURES[arch]
    passes = 2 + live_reference  # forward, gradient of activations, and the reference's forward
    body = layers * (4 * hidden * hidden + 3 * hidden * mlp)
    return 2.0 * passes * (tokens["unique"] * body + tokens["scored"] * hidden * vocabulary)


def summarise(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of every setting, and how they compare with TRL."""
    counts = [run["tokens"] for measured in runs.values() for run in measured]
    if len({count["real"] for count in counts}) > 1:
        raise ValueError(f"both sides must be measured on the same tokens, and were not: {counts}")
    tokens = max(counts, key=len)  # our side counts more than one kind
    rows: dict[str, dict[str, Any]] = {}
    for name, measured in runs.items():
        seconds = statistics.median(run["seconds"] for run in measured)
        rows[name] = {
            "setting": name,
            "tokens_per_second": tokens["real"] / seconds,
            "seconds_per_step": seconds / measured[0]["steps"],
            "peak_mib": statistics.median(run["peak_mib"] for run in measured),
        }
        if options.device == "cuda":
            flops = useful_flops(options.arch, tokens, not SETTINGS[name]["cached_reference"])
            rows[name]["mfu"] = flops / seconds / (options.peak_tflops * 1e12)
    for row in rows.values():
        row["times_default"] = (
            row["tokens_per_second"] / rows[DEFAULT]["tokens_per_second"] if DEFAULT in rows else None
        )
        row["times_careful"] = (
            row["tokens_per_second"] / rows[CAREFUL]["tokens_per_second"] if CAREFUL in rows else None
        )
        row["memory_of_default"] = row["peak_mib"] / rows[DEFAULT]["peak_mib"] if DEFAULT in rows else None
    return list(rows.values())


def table(summary: list[dict[str, Any]], device: str) -> str:
    """The medians as Markdown."""
    columns = {
        "DPO": ("setting", "{}"),
        "tokens / CPU s" if device == "cpu" else "tokens / s": ("tokens_per_second", "{:.1f}"),
        "x default": ("times_default", "{:.2f}"),
        "x careful": ("times_careful", "{:.2f}"),
        "CPU s / step" if device == "cpu" else "s / step": ("seconds_per_step", "{:.3f}"),
        "peak MiB": ("peak_mib", "{:.0f}"),
        "of default": ("memory_of_default", "{:.2f}"),
    }
    if device == "cuda":
        columns["MFU"] = ("mfu", "{:.3f}")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in summary:
        cells = ["" if row[key] is None else form.format(row[key]) for key, form in columns.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hardware(device: str) -> str:
    """What it ran on, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, one thread of {os.cpu_count()}"


def commit() -> str:
    """The commit that was measured, marked where the tree differs from it."""
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def write(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], summary: list[dict[str, Any]]) -> Path:
    """JSON with every run, Markdown with the table."""
    versions = {key: value for measured in runs.values() for key, value in measured[0]["versions"].items()}
    facts = {
        "hardware": hardware(options.device),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": dict(
            zip(("hidden", "layers", "heads", "mlp", "vocabulary"), ARCHITECTURES[options.arch], strict=True)
        ),
        "data": options.data.name,
        **{
            name: getattr(options, name)
            for name in ("arch", "device", "dtype", "quantization", "batch_size", "steps", "repeats", "max_length")
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"dpo_{options.arch}_{options.device}_{options.dtype}_{options.quantization}"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "summary": summary, "runs": runs}, indent=1) + "\n")
    said = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    stem.with_suffix(".md").write_text(f"# DPO beside TRL\n\n{table(summary, options.device)}\n\n{said}\n")
    return stem.with_suffix(".md")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL 1.16")
    parser.add_argument("--data", type=Path, required=True, help="rows in Anthropic's HH form, .jsonl or .jsonl.gz")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "benchmark_dpo", help="scratch folder")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="proxy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per step")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense, for the MFU")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), help="settings whose names contain one of these")
    return parser.parse_args()


def main() -> None:
    """Measure all settings in turn, several times over."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = options.work.resolve() / "plan.json"
    plan.write_text(json.dumps(prepare(options, plan.parent)))
    chosen = {name: setting for name, setting in SETTINGS.items() if any(part in name for part in options.only)}
    fills = [setting for setting in chosen.values() if setting["side"] == "lit_rlhf" and setting["cached_reference"]]
    if fills:
        measure(plan, fills[0], options.trl_python)  # fills the cache of reference log-probabilities
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(options.repeats):
        for name, setting in chosen.items():
            runs[name].append(run := measure(plan, setting, options.trl_python))
            print(
                f"{number + 1}/{options.repeats} {name}: {run['seconds']:.2f} s, {run['peak_mib']:.0f} MiB", flush=True
            )
    summary = summarise(options, runs)
    print(table(summary, options.device))
    print(write(options, runs, summary))


if __name__ == "__main__":
    main()
