"""The data module for a pretraining mix: prompts to answer, and texts to imitate beside them.

Ouyang et al., "Training language models to follow instructions with human feedback" (InstructGPT), arXiv 2203.02155,
eq. 2: what a policy could do before is kept in use while it learns to please.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning import LightningDataModule
from transformers import PreTrainedTokenizerBase

from datamodules.prompt import PromptDataModule
from datamodules.sft import SFTDataModule
from datamodules.stream import StepLoader
from datamodules.streamed import StreamedDataModule
from lit_rlhf.types import PromptAndTextBatch


class PromptAndTextDataModule(LightningDataModule):
    """Prompts with texts beside them, a batch of each per step. Texts are for training alone.

    An epoch is one of the prompts. Texts go round in epochs of their own, each in another order, without an end.

    Args:
        prompts: to answer. Validation, test and predict are theirs.
        texts: to imitate; their ``batch_size`` says how many are beside one batch of prompts.

    Raises:
        ValueError: if the texts have rows to validate, test or predict on, which nobody would read.
    """

    def __init__(self, prompts: PromptDataModule, texts: SFTDataModule) -> None:
        super().__init__()
        for split in ("validation", "test", "predict"):
            if texts.splits[split] is not None:
                raise ValueError(f"data.texts.{split} is set, but texts are for training alone; leave it out")
        self.prompts = prompts
        self.texts = texts
        prompts.key, texts.key = "data.prompts", "data.texts"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the prompts."""
        return self.prompts.tokenizer

    def parts(self, split: str) -> tuple[StreamedDataModule, ...]:
        """The data modules that a split is made of.

        Args:
            split: ``train``, ``validation``, ``test`` or ``predict``.
        """
        return (self.prompts, self.texts) if split == "train" else (self.prompts,)

    def setup(self, stage: str) -> None:
        """Begin a fit at the first batch of both; a checkpoint moves on from there."""
        for part in self.parts("train"):
            part.trainer = self.trainer
            part.setup(stage)

    def train_dataloader(self) -> PromptAndTextLoader:
        """Batches of both, each from the one after the last that was consumed, to the end of the prompts' epoch."""
        texts = self.texts.train_dataloader()
        texts.dataset.is_endless = True
        return PromptAndTextLoader(self.prompts.train_dataloader(), texts)

    def val_dataloader(self) -> StepLoader | list[Any]:
        """Batches of the prompts' ``validation``; none if it was not given."""
        return self.prompts.val_dataloader()

    def test_dataloader(self) -> StepLoader:
        """Batches of the prompts' ``test``."""
        return self.prompts.test_dataloader()

    def predict_dataloader(self) -> StepLoader:
        """Batches of the prompts' ``predict``."""
        return self.prompts.predict_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Remember how far training has come in both."""
        if isinstance(batch, PromptAndTextBatch):
            self.prompts.on_after_batch_transfer(batch.prompts, dataloader_idx)
            self.texts.on_after_batch_transfer(batch.texts, dataloader_idx)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Places in both streams."""
        return {"prompts": self.prompts.state_dict(), "texts": self.texts.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved places.

        Raises:
            ValueError: if something changed that they depend on.
        """
        self.prompts.load_state_dict(state_dict["prompts"])
        self.texts.load_state_dict(state_dict["texts"])

    def on_exception(self, exception: BaseException) -> None:
        """Remember that other ranks may not come to the end."""
        for part in self.parts("train"):
            part.on_exception(exception)

    def teardown(self, stage: str) -> None:
        """Say in a line each what training made of prompts and texts."""
        for part in self.parts("train"):
            part.teardown(stage)

    def summary(self) -> dict[str, dict[str, int]]:
        """Count the training rows of this rank so far, those of prompts and those of texts."""
        return {"prompts": self.prompts.summary(), "texts": self.texts.summary()}


class PromptAndTextLoader:
    """Loads the batches of both streams side by side, as long as there are prompts.

    Args:
        prompts: an epoch.
        texts: without an end.
    """

    def __init__(self, prompts: StepLoader, texts: StepLoader) -> None:
        self.prompts = prompts
        self.texts = texts

    def __iter__(self) -> Iterator[PromptAndTextBatch]:
        """Yield a batch of prompts and one of texts at a time."""
        yield from map(PromptAndTextBatch, self.prompts, self.texts)

    def __len__(self) -> int:
        """Batches of a whole epoch of the prompts.

        Raises:
            TypeError: if that is not known or not wanted.
        """
        return len(self.prompts)

    def state_dict(self) -> dict[str, Any]:
        """Nothing, and thereby tell Lightning that resuming is taken care of."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the data module sets the cursors of the streams."""
