"""The same few prompts answered before, during and after training, so that one sees what is learnt."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from lit_rlhf.callbacks.before_after import before_after
from lit_rlhf.callbacks.prompts import readable
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.tokenizers import stop_tokens, tokenizer_of
from lit_rlhf.types import Forest, InstructionBatch, Picture, PreferenceBatch


class Samples(NamedTuple):
    """Answers to the fixed prompts at one moment.

    Args:
        step: optimizer steps done.
        responses: one text per prompt.
    """

    step: int
    responses: list[str]


class SampleTable(Callback):
    """Answers fixed prompts before the first step, at each validation and at the end; shows before beside after.

    The prompts are the first of the validation data (of the training data where there is none). Every answer goes to
    ``samples.jsonl`` in the folder of the run. The random state of training is left alone.

    Args:
        num_prompts: how many prompts.
        max_new_tokens: most tokens of an answer.
        temperature: of the samples, which are drawn with one seed each time; 0 takes the likeliest token.
        tokenizer: a tokenizer or its name; None = that of the data module.
    """

    def __init__(
        self,
        num_prompts: int = 4,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
    ) -> None:
        self.num_prompts = num_prompts
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.tokenizer = tokenizer
        self.prompts: list[list[int]] = []
        self.pictures: list[tuple[Picture, ...]] = []
        self.samples: list[Samples] = []

    def state_dict(self) -> dict[str, Any]:
        """The prompts and the answers so far, so that a resumed run compares with the same beginning."""
        pictures = [[(dict(one.inputs), one.num_tokens, one.digest) for one in own] for own in self.pictures]
        return {
            "prompts": self.prompts,
            "samples": [list(samples) for samples in self.samples],
            **({"pictures": pictures} if any(pictures) else {}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take prompts and answers over from a checkpoint."""
        self.prompts = state_dict["prompts"]
        self.samples = [Samples(*samples) for samples in state_dict["samples"]]
        pictures = state_dict.get("pictures", [[] for _ in self.prompts])
        self.pictures = [tuple(Picture(*one) for one in own) for own in pictures]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take prompts from the validation data, and answer them if nothing is learnt yet."""
        self._begin(trainer, pl_module, batch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take prompts from the training data where there is no validation, and answer them before the first step."""
        if trainer.global_step == 0:
            self._begin(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer again."""
        self._answer(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer for the last time and show the table."""
        self._answer(trainer, pl_module)
        if trainer.is_global_zero and len(self.samples) > 1:
            get_console().print(self.table(tokenizer_of(trainer, self.tokenizer)))

    def table(self, tokenizer: PreTrainedTokenizerBase) -> Table:
        """Prompts, the first answers and the last ones, side by side."""
        first, last = self.samples[0], self.samples[-1]
        prompts = [readable(prompt, tokenizer) for prompt in self.prompts]
        before, after = ([(text, None) for text in samples.responses] for samples in (first, last))
        return before_after(prompts, before, after, (f"step {first.step}", f"step {last.step}"))

    def _begin(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        is_known = isinstance(batch, PreferenceBatch | InstructionBatch)
        if self.samples or not is_known or not isinstance(pl_module.model, Backbone):
            return
        (image_token,) = pl_module.model.undrawn_tokens or [-1]
        found = [prompt for part in batch.micro_batches for prompt in prompts_of(part.forest, image_token)]
        self.prompts = [tokens for tokens, _ in found[: self.num_prompts]]
        self.pictures = [pictures for _, pictures in found[: self.num_prompts]]
        self._answer(trainer, pl_module)

    def _answer(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or (self.samples and self.samples[-1].step == trainer.global_step):
            return
        if not trainer.strategy.reduce_boolean_decision(bool(self.prompts), all=False):
            return  # else all ranks answer, as their weights may be sharded
        tokenizer = tokenizer_of(trainer, self.tokenizer)
        answers = pl_module.model.generate(
            self.prompts,
            self.max_new_tokens,
            stop_tokens=stop_tokens(tokenizer, pl_module.model),
            temperature=self.temperature,
            seed=0,
            pictures=self.pictures,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
        self.samples.append(Samples(trainer.global_step, texts))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            prompts = [readable(prompt, tokenizer) for prompt in self.prompts]
            self._write(Path(trainer.default_root_dir) / "samples.jsonl", prompts)

    def _write(self, file: Path, prompts: list[str]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as lines:
            for step, responses in self.samples:
                for prompt, response in zip(prompts, responses, strict=True):
                    row = {"step": step, "prompt": prompt, "response": response}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def prompts_of(forest: Forest, image_token: int = -1) -> list[tuple[list[int], tuple[Picture, ...]]]:
    """Token ids and pictures of every root of a forest that has children, and of what a text has before its answer.

    The answer of a text alone is the last unbroken run of scored tokens.

    Args:
        forest: the packed text.
        image_token: id of the token that pictures take the place of.
    """
    bounds = pairwise((*forest.starts, forest.num_tokens))
    inner, scored = set(forest.parents), set(forest.targets.tolist())
    found = []
    for segment, (start, end) in enumerate(bounds):
        if forest.parents[segment] < 0:
            stop = end if segment in inner else _last_answer(start, end, scored)
            tokens = forest.tokens[start:stop].tolist()
            pictures = forest.seen_in(segment)
            room = list(accumulate(picture.num_tokens for picture in pictures))
            num_seen = sum(end <= tokens.count(image_token) for end in room)  # others come behind the answer
            found.append((tokens, pictures[:num_seen]))
    return [prompt for prompt in found if prompt[0]]


def _last_answer(start: int, end: int, scored: set[int]) -> int:
    """Where the last run of scored tokens between two rows begins; ``start`` where there is none."""
    last = max((at for at in range(start, end) if at in scored), default=start)
    while last - 1 in scored and last > start:
        last -= 1
    return last
