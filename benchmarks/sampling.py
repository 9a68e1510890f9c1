"""What a response token costs: the cached sampler beside transformers' ``generate``, in processor time.

    python benchmarks/sampling.py --data hh.jsonl.gz
    python benchmarks/sampling.py --data hh.jsonl.gz --num-prompts 8 --num-responses 8

A model with random weights answers real prompts; a set of stop tokens gives responses of about 24 tokens, 64 at most.
``generate`` runs on rows padded on the left, with PEFT's own layers and with this package's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from hh_rows import read_rows
from proxy_model import ARCHITECTURES, TOKENIZER_SIZE, make_model, train_tokenizer

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.request import SamplingOptions, SamplingRequest
from lit_rlhf.types import Prompt

MEAN_LENGTH, MAX_NEW_TOKENS, PROMPT_TOKENS, REPEATS = 24, 64, range(100, 201), 3


def load(folder: Path, attention: str, fused: bool) -> Backbone:
    """The proxy with an adapter that is not zero."""
    backbone = build_backbone(BackboneConfig(str(folder), attention=attention, fused=fused))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    backbone.prepare()
    return backbone


def milliseconds(draw: Callable[[int], int]) -> float:
    """Processor time per response token; ``draw`` takes a seed and tells how many tokens it drew."""
    draw(0)
    costs = []
    for repeat in range(REPEATS):
        start = time.process_time()
        count = sum(draw(seed) for seed in range(10 * repeat, 10 * repeat + 3))
        costs.append(1000 * (time.process_time() - start) / count)
    return median(costs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Anthropic's HH rows, .jsonl or .jsonl.gz")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="proxy")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--num-responses", type=int, default=1, help="to each prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(read_rows(options.data))
    tokenizer = train_tokenizer([row["prompt"] + row["chosen"] for row in rows])
    encoded = (tokenizer(row["prompt"])["input_ids"] for row in rows)
    fitting = (tokens for tokens in encoded if len(tokens) in PROMPT_TOKENS)
    prompts = [Prompt(tuple(tokens), "", (), {}, "", "") for tokens in islice(fitting, options.num_prompts)]
    stops = list(range(3, 3 + TOKENIZER_SIZE // MEAN_LENGTH))
    wanted = SamplingOptions(num_responses=options.num_responses, max_new_tokens=MAX_NEW_TOKENS)
    repeated = [prompt.tokens for prompt in prompts for _ in range(options.num_responses)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.arch, "float32", "cpu", Path(folder))
        stock, ours = load(Path(folder), "sdpa", fused=False), load(Path(folder), "auto", fused=True)

    def cached(seed: int) -> int:
        seeds = [seed * 10_000 + number for number in range(len(repeated))]
        return int(CachedSampler()(ours, SamplingRequest(prompts, wanted, stops, tokenizer, seeds)).lengths.sum())

    def generated(backbone: Backbone) -> Callable[[int], int]:
        return lambda seed: sum(map(len, backbone.generate(repeated, MAX_NEW_TOKENS, stop_tokens=stops, seed=seed)))

    sides = {"generate, PEFT": generated(stock), "generate, fused": generated(ours), "cached sampler": cached}
    for name, draw in sides.items():
        print(f"{name:16} {milliseconds(draw):6.2f} ms of processor time per response token", flush=True)


if __name__ == "__main__":
    main()
