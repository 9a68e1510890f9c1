"""What the layers of a model compute with while responses are drawn: looked for once, as nothing is switched meanwhile.

A step reads every weight for a few rows, so what counts is how fast weights are read. On a CPU in float32 the linear
layers are copied, as far as there is room, with their adapters folded in and in the order that oneDNN reads best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
            if parts is not None:
                found = {name: part for name, part in parts._asdict().items() if isinstance(part, Projection)}
                parts = parts._replace(**dict(zip(found, self.packed([*found.values()], dtype), strict=True)))
            self._parts[layer] = parts
        return self._parts[layer]

    def packed(self, projections: Sequence[Projection], dtype: torch.dtype) -> list[Projection]:
        """Copies of linear layers if there is room for all of them, and the layers themselves otherwise.

        Args:
            projections: the layers.
            dtype: of their inputs.
        """
        size = sum(4 * projection.num_weights for projection in projections)
        on_cpu = all(projection.weight.device.type == "cpu" for projection in projections)
        if dtype != torch.float32 or not on_cpu or size > self._room or not torch.backends.mkldnn.is_available():
            return list(projections)
        self._room -= size
        return [projection.packed() for projection in projections]
