"""Our side of ``benchmarks/reward.py``: one setting, measured in this process."""

from __future__ import annotations

from typing import Any

from steps_lit_rlhf import backbone, run

from lit_rlhf import RewardModule


def make(plan: dict[str, Any], setting: dict[str, Any]) -> RewardModule:
    """The module to train."""
    return RewardModule(backbone(plan, setting))


if __name__ == "__main__":
    run(__doc__, make)
