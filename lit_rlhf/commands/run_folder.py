"""The folder of a run: which one a new run takes, and which one a checkpoint belongs to.

``runs/<name>/`` holds all that a run leaves: ``adapter_model.safetensors`` and ``adapter_config.json`` (a whole model
after full fine-tuning), tokenizer and chat template, ``config.yaml``, ``metrics.csv``, ``tensorboard/``, ``plots/``,
``samples.jsonl``, ``report.html`` with ``run.json`` and ``heldout.jsonl``, ``README.md`` and ``checkpoints/``.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_rlhf.checkpoints.folder import newest_valid

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"


def free_folder(wanted: Path) -> Path:
    """The folder for a new run: the wanted one, or the first of ``wanted-2``, ``wanted-3`` ... that is free.

    Only looks at the disk, and a run leaves nothing there before all its processes have met, so that every process of
    a distributed run comes to the same answer.
    """
    names = (wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}") for number in count(1))
    return next(folder for folder in names if not folder.exists() or not any(folder.iterdir()))


def folder_of_checkpoint(checkpoint: str, wanted: Path) -> Path:
    """The run folder that a resumed run goes on in.

    Args:
        checkpoint: what ``--ckpt_path`` says: a path, or a word such as ``last``, which means one in ``wanted``.
        wanted: the folder that the configuration names.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    path = Path(checkpoint)
    if not path.suffix and path.name == checkpoint and not path.exists():
        return wanted
    if not path.exists():
        raise FileNotFoundError(f"--ckpt_path={checkpoint}: there is no such checkpoint")
    return path.parent.parent if path.parent.name == CHECKPOINTS else wanted


def last_checkpoint(word: str, folder: Path) -> str | None:
    """The checkpoint that ``--ckpt_path=last`` and ``auto`` mean: the newest one that is whole.

    Args:
        word: ``last``, or ``auto``, which begins anew where there is none.
        folder: of the run.

    Returns:
        Its path; None to begin anew.

    Raises:
        FileNotFoundError: if there is none, and the word is ``last``.
        ValueError: if there are some and none can be used.
    """
    place = folder / CHECKPOINTS
    found = newest_valid(place)
    if found.path is None and found.skipped:
        raise ValueError("\n".join([f"--ckpt_path={word}: no checkpoint in {place} can be used", *found.skipped]))
    for reason in found.skipped:
        rank_zero_info(f"skipped: {reason}")
    if found.path is not None:
        rank_zero_info(f"going on from {found.path}")
        return str(found.path)
    if word == "last":
        raise FileNotFoundError(f"--ckpt_path=last: {place} holds no checkpoint (--ckpt_path=auto would begin anew)")
    rank_zero_info(f"--ckpt_path=auto: {place} holds no checkpoint; the run begins anew")
    return None
