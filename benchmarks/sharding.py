"""Peak bytes per rank for one, two and four ranks, with sharded weights and with whole copies.

Run: ``python -m benchmarks.sharding [--layers 8] [--hidden 512]``. On a CPU, ranks are gloo processes. What is told:
the weights that a rank holds, the largest sum of these and of those that are gathered while a step computes, and the
state of its optimizer. Activations are those of one process and are not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.strategies.sharding import local_bytes, shard_model
from lit_rlhf.types import Forest, Segment

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "nf4": {"quantization": "nf4"},
    "full": {"lora": LoraOptions(enabled=False)},
}
TOKENS = 512


class Gathered:
    """Watches the bytes of weights that a rank holds, whole ones while they are gathered included."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.peak = model, local_bytes(model)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.register_forward_hook(self._look, always_call=True, prepend=True)

    def _look(self, *_: object) -> None:
        whole = sum(p.nbytes for p in self.model.parameters() if not isinstance(p, DTensor))
        self.peak = max(self.peak, local_bytes_of_shards(self.model) + whole)


def local_bytes_of_shards(model: nn.Module) -> int:
    """Bytes of the shards that are not gathered."""
    return sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))


def measure(rank: int, num_ranks: int, port: int, folder: str, kind: str, is_sharded: bool) -> None:
    """Two steps by one rank; writes what they took."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    backbone = build_backbone(BackboneConfig(folder, **{"lora": LoraOptions(r=8), **KINDS[kind]}))
    if is_sharded:
        shard_model(backbone, init_device_mesh("cpu", (num_ranks,)))
    gathered = Gathered(backbone)
    forest = Forest.pack([[Segment([1], [False]), Segment([2] * TOKENS, [True] * TOKENS, 0)]])
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    for _ in range(2):
        backbone.token_logprobs(forest).logprobs.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = sum(
        (value.to_local() if isinstance(value, DTensor) else value).nbytes
        for entry in optimizer.state.values()
        for value in entry.values()
    )
    found = {
        "weights": local_bytes(backbone),
        "peak_weights": gathered.peak,
        "optimizer": state,
    }
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def run(num_ranks: int, folder: str, kind: str, is_sharded: bool) -> dict[str, int]:
    """The largest of each number over the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    places = [(rank, num_ranks, port, folder, kind, is_sharded) for rank in range(num_ranks)]
    processes = [context.Process(target=measure, args=place) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a rank ended with status {process.exitcode}")
    found = [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]
    return {name: max(rank[name] for rank in found) for name in found[0]}


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    words = parser.parse_args()
    shape: dict[str, Any] = {
        "hidden_size": words.hidden,
        "intermediate_size": 3 * words.hidden,
        "num_hidden_layers": words.layers,
    }
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 8}
    print("| trained | ranks | weights of a rank, MB | with gathered ones, MB | optimizer, MB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(vocab_size=4096, **shape, **heads)).save_pretrained(folder)
        for kind in KINDS:
            for num_ranks, is_sharded in ((1, False), (1, True), (2, True), (4, True)):
                found = run(num_ranks, folder, kind, is_sharded)
                cells = " | ".join(f"{value / 1e6:.1f}" for value in found.values())
                print(f"| {kind} | {num_ranks}{'' if is_sharded else ', whole'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
