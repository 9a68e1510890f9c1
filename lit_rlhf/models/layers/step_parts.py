"""What the layers of a model compute with while responses are drawn: looked for once, as nothing is switched meanwhile.

A step reads every weight for a few rows, so what counts is how fast weights are read. On a CPU in float32 the linear
layers are copied, as far as there is room, with their adapters folded in and in the order that oneDNN reads best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lit_rlhf.models.layers.lora_linear import Projection


class StepParts:
    """The parts of every layer, for one role and the time of drawing.

    Args:
        max_copy_bytes: room for copies of weights; a layer whose weights do not fit is computed as in training.
    """

    def __init__(self, max_copy_bytes: int = 0) -> None:
        self._room = max_copy_bytes
        self._parts: dict[int, Any] = {}

    def of(self, layer: int, find: Callable[[], Any], dtype: torch.dtype) -> Any:
        """The parts of a layer.

        Args:
            layer: its number.
            find: gives its parts, a NamedTuple, some of them projections; or None, which is kept as well.
            dtype: of the layer's input.
        """
        if layer not in self._parts:
            parts = find()
            self._parts[layer] = parts if parts is None or dtype != torch.float32 else self._packed(parts)
        return self._parts[layer]

    def _packed(self, parts: Any) -> Any:
        projections = {name: part for name, part in parts._asdict().items() if isinstance(part, Projection)}
        size = sum(4 * projection.num_weights for projection in projections.values())
        on_cpu = all(projection.weight.device.type == "cpu" for projection in projections.values())
        if size > self._room or not on_cpu or not torch.backends.mkldnn.is_available():
            return parts
        self._room -= size
        return parts._replace(**{name: projection.packed() for name, projection in projections.items()})
