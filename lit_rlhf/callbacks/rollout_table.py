"""Responses to held-out prompts with their scores: a few on the screen at each evaluation, all of them in a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console

from lit_rlhf.callbacks.before_after import Answer, answers, before_after
from lit_rlhf.callbacks.iterations import iterations_done, moment
from lit_rlhf.models.tokenizers import tokenizer_of
from lit_rlhf.ranks import gather_texts

FILE = "samples.jsonl"

Row = dict[str, Any]


class RolloutTable(Callback):
    """Keeps what ``validation_step`` returned of each response, and shows the first and the last beside each other.

    Every row goes to ``samples.jsonl`` in the folder of the run, with the iteration it belongs to. A resumed run
    replaces the rows of the iterations that it does again. Modules whose validation returns no responses are passed
    over.

    Args:
        num_prompts: how many prompts are shown on the screen, with one response each.
        every_evaluation: show them at each evaluation, and not only at the end.
    """

    def __init__(self, num_prompts: int = 4, every_evaluation: bool = True) -> None:
        self.num_prompts = num_prompts
        self.every_evaluation = every_evaluation
        self.shown: list[tuple[str, list[Row]]] = []
        """When the first and the last evaluation were, and the rows of them that are shown."""
        self._rows: list[Row] = []
        self._is_written = False

    def state_dict(self) -> dict[str, Any]:
        """The first rows, so that a resumed run compares with the same beginning."""
        return {"shown": [list(evaluation) for evaluation in self.shown]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the first rows over from a checkpoint."""
        self.shown = [(when, rows) for when, rows in state_dict["shown"]]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of the last evaluation."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the responses of a batch."""
        if isinstance(outputs, list):
            self._rows += outputs

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the responses of all ranks, and show some of them."""
        if trainer.state.fn != "fit":
            return
        rows = [row for text in gather_texts(json.dumps(self._rows), pl_module.device) for row in json.loads(text)]
        if not rows:
            return
        self.shown = [*self.shown[:1], (moment(trainer), self._first(rows))]
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._write(trainer, rows)
        if self.every_evaluation:
            when, few = self.shown[-1]
            get_console().print(answers(self._readable(trainer, few), [_answer(row) for row in few], when))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the first responses beside the last."""
        if not trainer.is_global_zero or len(self.shown) < 2:
            return
        (first, before), (last, after) = self.shown
        later = {row["prompt"]: row for row in after}
        pairs = [(row, later[row["prompt"]]) for row in before if row["prompt"] in later]
        prompts = self._readable(trainer, [row for row, _ in pairs])
        early, late = ([_answer(pair[side]) for pair in pairs] for side in range(2))
        get_console().print(before_after(prompts, early, late, (first, last)))

    def _readable(self, trainer: Trainer, rows: list[Row]) -> list[str]:
        """Prompts without the special tokens of a chat template, which leave the end of a line."""
        try:
            marks = tokenizer_of(trainer, None).all_special_tokens
        except ValueError:  # prompts of somebody's own loader are shown as they are
            return [row["prompt"] for row in rows]
        mark = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")
        return ["\n".join(filter(None, map(str.strip, mark.split(row["prompt"])))) for row in rows]

    def _first(self, rows: list[Row]) -> list[Row]:
        """The first response to each of the first prompts."""
        by_prompt: dict[str, Row] = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], row)
        return list(by_prompt.values())[: self.num_prompts]

    def _write(self, trainer: Trainer, rows: list[Row]) -> None:
        file, iteration = Path(trainer.default_root_dir) / FILE, iterations_done(trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        where = {"step": trainer.global_step, "iteration": iteration}
        lines = [json.dumps({**where, **row}, ensure_ascii=False) + "\n" for row in rows]
        if not self._is_written:
            lines = [*_lines_before(file, iteration), *lines]
        with file.open("a" if self._is_written else "w", encoding="utf-8") as out:
            out.writelines(lines)
        self._is_written = True


def _answer(row: Row) -> Answer:
    return row["response"], row["score"]


def _lines_before(file: Path, iteration: int) -> list[str]:
    """The lines of a broken run that this one does not write again; one cut short is none."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        whole = [line for line in lines if line.endswith("}\n")]
    return [line for line in whole if json.loads(line).get("iteration", iteration) < iteration]
