"""What a configuration may name: classes and functions of known packages, and of those that the user trusts.

A configuration is code: whatever class or function it names is imported and called. So that one from a stranger can
name no more than the parts of a training run, all other names are refused before they are imported, also where an
allowed name leads to something that is defined elsewhere. ``--trust my_rewards`` on the command line, or
``LIT_RLHF_TRUST=my_rewards`` around it, adds a package or a module; a configuration cannot.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from jsonargparse import set_parsing_settings

_LIGHTNING = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
ALLOWED = (
    *("lit_rlhf", "datamodules", "torch.optim", "bitsandbytes.optim", "torchmetrics"),
    *(f"lightning.pytorch.{part}" for part in _LIGHTNING),
    *(f"lightning.fabric.{part}" for part in _LIGHTNING),
)
"""Packages that a configuration may always name."""

VARIABLE = "LIT_RLHF_TRUST"


def limit_names(words: Sequence[str]) -> list[str]:
    """Refuse, from here on and in this process, names outside the packages that are allowed or trusted.

    Args:
        words: of the command line; ``--trust a,b`` and ``--trust=a`` say whom to trust.

    Returns:
        The words without these.

    Raises:
        ValueError: if ``--trust`` names nothing, or what is no dotted name.
    """
    trusted, rest = _split(words)
    trusted += os.environ.get(VARIABLE, "").replace(":", ",").split(",")
    trusted = [name.strip() for name in trusted if name.strip()]
    for name in trusted:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--trust {name}: not the name of a package or module, such as my_rewards")
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED, *trusted])
    return rest


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names after ``--trust``, and all other words."""
    names: list[str] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        flag, has_value, value = word.partition("=")
        if flag != "--trust":
            rest.append(word)
            continue
        value = value if has_value else next(waiting, "")
        if not value or value.startswith("-"):
            raise ValueError("--trust needs the name of a package or module, such as --trust my_rewards")
        names += value.split(",")
    return names, rest
