"""What all data modules share: sources, the tokenizer, the stream of steps, and the place in it.

The place of a run is the cursor of the batch that was trained on last. It lies in the checkpoint, so a run that was
stopped anywhere goes on with the next row, whatever the number of workers or ranks.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed as dist
from transformers import PreTrainedTokenizerBase

from datamodules.encoding.tokenizers import load_tokenizer, with_chat_template
from datamodules.making import BatchMaker, OnBadRow, Task
from datamodules.options import SourceLike
from datamodules.order import RowOrder
from datamodules.pictures import PictureOptions, PictureReader, picture_reader
from datamodules.sources import OpenSource, open_sources
from datamodules.stream import StepLoader, StepStream, load_steps
from lit_rlhf.types import Cursor


class StreamedDataModule(LightningDataModule):
    """Streams rows of any source as one batch per optimizer step.

    A subclass says with :meth:`task` what it makes of the rows, and with :meth:`num_examples` what it counts.

    Args:
        splits: where the rows of ``train``, ``validation``, ``test`` and ``predict`` come from.
        tokenizer: folder, hub name, or a tokenizer.
        chat_template: Jinja template or the path of one; None = the tokenizer's own.
        batch_size: rows per optimizer step, over all ranks.
        on_bad_row: what happens to a row that cannot be used.
        shuffle_buffer: rows held in memory to draw the training order from; 0 = file order.
        seed: of the training order.
        num_workers: processes that read and tokenise.
        pictures: what the user says about pictures.

    Attributes:
        key: where its settings stand in a configuration, for messages.

    Raises:
        ValueError: for numbers out of range.
    """

    examples = "examples"
    """What one of its examples is called in the summary."""

    marked = "trained"
    """What is said of the tokens that its batches mark as scored."""

    def __init__(
        self,
        splits: Mapping[str, SourceLike | None],
        tokenizer: str | PreTrainedTokenizerBase | None,
        chat_template: str | None,
        batch_size: int,
        on_bad_row: OnBadRow,
        shuffle_buffer: int,
        seed: int,
        num_workers: int,
        pictures: PictureOptions,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(0, shuffle_buffer=shuffle_buffer, num_workers=num_workers)
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f"data.on_bad_row is {on_bad_row!r}; it must be one of {', '.join(get_args(OnBadRow))}")
        self.splits = dict(splits)
        self.chat_template = chat_template
        self.batch_size = batch_size
        self.on_bad_row: OnBadRow = on_bad_row
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.num_workers = num_workers
        self.key = "data"
        self._tokenizer = tokenizer
        self._picture_options = pictures
        self._pictures: PictureReader | None = None
        self._sources: dict[str, list[OpenSource]] = {}
        self._position = self._position_before = Position(Cursor(), Counter())
        self._steps: StepStream[Any] | None = None
        self._has_failed = False

    @abstractmethod
    def task(self) -> Task[Any, Any, Any]:
        """What becomes of a row."""

    @abstractmethod
    def num_examples(self, batch: Any) -> int:
        """Count the examples of a batch."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when first asked for.

        Raises:
            ValueError: if none was given.
        """
        if self._tokenizer is None:
            raise ValueError(f"{self.key}.tokenizer is not set; give the folder or hub name of the model")
        if isinstance(self._tokenizer, str):
            self._tokenizer = load_tokenizer(self._tokenizer)
        return with_chat_template(self._tokenizer, self.chat_template)

    @property
    def pictures(self) -> PictureReader:
        """Reads the pictures of rows; opened when first asked for.

        Raises:
            ValueError: if the processor cannot be used.
        """
        if self._pictures is None:
            self._pictures = picture_reader(self._picture_options, self.tokenizer)
        return self._pictures

    def setup(self, stage: str) -> None:
        """Begin a fit at its first batch; a checkpoint moves on from there."""
        self._has_failed = False
        if stage == "fit":
            self._position = self._position_before = Position(Cursor(), Counter())

    def train_dataloader(self) -> StepLoader:
        """Batches of the current epoch, from the one after the last that was consumed."""
        self._steps = self.steps("train", self.shuffle_buffer)
        self._steps.cursor = self._position.cursor
        return load_steps(self._steps, self.num_workers, is_length_wanted=self._is_length_wanted())

    def val_dataloader(self) -> StepLoader | list[Any]:
        """Batches of ``validation``; none if it was not given."""
        if self.splits["validation"] is None:
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        return load_steps(self.steps("validation"), self.num_workers)

    def test_dataloader(self) -> StepLoader:
        """Batches of ``test``."""
        return load_steps(self.steps("test"), self.num_workers)

    def predict_dataloader(self) -> StepLoader:
        """Batches of ``predict``."""
        return load_steps(self.steps("predict"), self.num_workers)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Remember how far training has come.

        Raises:
            ValueError: if every row of an epoch was dropped.
        """
        if self.trainer is not None and self.trainer.training:
            number = self.num_examples(batch)
            self._position_before, self._position = self._position, self._position.after(batch, self.examples, number)
            if batch.cursor.batch == 0 and not self._position.counts[self.examples] and self.trainer.world_size == 1:
                raise ValueError(f"an epoch of {self.key}.train held no {self.examples} to train on: {self.summary()}")
            if self._steps is not None and not self.trainer.overfit_batches:  # type: ignore[attr-defined]
                self._steps.cursor = batch.cursor
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Place in the training stream, its counts over all ranks, and what must not change for it to stay meaningful.

        Every rank has to call this, as Lightning does.
        """
        position = self._position if self._last_step_is_done() else self._position_before
        counts = _over_ranks(position.counts)
        return {"cursor": list(position.cursor), "counts": dict(counts), "order": self._order_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved place; does nothing where a checkpoint is only evaluated.

        Raises:
            ValueError: if seed, batch size, shuffle buffer or the data are not those of the checkpoint.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in self._order_state().items():
            if value != state_dict["order"][name]:
                raise ValueError(
                    f"{self.key}.{name} is {value}, but the checkpoint was saved with {state_dict['order'][name]}: its "
                    "place in the data has no meaning here; set it back, or start a new run from the saved weights"
                )
        rank = self.trainer.global_rank if self.trainer is not None else 0
        counts = state_dict["counts"] if rank == 0 else {}
        self._position = self._position_before = Position(Cursor(*state_dict["cursor"]), Counter(counts))
        if self._steps is not None:  # opened before, where a strategy reads checkpoints late
            self._steps.cursor = self._position.cursor

    def on_exception(self, exception: BaseException) -> None:
        """Remember that other ranks may not come to the end."""
        self._has_failed = True

    def teardown(self, stage: str) -> None:
        """Say in one line what training made of the rows of all ranks."""
        if stage != "fit":
            return
        counts = self._position.counts if self._has_failed else _over_ranks(self._position.counts)
        if counts:
            said = [f"{name} {count}" for name, count in _shown(counts).items()]
            said += [f"fill {counts['tokens'] / counts['room']:.0%}"] if counts["room"] else []
            rank_zero_info("data: " + ", ".join(said))

    def summary(self) -> dict[str, int]:
        """Count the training rows of this rank so far.

        Returns:
            Examples used, and ``dropped/...``, ``truncated/...`` and ``ignored/...`` by reason (and by source, if there
            are several).
        """
        return _shown(self._position.counts)

    def steps(self, split: str, shuffle_buffer: int = 0) -> StepStream[Any]:
        """The stream of a split, at its beginning.

        Args:
            split: ``train``, ``validation``, ``test`` or ``predict``.
            shuffle_buffer: rows held to draw from; 0 = file order.

        Raises:
            ValueError: if the split is not set.
        """
        sources = self.sources(split)
        if not shuffle_buffer and any(source.weight != 1 for source in sources):
            warnings.warn(f"{self.key}.{split} is read in file order: weights are ignored", stacklevel=2)
        make_batch = BatchMaker(self.task(), self.on_bad_row, name_sources=len(sources) > 1)
        order = RowOrder(sources, self.seed, shuffle_buffer)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return StepStream(order, make_batch, self.batch_size, rank, world_size)

    def sources(self, split: str) -> list[OpenSource]:
        """The sources of a split, opened when first asked for.

        Raises:
            ValueError: if the split is not set, or a source is not there.
        """
        if split not in self._sources:
            like = self.splits[split]
            if like is None:
                raise ValueError(
                    f"{self.key}.{split} is not set; give a path, a hub name, a list of sources or a list of rows"
                )
            self._sources[split] = open_sources(like, split)
        return self._sources[split]

    def _order_state(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffle_buffer": self.shuffle_buffer,
            "train": [source.fingerprint for source in self.sources("train")],
        }

    def _is_length_wanted(self) -> bool:
        """Whether the number of batches matters: to count the rows of large files takes time."""
        trainer: Any = self.trainer
        if trainer is None or trainer.max_epochs != -1 or trainer.overfit_batches:
            return True
        shares = trainer.limit_train_batches, trainer.val_check_interval
        return any(isinstance(share, float) and share != 1.0 for share in shares)

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
        counts: examples used, rows dropped, cut and ignored.
    """

    cursor: Cursor
    counts: Counter[str]

    def after(self, batch: Any, examples: str, number: int) -> Position:
        """Return the position once ``batch`` with its ``number`` of examples is consumed."""
        return Position(batch.cursor, self.counts + Counter(batch.notes) + Counter({examples: number}))


def _over_ranks(counts: Counter[str]) -> Counter[str]:
    """Counts summed over all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, dict(counts))
    return sum(map(Counter, ranks), Counter())


def _shown(counts: Counter[str]) -> dict[str, int]:
    """Counts of rows and examples by name; what micro-batches hold is told as their fill."""
    return {name: count for name, count in sorted(counts.items()) if name not in ("tokens", "room")}


def at_least(bound: int, **settings: int) -> None:
    """Check settings of a data module.

    Raises:
        ValueError: naming the first that lies below ``bound``.
    """
    for name, value in settings.items():
        if value < bound:
            raise ValueError(f"data.{name} is {value}; it must be at least {bound}")
