"""Keeps off the screen what the libraries say about every run and no user can act on."""

from __future__ import annotations

import logging
import warnings

_CHATTER = (
    "GPU available",
    "TPU available",
    "Seed set to",
    "`Trainer",
    "\N{ELECTRIC LIGHT BULB} Tip",
    "Restor",
    "Load",
)
"""How such lines of Lightning begin."""

_NEEDLESS = (
    "does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "It is recommended to use `self.log.*sync_dist=True",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)
"""What their warnings say that this package means to do."""


def quieten() -> None:
    """Filter the lines, the progress bars of loading, and warnings between the libraries."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(_says_something)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each try to reach a hub that is not there
    for message in _NEEDLESS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    for library in ("lightning", "torch", "transformers", "peft"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=library)


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CHATTER)
