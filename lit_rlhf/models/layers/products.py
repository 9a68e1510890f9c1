"""Products of dense matrices, and rows in portions.

On a CPU PyTorch multiplies float32 matrices by MKL, or by oneDNN where it is asked to. oneDNN is the faster on AMD's
processors (``benchmarks/cpu_kernels.py``), but it keeps half a MiB of code for each number of rows that it meets.
Rows are therefore computed in *portions* of one size, and what is left of them, of any size, is mostly MKL's. A portion
also stays in the processor's cache while its numbers pass from one product to the next, which a whole row of tokens
would not.

Shape letters: T tokens, I input and O output features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

PORTION = 512
"""Most rows of a portion on a CPU."""
_MULTIPLE = 64
"""Rows that oneDNN is given a multiple of, where there are more."""
_STEP = 16
"""It is given a multiple of as many inputs, and of as many rows where there are fewer, as adapters have."""
_PACKED_FOR = 16
"""Rows that a packed weight is laid out for."""


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + c`` (T, O), in new memory.

    Args:
        inputs: (T, I).
        weight: (O, I), of the same type; or a packed one, for few float32 rows on a CPU.
        bias: (O,).
    """
    if weight.is_mkldnn:
        return _packed_product(inputs, weight, bias)
    if _is_for_onednn(inputs, weight):
        return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return nn.functional.linear(inputs, weight, bias)


def add_product(total: Tensor, inputs: Tensor, weight: Tensor) -> None:
    """Add ``x W^T`` to ``total`` (T, O), in place.

    Args:
        total: what is added to.
        inputs: (T, I).
        weight: (O, I), of the same type.
    """
    if _is_for_onednn(inputs, weight):
        total.add_(product(inputs, weight))
    else:
        total.addmm_(inputs, weight.T)


def packed(weight: Tensor) -> Tensor:
    """A copy of a float32 weight on a CPU in the order that oneDNN reads best for few rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)


def portions_of(num_rows: int, device: torch.device) -> list[slice]:
    """Ranges of rows that are computed one after another on a CPU; elsewhere all at once."""
    if device.type != "cpu":
        return [slice(0, num_rows)]
    return [slice(start, min(start + PORTION, num_rows)) for start in range(0, max(num_rows, 1), PORTION)]


def in_portions(portions: Sequence[slice], compute: Callable[[slice], Sequence[Tensor]]) -> list[Tensor]:
    """Results of all rows, computed portion by portion.

    Args:
        portions: ranges of rows that follow on one another, at least one.
        compute: of a range of rows, its rows of every result, in new memory.
    """
    if len(portions) == 1:
        return list(compute(portions[0]))
    results: list[Tensor] = []
    for portion in portions:
        pieces = compute(portion)
        results = results or [piece.new_empty(portions[-1].stop, *piece.shape[1:]) for piece in pieces]
        for result, piece in zip(results, pieces, strict=True):
            result[portion] = piece
    return results


def _is_for_onednn(inputs: Tensor, weight: Tensor) -> bool:
    num_rows, num_inputs = inputs.shape
    if num_rows % (_MULTIPLE if num_rows > _MULTIPLE else _STEP) or num_inputs % _STEP or inputs.device.type != "cpu":
        return False
    return inputs.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _packed_product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Four rows cost less than one to three, and oneDNN keeps code for each number of rows that it meets.
    num_rows = inputs.shape[0]
    if num_rows % 4:
        inputs = nn.functional.pad(inputs, (0, 0, 0, -num_rows % 4))
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")[:num_rows]
