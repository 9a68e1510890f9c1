"""The data module for instructions: texts to imitate, packed without padding, with the trained tokens marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.truncation import Truncation
from datamodules.encoding.turns import TurnEncoder, TurnTokens
from datamodules.making import OnBadRow, Outcome
from datamodules.options import SourceLike
from datamodules.packing import TokenSequence, pack_sequences
from datamodules.pictures import ImageUse, PictureOptions, PictureReader
from datamodules.streamed import StreamedDataModule, at_least
from lit_rlhf.types import Cursor, InstructionBatch

Trained = Literal["assistant", "last", "all"]


class SFTDataModule(StreamedDataModule):
    """Conversations, prompts with their completion, or plain texts, as one batch per optimizer step.

    Rows of preferences serve as well: what is imitated is then the best response.

    Args:
        train: rows to train on: a file (.jsonl, .json, .csv, any of them with .gz, .parquet, .arrow), a glob, a folder,
            a hub name, or a list of these (with weights, as Source); in Python also a list of rows or a data set.
        validation: rows to validate on, in file order.
        test: rows to test on, in file order.
        predict: rows to predict for, in file order.
        tokenizer: folder, hub name, or a tokenizer.
        chat_template: Jinja template or the path of one, for conversations; the tokenizer's own unless given.
        batch_size: texts per optimizer step, over all ranks.
        token_budget: tokens per micro-batch. Changes memory and speed, never the loss.
        max_length: most tokens of a text.
        truncation: what happens to longer texts. prompt_left: cut the beginning of what is not trained, but keep half
            of max_length of it, then the end. response_right: cut the end, and drop the text if nothing trained is
            left. drop: drop the text.
        trained: assistant: the assistant's turns, each with its stop token. last: only the last of them. all: every
            token but the first.
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

    examples = "texts"

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
        trained: Trained = "assistant",
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
        self.token_budget = token_budget
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.trained: Trained = trained

    def task(self) -> InstructionTask:
        """Imitate the trained tokens."""
        reading = self.tokenizer, self.max_length, self.truncation, self.trained
        return InstructionTask(*reading, self.token_budget, self.pictures)

    def num_examples(self, batch: InstructionBatch) -> int:
        """Count the texts of a batch."""
        return sum(len(part.rows) for part in batch.micro_batches)


class InstructionTask(TurnEncoder):
    """Records to batches of texts to imitate.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of a text.
        truncation: what happens to longer texts.
        trained: which turns are trained.
        token_budget: tokens per micro-batch.
        pictures: reads those of records.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: Truncation,
        trained: Trained,
        token_budget: int,
        pictures: PictureReader,
    ) -> None:
        super().__init__(tokenizer, max_length, truncation, trained, pictures)
        self.token_budget = token_budget

    def lengths(self, tokens: TurnTokens) -> dict[str, int]:
        """Tokens of the text, and those of them that are trained."""
        return {"whole": len(tokens.tokens), "trained": sum(tokens.scored)}

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> InstructionBatch:
        """Make the batch of a step."""
        sequences = [
            TokenSequence(
                tokens.tokens, tokens.scored, row.address, row.source, tuple(seen.picture for seen in tokens.pictures)
            )
            for row, _, _, tokens, _ in examples
        ]
        return pack_sequences(sequences, self.token_budget, notes, cursor)
