"""Which algorithm and which tokenizer a checkpoint is of: a run of another one does not go on from it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.callbacks.iterations import moment
from lit_rlhf.models.tokenizers import tokenizer_of

KEY = "origin"


class Origin(Callback):
    """Writes the names of algorithm and tokenizer into each checkpoint, and refuses one of others.

    Which base model it is of is said and refused by the modules themselves.
    """

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where the checkpoint comes from, and when in its run it was written."""
        checkpoint[KEY] = {**self._of(trainer, pl_module), "moment": moment(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse what comes from elsewhere.

        Raises:
            ValueError: naming what the checkpoint was trained with, and what this run has.
        """
        theirs, ours = checkpoint.get(KEY, {}), self._of(trainer, pl_module)
        if theirs.get("algorithm", ours["algorithm"]) != ours["algorithm"]:
            raise ValueError(
                f"the checkpoint is one of {theirs['algorithm']} and this run is one of {ours['algorithm']}: to begin "
                "from what was learnt, name the run's folder in model.backbone.adapter (or name_or_path)"
            )
        both = theirs.get("vocabulary"), ours["vocabulary"]
        if None not in both and both[0] != both[1]:
            raise ValueError(
                f"the checkpoint was trained with the tokenizer '{theirs['tokenizer']}' and this run has "
                f"'{ours['tokenizer']}', whose vocabulary is another: the same ids would mean other texts"
            )

    def _of(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        if not self._own:
            self._own = {"algorithm": type(module).__name__, "tokenizer": None, "vocabulary": None}
            with suppress(ValueError):  # data without a tokenizer
                tokenizer = tokenizer_of(trainer, None)
                entries = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
                self._own["tokenizer"] = str(tokenizer.name_or_path)
                self._own["vocabulary"] = hashlib.sha256(entries).hexdigest()
        return self._own
