"""A run that is told to go saves itself and goes: SIGTERM, SIGUSR1 (SLURM's warning) and Ctrl-C.

What Lightning does instead on these signals, and why it is replaced while a run trains:

1. On SIGUSR1 under SLURM it saves inside the signal handler, that is in the middle of a step, and trains on.
2. On SIGTERM each rank starts a broadcast inside its handler, in the middle of whatever it was communicating.
3. On Ctrl-C it saves nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_rlhf.callbacks.iterations import is_settled, moment

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
FOLDER = "checkpoints"


class PreemptedError(SystemExit):
    """Ends a run that was told to go, with the exit status 128 + the number of the signal."""


class Preemption(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C saves ``last.ckpt`` at the end of the step or iteration, and leaves.

    All ranks leave together, whichever of them the signal reached. The exit status is 143 after SIGTERM, 138 after
    SIGUSR1 and 130 after Ctrl-C. During a validation that is when it is over. A second signal ends the process at
    once, with the checkpoint from before.

    Args:
        requeue: whether to ask SLURM for another start of the job after the signal that it warns with; the job's
            command line must then say ``--ckpt_path=auto``.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self._received = 0
        self._speaks = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals; Lightning has installed its own handlers by now, and restores what was before both."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        self._listen(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave if told to, unless a validation comes first.

        Raises:
            PreemptedError: to leave.
        """
        if (told := self._agreed(trainer)) and is_settled(trainer):
            self._leave(trainer, told)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave if told to.

        Raises:
            PreemptedError: to leave.
        """
        if trainer.state.fn == "fit" and (told := self._agreed(trainer)):
            self._leave(trainer, told)

    def _listen(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._received, self._speaks = 0, trainer.is_global_zero
        for number in {*SIGNALS, *_slurm_signal(trainer)}:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; the second one does what it does to a process that does not listen."""
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = number
        if self._speaks:  # not by print, which must not be interrupted by itself
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving at the end of this step, then leaving; once more leaves at once\n".encode())

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that any rank received; 0 if none did."""
        if trainer.world_size == 1:
            return self._received
        told = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(told, reduce_op="max"))

    def _leave(self, trainer: Trainer, told: int) -> None:
        name = signal.Signals(told).name
        if trainer.sanity_checking:
            rank_zero_info(f"{name}: left before the first step")
            raise PreemptedError(128 + told)
        _save_last(trainer)
        rank_zero_info(f"{name}: saved and left after {moment(trainer)}")
        if trainer.is_global_zero and told in _slurm_signal(trainer):
            self._ask_for_another_start()
        raise PreemptedError(128 + told)

    def _ask_for_another_start(self) -> None:
        if not self.requeue:
            rank_zero_info("the job is not requeued: its command line would have to say --ckpt_path=auto")
            return
        job = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60)
            said = "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        rank_zero_info(f"job {job} could not be requeued: {said}" if said else f"requeued job {job}")


def _slurm_signal(trainer: Trainer) -> tuple[signal.Signals, ...]:
    """The signal that SLURM warns with, where it runs the job."""
    environment = trainer._accelerator_connector.cluster_environment
    if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
        return ()
    return (environment.requeue_signal or signal.SIGUSR1,)


def _save_last(trainer: Trainer) -> None:
    """Save what ``--ckpt_path=last`` finds: through the checkpoint callback that keeps it, where there is one."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    for callback in kept:
        if callback.save_last:
            callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
            return
    trainer.save_checkpoint(Path(trainer.default_root_dir) / FOLDER / "last.ckpt")
