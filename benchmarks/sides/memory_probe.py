"""Iterations of PPO in a process of their own: memory by role and phase, speed, and what a smaller card would hold."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from meter import Meter
from static_memory import make_config, measured_cache_bytes, stored_bytes, with_reward
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lit_rlhf import BackboneConfig, PPOModule
from lit_rlhf.models.loading import load_causal_lm
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rewards import ModelReward, WeightedReward
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.types import Prompt, PromptBatch

MOST = {"batch": 4096, "context": 131_072}
"""Where a search ends."""


class PhaseMemory(Meter):
    """Peak memory of each phase above what was there when it was made; on a GPU allocated, on a CPU resident."""

    def __init__(self, device: str) -> None:
        super().__init__(device, warmup=0)
        self.begin()
        self.peaks: dict[str, float] = {}
        self._phase = ""
        self._before = self.loaded

    def enter(self, phase: str) -> None:
        """A phase begins or goes on; another one before it has ended."""
        if phase == self._phase:
            return
        if self._phase:
            peak = self.result()["peak_mib"] * 2**20 + self.loaded - self._before
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0.0), peak)
        self._phase = phase
        self.begin()


class Probe(PPOModule):
    """Makes its own prompts, and does all that a plan asks for within one ``training_step``.

    Args:
        folder: of the base.
        plan: what to measure.
    """

    def __init__(self, folder: str, plan: dict[str, Any]) -> None:
        config = BackboneConfig(
            folder,
            quantization=plan["quantization"],
            dtype=plan["dtype"],
            gradient_checkpointing=plan["gradient_checkpointing"],
        )
        judge = with_reward(load_causal_lm(config, torch.device(plan["device"])))
        super().__init__(
            judge.backbone,
            [WeightedReward(ModelReward(judge, normalise=False))],
            critic=CriticOptions(init_from="fresh"),
            updates=UpdateOptions(num_epochs=1, num_minibatches=1),
            lr_scheduler=lambda optimizer: ConstantLR(optimizer, 1.0),
            tokenizer=make_tokenizer(judge.base.config.vocab_size),
        )
        self.__dict__["judge"] = judge  # unregistered: its backbone is the policy's
        self.plan = plan
        self.found: dict[str, Any] = {}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One iteration that is measured; then the searches."""
        plan = self.plan
        report = self.phases.report

        def kept() -> dict[str, float]:
            """What is logged is what is found."""
            self.found["speed"] = report()
            return self.found["speed"]

        self.phases.report = kept
        self._watch_gradients()
        self.iterate(1, 8, 8)  # what is made once is there
        memory = PhaseMemory(plan["device"])
        self.phases.watcher = lambda: memory.enter(self.phases.now.name)
        self.iterate(plan["batch"], plan["prompt"], plan["response"], plan["token_budget"])
        memory.enter("")
        self.phases.watcher = None
        self.found["phases"] = memory.peaks
        self.found["speed"] = {name: value for name, value in self.found["speed"].items() if "tokens" in name}
        self.found["roles"] = {**stored_bytes(self.model, self.judge), **self._learnt()}
        self.found["cache"] = measured_cache_bytes(self.model.backbone)
        half = plan["search"] // 2
        self.found["fits"] = {
            gigabytes: self._within(
                gigabytes,
                {
                    "batch": lambda number: self.iterate(number, half, half),
                    "context": lambda number: self.iterate(1, number // 2, number - number // 2),
                },
            )
            for gigabytes in plan["cards"]
        }

    def iterate(self, batch: int, prompt: int, response: int, token_budget: int | None = None) -> None:
        """One iteration with ``batch`` texts of so many tokens; a forward pass holds one, unless a budget is given."""
        budget = token_budget or prompt + response
        collector = self.iterations.collector
        collector.sampling = SamplingOptions(max_new_tokens=response)
        collector.sampler = CachedSampler(batch, 10**9)
        self.iterations.updates = replace(self.updates, token_budget=budget)
        self.updates = self.iterations.updates
        self.rewards[0].reward.token_budget = budget
        tokens = [tuple(5 + (row + at) % 900 for at in range(prompt)) for row in range(batch)]
        prompts = tuple(Prompt(row, "", (), {}, f"probe:{number}", "probe") for number, row in enumerate(tokens))
        super().training_step(PromptBatch(prompts, {}), 0)

    def _watch_gradients(self) -> None:
        def note(*_: Any) -> None:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.found["gradients"] = sum(gradient.nbytes for gradient in gradients)

        self.trainer.optimizers[0].register_step_pre_hook(note)

    def _learnt(self) -> dict[str, int]:
        """Bytes of gradients and of what the optimizer keeps."""
        states = self.trainer.optimizers[0].state.values()
        kept = sum(value.nbytes for state in states for value in state.values())
        return {"gradients": self.found.pop("gradients"), "optimizer": kept}

    def _within(self, gigabytes: int, searches: dict[str, Callable[[int], None]]) -> dict[str, int | None]:
        """The largest numbers that a card of that size holds; None where this one is smaller."""
        share = gigabytes * 1e9 / torch.cuda.get_device_properties(0).total_memory
        if share > 1.0:
            return dict.fromkeys(searches)
        self._forget()
        torch.cuda.set_per_process_memory_fraction(share)
        found = {name: largest(lambda n, run=run: self._fits(run, n), MOST[name]) for name, run in searches.items()}
        torch.cuda.set_per_process_memory_fraction(1.0)
        return found

    def _fits(self, run: Callable[[int], None], number: int) -> bool:
        try:
            run(number)
        except torch.OutOfMemoryError:
            is_out = True
        else:
            is_out = False
        self._forget()  # outside of `except`, where the traceback would hold the tensors
        return not is_out

    def _forget(self) -> None:
        """Let go of what a broken iteration left."""
        self.zero_grad(set_to_none=True)
        self.iterations.meter.compute()
        self.iterations.means.reset()
        gc.collect()
        torch.cuda.empty_cache()


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number that fits, to an eighth of it: by doubling, then by halving the interval. 0 if 2 does not.

    Args:
        fits: whether a number does.
        most: where to end.

    Example:
        >>> largest(lambda number: number <= 100, 4096)
        96
    """
    good, bad = 0, 2
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    while good and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if middle <= most and fits(middle) else (good, middle)
    return good


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word for every number that the model knows, so that random weights hardly ever end a response."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(size)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")


def main() -> None:
    """Do what a plan says, and write what was found."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    if plan["device"] == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=plan["work"]) as folder:
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, plan["dtype"]))
        with torch.device(plan["device"]):
            LlamaForCausalLM(make_config(plan["shape"], plan["dtype"])).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
        gc.collect()
        module = Probe(folder, plan)
        trainer = Trainer(
            accelerator="gpu" if plan["device"] == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if plan["dtype"] == "bfloat16" else "32-true",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader([0]))
    Path(sys.argv[2]).write_text(json.dumps(module.found))


if __name__ == "__main__":
    main()
