"""The data module for prompts: what a policy is to answer, with all that a reward function may want to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.prompts import PromptEncoder, PromptTokens
from datamodules.making import OnBadRow, Outcome
from datamodules.options import SourceLike
from datamodules.pictures import ImageUse, PictureOptions
from datamodules.streamed import StreamedDataModule
from lit_rlhf.types import Cursor, Prompt, PromptBatch

PromptTruncation = Literal["prompt_left", "drop"]


class PromptDataModule(StreamedDataModule):
    """Prompts, as one batch per step. All other columns of a row come with it, for the reward function.

    Of pictures it is given ``images``, a list of paths, contents or PIL images, which ``open_image`` opens.

    Rows of preferences and of instructions serve as well: their prompts are taken, and the answers are columns.

    Args:
        train: rows to train on: a file (.jsonl, .json, .csv, any of them with .gz, .parquet, .arrow), a glob, a folder,
            a hub name, or a list of these (with weights, as Source); in Python also a list of rows or a data set.
        validation: rows to validate on, in file order.
        test: rows to test on, in file order.
        predict: rows to predict for, in file order.
        tokenizer: folder, hub name, or a tokenizer.
        chat_template: Jinja template or the path of one, for conversations; the tokenizer's own unless given.
        batch_size: prompts per step, over all ranks.
        max_prompt_length: most tokens of a prompt.
        truncation: what happens to longer prompts. prompt_left: cut the beginning. drop: drop the prompt.
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

    examples = "prompts"

    def __init__(
        self,
        train: SourceLike | None = None,
        validation: SourceLike | None = None,
        test: SourceLike | None = None,
        predict: SourceLike | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        batch_size: int = 16,
        max_prompt_length: int = 512,
        truncation: PromptTruncation = "prompt_left",
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
        self.max_prompt_length = max_prompt_length
        self.truncation: PromptTruncation = truncation

    def task(self) -> PromptTask:
        """Answer the prompt."""
        return PromptTask(self.tokenizer, self.max_prompt_length, self.truncation, self.pictures)

    def num_examples(self, batch: PromptBatch) -> int:
        """Count the prompts of a batch."""
        return len(batch.prompts)


class PromptTask(PromptEncoder):
    """Records to batches of prompts."""

    def lengths(self, tokens: PromptTokens) -> dict[str, int]:
        """Tokens of the prompt."""
        return {"prompt": len(tokens.tokens)}

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> PromptBatch:
        """Make the batch of a step."""
        return PromptBatch(tuple(map(self._prompt, examples)), dict(notes), cursor)

    def _prompt(self, example: Outcome) -> Prompt:
        row, record, tokens = example.row, example.record, example.tokens
        assert record is not None
        parts = record.prompt if isinstance(record.prompt, list) else []
        images = {"images": self.pictures.references(record)} if record.images else {}
        return Prompt(
            tuple(tokens.tokens),
            tokens.text,
            messages=tuple(part for part in parts if isinstance(part, dict)),
            columns={**record.columns, **images},
            row=row.address,
            source=row.source,
            pictures=tuple(seen.picture for seen in tokens.pictures),
        )
