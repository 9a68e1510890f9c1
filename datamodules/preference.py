"""The data module for judged responses: pairs, rankings, thumbs, grades and steps from any source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.preferences import Margins, Pairing
from datamodules.encoding.responses import ResponseEncoder
from datamodules.encoding.steps import StepEncoder
from datamodules.encoding.truncation import Truncation
from datamodules.kinds import GradedTask, PairTask, StepTask, ThumbTask
from datamodules.making import OnBadRow
from datamodules.options import SourceLike
from datamodules.pictures import ImageUse, PictureOptions
from datamodules.streamed import StreamedDataModule, at_least
from lit_rlhf.types import GradedBatch, JudgedStepsBatch, PreferenceBatch, UnpairedBatch

Kind = Literal["pairs", "unpaired", "graded", "steps"]
Trained = Literal["response", "assistant"]


class PreferenceDataModule(StreamedDataModule):
    """Responses of which one is better than another, or is good or bad by itself, as one batch per optimizer step.

    Args:
        train: rows to train on: a file (.jsonl, .json, .csv, any of them with .gz, .parquet, .arrow), a glob, a folder,
            a hub name, or a list of these (with weights, as Source); in Python also a list of rows or a data set.
        validation: rows to validate on, in file order.
        test: rows to test on, in file order.
        predict: rows to predict for, in file order.
        tokenizer: folder, hub name, or a tokenizer.
        chat_template: Jinja template or the path of one, for conversations; the tokenizer's own unless given.
        batch_size: rows per optimizer step, over all ranks.
        token_budget: tokens per micro-batch, a shared prompt counted once. Changes memory and speed, never the loss.
        max_length: most tokens of prompt and response together.
        truncation: what happens to longer rows. prompt_left: cut the beginning of the prompt, but keep half of
            max_length of it, then the end of the responses. response_right: cut the end, and drop the row if the
            prompt fills max_length. drop: drop the row.
        kind: pairs: a better and a worse response, for DPO and reward models. unpaired: each response with a thumb up
            or down; of pairs, the chosen is up and the rejected down. graded: every response of any row, with its rank
            and grades, for reward models. steps: responses judged step by step, for process reward models.
        pairing: which pairs a row of more than two ranked responses gives. all: every two of different rank.
            best_worst: the first best against the last worst.
        margins: by how much a response is better. column: what the row's column margin says. scores: where there is no
            such column, the difference of the two scores.
        trained: which tokens of a response count. response: all. assistant: in responses of several turns, those of the
            assistant alone.
        objectives: what graded responses are graded by: names of columns, or score for the score that a ranking gives;
            score alone unless given.
        step_separator: what is written behind each step of a response that is judged step by step.
        group_by: column whose value takes the place of the source's name in metrics, such as subset.
        on_bad_row: raise: stop at a row that cannot be used, with its address. drop: drop and count it.
        shuffle_buffer: rows held in memory to draw the training order from; 0 for file order.
        seed: seed of the training order.
        num_workers: processes that read and tokenise; 0 does it in the training process. Does not change the order.
        processor: of a model that looks at pictures: folder, hub name, or a processor; that of the tokenizer's folder
            unless given.
        images: see: show the pictures of rows to the model. ignore: leave them out, as if nobody looked.
        image_dir: folder that paths of pictures are relative to, and must not leave; that of the data file unless
            given.
    """

    def __init__(
        self,
        train: SourceLike | None = None,
        validation: SourceLike | None = None,
        test: SourceLike | None = None,
        predict: SourceLike | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        batch_size: int = 16,
        token_budget: int = 4096,
        max_length: int = 1024,
        truncation: Truncation = "prompt_left",
        kind: Kind = "pairs",
        pairing: Pairing = "all",
        margins: Margins = "column",
        trained: Trained = "response",
        objectives: Sequence[str] | None = None,
        step_separator: str = "\n",
        group_by: str | None = None,
        on_bad_row: OnBadRow = "raise",
        shuffle_buffer: int = 10_000,
        seed: int = 0,
        num_workers: int = 0,
        processor: Any = None,
        images: ImageUse = "see",
        image_dir: str | None = None,
    ) -> None:
        splits = {"train": train, "validation": validation, "test": test, "predict": predict}
        text, order = (tokenizer, chat_template), (shuffle_buffer, seed, num_workers)
        pictures = PictureOptions(processor, images, image_dir)
        super().__init__(splits, *text, batch_size, on_bad_row, *order, pictures)
        at_least(1, token_budget=token_budget)
        if kind not in get_args(Kind):
            raise ValueError(f"data.kind is {kind!r}; it must be one of {', '.join(get_args(Kind))}")
        self.token_budget = token_budget
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.kind: Kind = kind
        self.pairing: Pairing = pairing
        self.margins: Margins = margins
        self.trained: Trained = trained
        self.objectives = ("score",) if objectives is None else tuple(objectives)
        self.step_separator = step_separator
        self.group_by = group_by
        self.examples = "pairs" if kind == "pairs" else "responses"
        self.marked = {"graded": "graded", "steps": "judged"}.get(kind, "trained")

    def task(self) -> PairTask | ThumbTask | GradedTask | StepTask:
        """What the rows are for."""
        reading = self.tokenizer, self.max_length, self.truncation
        encoder = ResponseEncoder(*reading, self.trained, self.pictures)
        if self.kind == "steps":
            encoder = StepEncoder(*reading, self.step_separator, self.pictures)
        make: dict[Kind, Callable[..., PairTask | ThumbTask | GradedTask | StepTask]] = {
            "pairs": partial(PairTask, pairing=self.pairing, margins=self.margins),
            "unpaired": ThumbTask,
            "graded": partial(GradedTask, objectives=self.objectives),
            "steps": StepTask,
        }
        return make[self.kind](encoder, self.token_budget, self.group_by)

    def num_examples(self, batch: PreferenceBatch | UnpairedBatch | GradedBatch | JudgedStepsBatch) -> int:
        """Count the pairs or judged responses of a batch."""
        return sum(len(part.rows) for part in batch.micro_batches)
