"""Which layers of a model get an adapter: of one that reads pictures those of its decoder, unless others are named.

The tower of such a model has layers of the same names (``q_proj``) as its decoder, and PEFT goes by names alone.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from lit_rlhf.models.moe.routers import find_routers
from lit_rlhf.models.vision import is_seeing


def target_modules(model: PreTrainedModel, wanted: str | list[str]) -> str | list[str]:
    """What PEFT is told.

    Args:
        model: without adapters.
        wanted: "all-linear", a regular expression over whole names, or name endings. Of a model that reads pictures,
            "all-linear" means its decoder, and a name ending is looked for in the decoder first: only one that is not
            there, such as ``multi_modal_projector.linear_1`` or ``vision_tower``'s ``fc1``, is looked for beside it.

    Returns:
        The same for a model that reads text alone, and for a regular expression; else one that says so.
    """
    if not is_seeing(model.config) or (isinstance(wanted, str) and wanted != "all-linear"):
        return wanted
    decoder = model.get_decoder()
    place = next(name for name, part in model.named_modules() if part is decoder)
    parts = {f"{place}.{name}": part for name, part in decoder.named_modules() if name}
    if isinstance(wanted, str):
        routers = {router.module for router in find_routers(model)}
        linear = [name for name, part in parts.items() if isinstance(part, nn.Linear) and part not in routers]
        wanted = sorted({name.rpartition(".")[2] for name in linear})
    inside = [ending for ending in wanted if any(f".{name}".endswith(f".{ending}") for name in parts)]
    beside = [ending for ending in wanted if ending not in inside]
    patterns = [rf"{re.escape(place)}\.(?:.*\.)?(?:{_either(inside)})"] if inside else []
    patterns += [rf"(?:.*\.)?(?:{_either(beside)})"] if beside else []
    return "|".join(patterns)


def _either(endings: list[str]) -> str:
    return "|".join(map(re.escape, endings))
