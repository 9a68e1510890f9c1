"""Our side of ``benchmarks/vision.py``: one setting, measured in this process."""

from __future__ import annotations

from typing import Any

from steps_lit_rlhf import backbone, run
from vision_tower import TowerCount

from lit_rlhf import DPOModule
from lit_rlhf.algorithms.dpo import ReferenceOptions

TOWER = TowerCount()


def make(plan: dict[str, Any], setting: dict[str, Any]) -> DPOModule:
    """The module to train; its default adapts the decoder."""
    reference = ReferenceOptions(cache=setting["cached_reference"], cache_folder=f"{plan['cache']}/{setting['tower']}")
    model = {**plan, "model": plan["models"][setting["tower"]]}
    module = DPOModule(backbone(model, setting), reference=reference)
    module.configure_model()
    TOWER.watch(module.model)
    return module


if __name__ == "__main__":
    run(__doc__, make, TOWER.said)
