"""Our side of ``benchmarks/dpo.py``: one setting, measured in this process."""

from __future__ import annotations

from typing import Any

from steps_lit_rlhf import backbone, run

from lit_rlhf import DPOModule
from lit_rlhf.algorithms.dpo import ReferenceOptions


def make(plan: dict[str, Any], setting: dict[str, Any]) -> DPOModule:
    """The module to train."""
    reference = ReferenceOptions(cache=setting["cached_reference"], cache_folder=plan["cache"])
    return DPOModule(backbone(plan, setting), reference=reference)


if __name__ == "__main__":
    run(__doc__, make)
