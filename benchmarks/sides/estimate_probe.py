"""Most bytes of tensors in each phase of a real step, as torch's allocator tells: ``estimate_probe.py PLAN FOUND``."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from lit_rlhf.commands.training import read_run
from lit_rlhf.metrics.phases import HasPhases

STEPS = 3
"""Batches (or iterations); the first one, in which the optimizer makes its state, is not measured."""


class Marks(Callback):
    """Notes when which phase begins, and what is held at rest.

    Args:
        phase: name of a step that has no phases of its own.
    """

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.marks: list[tuple[int, str]] = []
        self.static = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        gc.collect()
        self._mark("" if batch_idx == 0 else "rest")
        if isinstance(module, HasPhases):
            module.phases.watcher = lambda: self._mark(module.phases.now.name if batch_idx else "")
        elif batch_idx:
            self._mark(self.phase)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is over."""
        self._mark("")
        if isinstance(module, HasPhases):
            module.phases.watcher = None
        states = trainer.optimizers[0].state.values()
        kept = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        held = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers(), *kept]}
        self.static = sum(tensor.nbytes for tensor in held.values())

    def _mark(self, name: str) -> None:
        self.marks.append((time.time_ns(), name))


def peaks(told: profile, marks: Marks) -> dict[str, int]:
    """Most bytes in each phase: what is held at rest, and what the phase has beside it."""
    changes = [(e.start_ns(), e.nbytes()) for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = sorted([*((at, size, None) for at, size in changes), *((at, 0, name) for at, name in marks.marks)])
    now, rest, phase = 0, 0, ""
    found: dict[str, int] = {}
    for _, size, name in events:
        now += size
        if name is not None:
            phase = name
        if name == "rest":
            rest = now
        elif phase not in ("", "rest"):
            found[phase] = max(found.get(phase, 0), now - rest)
    return {name: marks.static + peak for name, peak in found.items()}


def main() -> None:
    """Run what a plan says, and write what was found."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    module, data, _ = read_run(plan["words"])
    marks = Marks("step")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=STEPS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=plan["folder"],
        callbacks=[marks],
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        trainer.fit(module, datamodule=data)
    Path(sys.argv[2]).write_text(json.dumps(peaks(told, marks)))


if __name__ == "__main__":
    main()
