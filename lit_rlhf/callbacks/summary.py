"""The first lines and the last screen of a run: what is trained, what was learnt, where it lies, what to type next."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box, get_console
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lit_rlhf.callbacks.health import HealthBands
from lit_rlhf.callbacks.iterations import counts_iterations, moment, steps_done
from lit_rlhf.metrics.phases import HasPhases
from lit_rlhf.models.heads.reward_model import RewardModel

_HEADLINES = (
    "score",
    "kl",
    "length",
    "finished",
    "sampled_win_rate",
    "sampled_score",
    "scores/accuracy",
    "rewards/accuracy",
    "scores/margin",
    "rewards/margin",
    "loss",
)
"""Metrics that come first on the last screen."""

_NEXT_POLICY = """\
{command} chat {folder}
{command} generate {folder} --prompt "..."
{command} export {folder} --out {folder}-merged --merge"""

_NEXT_REWARD = """\
{command} score {folder} --prompt "..." --response "..."
{command} score {folder} --serve
{command} export {folder} --out {folder}-merged --merge"""


def command() -> str:
    """What to type to run this package here: its script where the shell finds it, else this interpreter."""
    if shutil.which("lit-rlhf"):
        return "lit-rlhf"
    python, here = Path(sys.executable), Path.cwd()
    return f"{python.relative_to(here) if python.is_relative_to(here) else python} -m lit_rlhf"


class RunSummary(Callback):
    """Says before training what is trained, and after it what was learnt.

    With ``num_sanity_val_steps: -1`` the validation before training is the beginning that the end is compared with,
    and is logged as step 0.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._started, self._last = 0.0, ""

    def state_dict(self) -> dict[str, Any]:
        """The metrics that the end is compared with."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the beginning of the resumed run."""
        self.first = state_dict["first"]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Print what is trained."""
        self._started = time.monotonic()
        if not trainer.is_global_zero:
            return
        trained = sum(weight.numel() for weight in pl_module.parameters() if weight.requires_grad)
        total = sum(weight.numel() for weight in pl_module.parameters())
        get_console().print(
            f"[bold]{type(pl_module).__name__}[/bold] on {Path(pl_module.model.base.name_or_path).name}: "
            f"{_count(trained)} of {_count(total)} parameters are trained; everything goes to "
            f"[bold]{trainer.default_root_dir}[/bold]",
            highlight=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the first and the last metrics."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if trainer.sanity_checking and trainer.global_step == 0:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, 0)
        self.first = self.first or metrics
        self.last, self._last = metrics, moment(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the last screen."""
        if trainer.is_global_zero:
            phases = pl_module.phases.totals if isinstance(pl_module, HasPhases) else {}
            lines = _NEXT_REWARD if isinstance(pl_module.model, RewardModel) else _NEXT_POLICY
            unit = "iterations" if counts_iterations(pl_module) else "steps"
            done = f"{steps_done(trainer)} {unit}"
            get_console().print(self.screen(Path(trainer.default_root_dir), done, lines, phases, _warnings(trainer)))

    def screen(
        self,
        folder: Path,
        done: str,
        lines: str = _NEXT_POLICY,
        phases: Mapping[str, float] | None = None,
        warnings: Sequence[str] = (),
    ) -> Panel:
        """The last screen.

        Args:
            folder: of the run.
            done: how far the run went, such as ``60 iterations``.
            lines: what may be typed next.
            phases: seconds of each phase.
            warnings: what health bands said.
        """
        seconds = int(time.monotonic() - self._started)
        parts: list[Any] = []
        if (table := self._table()).row_count:
            parts += [table, ""]
        parts += [
            Text.assemble(("what was trained  ", "bold"), str(folder)),
            Text.assemble(("curves            ", "bold"), str(folder / "plots" / "all.png")),
        ]
        for what, name in (("answers", "samples.jsonl"), ("report", "report.html")):
            if (folder / name).is_file():
                parts.append(Text.assemble((f"{what:<18}", "bold"), str(folder / name)))
        if phases:
            parts.append(Text.assemble(("time              ", "bold"), _shares(phases)))
        parts += [Text.assemble(("warning           ", "bold red"), warning) for warning in warnings]
        parts += [
            "",
            Text("next", style="bold"),
            Text(lines.format(command=command(), folder=folder), style="cyan"),
        ]
        title = f"done: {done} in {_clock(seconds)}"
        return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, padding=(1, 2))

    def _table(self) -> Table:
        """First and last value of every held-out metric that has changed, the headlines on top."""
        table = Table(box=None, pad_edge=False)
        for column in ("held-out", "before", f"after ({self._last})"):
            table.add_column(column, justify="left" if column == "held-out" else "right", header_style="bold")
        last = {name.removeprefix("val/"): value for name, value in self.last.items()}
        for name in (*(name for name in _HEADLINES if name in last), *sorted(last.keys() - {*_HEADLINES})):
            before, after = self.first.get(f"val/{name}"), last[name]
            if before != after:
                style = "bold" if name in _HEADLINES else "dim"
                table.add_row(name, "-" if before is None else f"{before:.4g}", f"{after:.4g}", style=style)
        return table


def _warnings(trainer: Trainer) -> list[str]:
    watching: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [warning for callback in watching if isinstance(callback, HealthBands) for warning in callback.warnings]


def _shares(phases: Mapping[str, float]) -> str:
    """Time and share of each phase, evaluations included."""
    total = max(sum(phases.values()), 1e-9)
    return ", ".join(f"{name} {_clock(int(spent))} ({spent / total:.0%})" for name, spent in phases.items())


def _clock(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
