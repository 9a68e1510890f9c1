"""The data module for preferences: pairs from files or the hub, as step batches packed to a token budget."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, NamedTuple

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from datamodules.order import RowOrder
from datamodules.sources import OpenSource, SourceLike, open_sources
from datamodules.stream import BatchMaker, OnBadRow, StepLoader, StepStream, load_steps
from datamodules.tokenization import PairTokenizer, Truncation, load_tokenizer, with_chat_template
from lit_rlhf.types import Cursor, PreferenceBatch


class PreferenceDataModule(LightningDataModule):
    """Pairs of a chosen and a rejected response, as one batch per optimizer step.

    Args:
        train: rows to train on: a file (.jsonl, .json, .gz of these, .parquet), a glob, a folder, a hub name, a list of
            these (with weights, as Source), or a list of rows.
        validation: rows to validate on, in file order.
        test: rows to test on, in file order.
        predict: rows to predict for, in file order.
        tokenizer: folder, hub name, or a tokenizer.
        chat_template: Jinja template or the path of one, for conversations; the tokenizer's own unless given.
        batch_size: pairs per optimizer step, over all ranks.
        token_budget: tokens per micro-batch, a shared prompt counted once. Changes memory and speed, never the loss.
        max_length: most tokens of prompt and response together.
        truncation: what happens to longer pairs. prompt_left: cut the beginning of the prompt, but keep half of
            max_length of it, then the end of the responses. response_right: cut the end, and drop the pair if the
            prompt fills max_length. drop: drop the pair.
        on_bad_row: raise: stop at a row that cannot be used, with its address. drop: drop and count it.
        shuffle_buffer: rows held in memory to draw the training order from; at least the number of rows for a perfect
            shuffle, 0 for file order.
        seed: seed of the training order.
        num_workers: processes that read and tokenise; 0 does it in the training process. Does not change the order.
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
        on_bad_row: OnBadRow = "raise",
        shuffle_buffer: int = 10_000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("token_budget", token_budget)):
            if value < 1:
                raise ValueError(f"data.{name} is {value}; it must be at least 1")
        self.splits = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.chat_template = chat_template
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.on_bad_row: OnBadRow = on_bad_row
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.num_workers = num_workers
        self._tokenizer = tokenizer
        self._sources: dict[str, list[OpenSource]] = {}
        self._position = self._position_before = Position(Cursor(), Counter())
        self._stream: StepStream[PreferenceBatch] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when first asked for.

        Raises:
            ValueError: if none was given.
        """
        if self._tokenizer is None:
            raise ValueError("data.tokenizer is not set; give the folder or hub name of the model")
        if isinstance(self._tokenizer, str):
            self._tokenizer = load_tokenizer(self._tokenizer)
        return with_chat_template(self._tokenizer, self.chat_template)

    def setup(self, stage: str) -> None:
        """Begin a fit at its first batch; a checkpoint moves on from there."""
        if stage == "fit":
            self._position = self._position_before = Position(Cursor(), Counter())

    def train_dataloader(self) -> StepLoader:
        """Batches of the current epoch, from the one after the last that was consumed."""
        self._stream = self._open("train", self.shuffle_buffer)
        self._stream.cursor = self._position.cursor
        return load_steps(self._stream, self.num_workers)

    def val_dataloader(self) -> StepLoader | list[Any]:
        """Batches of ``validation``; none if it was not given."""
        if self.splits["validation"] is None:
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        return load_steps(self._open("validation"), self.num_workers)

    def test_dataloader(self) -> StepLoader:
        """Batches of ``test``."""
        return load_steps(self._open("test"), self.num_workers)

    def predict_dataloader(self) -> StepLoader:
        """Batches of ``predict``."""
        return load_steps(self._open("predict"), self.num_workers)

    def on_after_batch_transfer(self, batch: PreferenceBatch, dataloader_idx: int) -> PreferenceBatch:
        """Remember how far training has come.

        Raises:
            ValueError: if every row of an epoch was dropped.
        """
        if self.trainer is not None and self.trainer.training:
            self._position_before, self._position = self._position, self._position.after(batch)
            if batch.cursor.batch == 0 and not self._position.counts["pairs"]:
                raise ValueError(f"an epoch of data.train held no pair to train on: {self.summary()}")
            if self._stream is not None and not self.trainer.overfit_batches:  # type: ignore[attr-defined]
                self._stream.cursor = batch.cursor
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the training stream, its counts, and what must not change for it to stay meaningful."""
        position = self._position if self._last_step_is_done() else self._position_before
        return {"cursor": list(position.cursor), "counts": dict(position.counts), "order": self._order_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved position; does nothing where a checkpoint is only evaluated.

        Raises:
            ValueError: if seed, batch size, shuffle buffer or the data are not those of the checkpoint.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in self._order_state().items():
            if value != state_dict["order"][name]:
                raise ValueError(
                    f"data.{name} is {value}, but the checkpoint was saved with {state_dict['order'][name]}: its place "
                    "in the data has no meaning here; set it back, or start a new run from the saved weights"
                )
        self._position = self._position_before = Position(Cursor(*state_dict["cursor"]), Counter(state_dict["counts"]))
        if self._stream is not None:  # opened before, where a strategy reads checkpoints late
            self._stream.cursor = self._position.cursor

    def teardown(self, stage: str) -> None:
        """Say in one line what training made of the rows."""
        if stage == "fit" and self._position.counts:
            rank_zero_info("data: " + ", ".join(f"{name} {count}" for name, count in self.summary().items()))

    def summary(self) -> dict[str, int]:
        """Count the training rows of this rank so far.

        Returns:
            ``pairs`` used, and ``dropped/...`` and ``truncated/...`` by reason (and source, if there are several).
        """
        counts = sorted(self._position.counts.items())
        return {name: count for name, count in counts if name not in ("tokens", "room")}

    def _open(self, split: str, shuffle_buffer: int = 0) -> StepStream[PreferenceBatch]:
        sources = self._sources_of(split)
        if not shuffle_buffer and any(source.weight != 1 for source in sources):
            warnings.warn(f"data.{split} is read in file order: weights are ignored", stacklevel=2)
        make_batch = BatchMaker(
            PairTokenizer(self.tokenizer, self.max_length, self.truncation),
            self.token_budget,
            self.on_bad_row,
            name_sources=len(sources) > 1,
        )
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return StepStream(RowOrder(sources, self.seed, shuffle_buffer), make_batch, self.batch_size, rank, world_size)

    def _sources_of(self, split: str) -> list[OpenSource]:
        if split not in self._sources:
            like = self.splits[split]
            if like is None:
                raise ValueError(
                    f"data.{split} is not set; give a path, a hub name, a list of sources or a list of rows"
                )
            self._sources[split] = open_sources(like, split)
        return self._sources[split]

    def _order_state(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffle_buffer": self.shuffle_buffer,
            "train": [source.fingerprint for source in self._sources_of("train")],
        }

    def _last_step_is_done(self) -> bool:
        """Whether the batch fetched last has been trained on: a checkpoint saved on an error must not skip it."""
        if self.trainer is None:
            return True
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.processed == progress.ready  # type: ignore[attr-defined]


class Position(NamedTuple):
    """How far training has come.

    Args:
        cursor: where the stream goes on.
        counts: pairs used, rows dropped and truncated.
    """

    cursor: Cursor
    counts: Counter[str]

    def after(self, batch: PreferenceBatch) -> Position:
        """Return the position once ``batch`` is consumed."""
        return Position(batch.cursor, self.counts + Counter(batch.notes) + Counter(pairs=batch.num_pairs))
