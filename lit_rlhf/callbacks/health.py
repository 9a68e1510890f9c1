"""Health bands: when training goes wrong it says so in words, and can stop by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich import get_console
from rich.text import Text
from torch import Tensor

from lit_rlhf.callbacks.bands import DEFAULT_BANDS, Band, Series, as_state, from_state
from lit_rlhf.callbacks.iterations import moment


class HealthBands(Callback):
    """Watches logged metrics after every training batch, and says once per episode when one leaves its band.

    A value counts when it is logged: what is logged every tenth step is looked at every tenth step. A metric that is
    never logged leaves no band, so one table serves all algorithms. A value that is not a number is always said.

    Args:
        bands: beside those of :data:`lit_rlhf.callbacks.bands.DEFAULT_BANDS`; one with the name of a default takes its
            place.
        ignore: names of default bands that are not watched.
        action: what to do when a band is left: ``warn``, or ``stop`` the run as if it had reached its end: everything
            is exported and drawn, and the message names the newest checkpoint from before.

    Raises:
        ValueError: if ``ignore`` names no default band, or ``action`` is neither of the two.
    """

    def __init__(
        self,
        bands: Sequence[Band] | None = None,
        ignore: Sequence[str] = (),
        action: Literal["warn", "stop"] = "warn",
    ) -> None:
        known = [band.name for band in DEFAULT_BANDS]
        if unknown := [name for name in ignore if name not in known]:
            raise ValueError(f"health bands to ignore: there is no '{unknown[0]}'; there are: {', '.join(known)}")
        if action not in ("warn", "stop"):
            raise ValueError(f"the action of health bands is '{action}'; it is 'warn' or 'stop'")
        given = list(bands or [])
        replaced = {*ignore, *(band.name for band in given)}
        self.bands = [*(band for band in DEFAULT_BANDS if band.name not in replaced), *given]
        self._read = {metric for band in self.bands for metric in band.metrics}
        self.action = action
        self.is_healthy = True
        self.warnings: list[str] = []
        """What was said so far, without the advice."""
        self._history: dict[str, Series] = {}
        self._outside: dict[str, int] = {}  # of each band: how often in a row it did not hold
        self._inside: dict[str, int] = {}
        self._open: list[str] = []  # bands that were left, and warned of
        self._latest: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """What the bands have seen, so that a resumed run neither forgets nor repeats a warning."""
        return {
            "history": as_state(self._history),
            "outside": self._outside,
            "inside": self._inside,
            "open": self._open,
            "warnings": self.warnings,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was seen."""
        self._history = from_state(state_dict["history"])
        self._outside, self._inside = state_dict["outside"], state_dict["inside"]
        self._open, self.warnings = state_dict["open"], state_dict["warnings"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what was logged."""
        fresh = self._fresh(trainer)
        found = [*self._not_finite(fresh), *self._left(fresh)]
        # Ranks may have logged different numbers, and have to stop and to save checkpoints together.
        is_calm = not (found or self._open or any(self._outside.values()))
        self.is_healthy = trainer.strategy.reduce_boolean_decision(is_calm, all=True)
        for what, advice in found:
            self.warnings.append(f"{moment(trainer)}: {what}")
            _say(f"{self.warnings[-1]}. {advice}")
        if self.action == "stop" and trainer.strategy.reduce_boolean_decision(bool(found), all=False):
            trainer.should_stop = True
            _say(f"The run stops here. {_way_back(trainer)}")

    def _fresh(self, trainer: Trainer) -> dict[str, float]:
        """The metrics of this batch. Lightning shows those of batches before as well, in the memory they had."""
        before, self._latest = self._latest, dict(trainer.callback_metrics)
        return {
            name: float(value)
            for name, value in self._latest.items()
            if name not in before or value.data_ptr() != before[name].data_ptr()
        }

    def _not_finite(self, fresh: dict[str, float]) -> Iterator[tuple[str, str]]:
        for name, value in fresh.items():
            if not math.isfinite(value) and name not in self._open:
                self._open.append(name)
                yield f"{name} is {value}", "A lower learning rate, or float32 for what is trained, is the usual cure."
            elif math.isfinite(value) and name in self._open:
                self._open.remove(name)

    def _left(self, fresh: dict[str, float]) -> Iterator[tuple[str, str]]:
        """The bands that have now been left for long enough."""
        for name in self._read & set(fresh):
            if math.isfinite(fresh[name]):
                self._history.setdefault(name, Series()).add(fresh[name])
        for band in self.bands:
            if band.when[0].metric not in fresh or band.when[0].metric not in self._history:
                continue
            if reading := band.reading(self._history):
                self._outside[band.name] = self._outside.get(band.name, 0) + 1
                self._inside[band.name] = 0
            else:
                self._outside[band.name] = 0
                self._inside[band.name] = self._inside.get(band.name, 0) + 1
            if self._outside[band.name] >= band.patience and band.name not in self._open:
                self._open.append(band.name)
                yield f"{band.name}: {reading}", band.advice
            elif self._inside[band.name] >= band.patience and band.name in self._open:
                self._open.remove(band.name)
                _say(f"No longer: {band.name}", is_bad=False)


def is_healthy(trainer: Trainer) -> bool:
    """Whether all bands hold, as far as anyone watches."""
    watching: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return all(callback.is_healthy for callback in watching if isinstance(callback, HealthBands))


@rank_zero_only
def _say(text: str, is_bad: bool = True) -> None:
    """Print a line above the progress line."""
    console = get_console()
    line = Text.assemble(("warning  " if is_bad else "", "bold red"), text)
    console.print(line, soft_wrap=not console.is_terminal)


def _way_back(trainer: Trainer) -> str:
    kept = trainer.checkpoint_callback
    path = kept.best_model_path if kept is not None else ""  # type: ignore[attr-defined]
    return f"A state from before: --ckpt_path={path}" if path else "No checkpoint was saved before."
