"""``report.html`` at the end of every run, and ``run.json`` beside it: what no other file of a run says."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_rlhf.callbacks.health import HealthBands
from lit_rlhf.callbacks.iterations import moment
from lit_rlhf.callbacks.reliability import Calibrated
from lit_rlhf.reports.left import FACTS
from lit_rlhf.reports.report import write_report

_PACKAGES = ("lit-rlhf", "torch", "lightning", "transformers", "peft")


class Report(Callback):
    """Writes the report of a run at its end, also of an interrupted one, from what lies in its folder.

    ``run.json`` is written when training begins, at every validation and at the end: a killed run has it as well, and
    ``python -m lit_rlhf report`` makes its report.
    """

    def __init__(self) -> None:
        self.started = ""
        self._seconds_before = 0.0
        self._began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """When the run began and how long it has taken, so that a resumed run counts on."""
        return {"started": self.started, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.started, self._seconds_before = state_dict["started"], state_dict["seconds"]

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the run is on."""
        self._began = time.monotonic()
        self.started = self.started or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._write(trainer, pl_module, "running")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is known by now."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self._finish(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what there is."""
        if trainer.state.fn == "fit" and trainer.global_step:
            self._finish(trainer, pl_module, type(exception).__name__)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, state: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            self._write(trainer, pl_module, state)
            rank_zero_info(f"report: {write_report(Path(trainer.default_root_dir))}")
        except OSError as error:  # a full disk takes the report, and not the run
            rank_zero_warn(f"the report could not be written: {error}")

    def _write(self, trainer: Trainer, pl_module: Any, state: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        bands = [callback for callback in callbacks if isinstance(callback, HealthBands)]
        bins = pl_module.reliability if isinstance(pl_module, Calibrated) else []
        facts = {
            "state": state,
            "algorithm": type(pl_module).__name__,
            "done": moment(trainer),
            "started": self.started,
            "seconds": round(self._seconds, 1),
            "command": command_line(),
            "device": device_name(trainer),
            "versions": versions(),
            "warnings": [said for band in bands for said in band.warnings] if bands else None,
            "reliability": [row._asdict() for row in bins],
        }
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{FACTS}.part"
        unfinished.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / FACTS)


def command_line() -> str:
    """What was typed to start this process."""
    program, *words = sys.argv
    if Path(program).name == "__main__.py":
        return shlex.join(["python", "-m", Path(program).parent.name, *words])
    return shlex.join(["python", program, *words] if program.endswith(".py") else [Path(program).name, *words])


def device_name(trainer: Trainer) -> str:
    """What the run computes on, and on how many of them."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name


def versions() -> dict[str, str]:
    """Versions of what computes; one that was never installed has none."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
