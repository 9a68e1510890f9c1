"""At the end of a run its folder holds all that is needed to use what was learnt, also when the run was interrupted."""

from __future__ import annotations

import json
from operator import mul
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lit_rlhf.callbacks.best import load_best, ranking_checkpoint
from lit_rlhf.callbacks.readme import policy_readme, reward_readme
from lit_rlhf.checkpoints.writing import NotWrittenError
from lit_rlhf.models.heads.reward_files import read_reward_file
from lit_rlhf.models.heads.reward_model import RewardModel
from lit_rlhf.models.processors import copy_processor_of
from lit_rlhf.models.tokenizers import tokenizer_of, with_padding


class AdapterExport(Callback):
    """Writes adapter (or model), tokenizer, chat template and README into the folder of the run.

    Args:
        folder: where to; None = ``trainer.default_root_dir``.
        tokenizer: what to write beside the adapter: a tokenizer or its name; None = that of the data module.
        weights: "last", or "best": those of the best checkpoint, which one with ``monitor`` has to keep. A run that is
            interrupted leaves its last ones.

    Raises:
        ValueError: if ``weights`` is neither; when training begins, if nothing keeps the best ones.
    """

    def __init__(
        self,
        folder: str | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        weights: Literal["last", "best"] = "last",
    ) -> None:
        if weights not in ("last", "best"):
            raise ValueError(f"weights is '{weights}'; it is 'last' or 'best'")
        self.folder = folder
        self.tokenizer = tokenizer
        self.weights = weights

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to look for the best where nothing says what it is."""
        if self.weights == "best":
            ranking_checkpoint(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything; on every rank, because sharded weights are gathered."""
        state = f"finished after {trainer.global_step} steps"
        if self.weights == "best" and (which := load_best(trainer)):
            state += f"; the weights are those of {which}"
            rank_zero_info(f"the folder holds {which}")
        self._write(trainer, pl_module, state)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what was learnt so far, unless nothing was, the numbers had run away, or there is no room."""
        is_useless = isinstance(exception, FloatingPointError | NotWrittenError)
        if trainer.world_size > 1 or trainer.global_step == 0 or is_useless:
            return
        self._write(trainer, pl_module, f"interrupted after {trainer.global_step} steps ({type(exception).__name__})")
        rank_zero_info(f"what was learnt up to step {trainer.global_step} is in {self._folder(trainer)}")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)

    def _write(self, trainer: Trainer, pl_module: Any, state: str) -> None:
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        model = pl_module.model
        model.save(folder)
        if not trainer.is_global_zero:
            return
        tokenizer = tokenizer_of(trainer, self.tokenizer)
        if isinstance(model, RewardModel):
            text = save_reward_tokenizer(model, tokenizer, folder, state, of_run=True)
        else:
            tokenizer.save_pretrained(folder)
            sees = copy_processor_of(model.base, folder)
            text = policy_readme(folder, model.base.name_or_path, state, of_run=True, sees=sees)
        (folder / "README.md").write_text(text, encoding="utf-8")


def save_reward_tokenizer(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path, state: str, *, of_run: bool = False
) -> str:
    """Write the tokenizer beside a reward model, with a pad token that never ends a text.

    Args:
        model: whose folder it is.
        tokenizer: that it was trained with.
        folder: of the model.
        state: where the weights come from.
        of_run: whether the folder holds all that a run leaves.

    Returns:
        The README of the folder.
    """
    padded = with_padding(tokenizer, model.backbone)
    padded.save_pretrained(folder)
    sees = copy_processor_of(model.base, folder)
    if (file := folder / "config.json").is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "pad_token_id": padded.pad_token_id}, indent=2) + "\n", encoding="utf-8")
    known = read_reward_file(folder)
    assert known is not None
    weights = known.objectives.values()
    return reward_readme(
        folder,
        str(model.base.name_or_path),
        state,
        num_labels=len(known.objectives),
        pad=padded.pad_token_id,
        bias=sum(map(mul, weights, known.bias or [])),
        of_run=of_run,
        sees=sees,
    )
