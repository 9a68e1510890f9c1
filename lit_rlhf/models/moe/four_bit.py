"""Weights of experts in 4 bits. bitsandbytes quantises linear layers, and experts are stacked in one plain tensor.

A stack is cut into its experts, and each is quantised as bitsandbytes quantises a linear layer: NF4 in blocks of 64
weights whose scales are quantised again (Dettmers et al., "QLoRA", arXiv 2305.14314). What stands in the model is a
tensor of the same shape and type whose numbers exist only while a product reads them:

    w[e]            one expert, still in 4 bits
    linear(x, w[e]) that expert as numbers, for the time of the product; again for that of its backward pass

Autograd keeps the 4 bits, not the numbers. Any other operation sees the numbers of the whole stack, so that nothing is
wrong, merely larger.

Shape letters: E experts, O output and I input features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

_BLOCK, _NESTED_BLOCK = 64, 256
_PARTS = ("codes", "absmax", "nested_absmax", "offset")


class FourBitWeight(Tensor):
    """A frozen (E, O, I) stack of weights, or the (O, I) weight of one expert, in 4 bits. Make one with :meth:`of`.

    Attributes:
        codes: (E, O * I / 2) uint8, two weights each; whole blocks of them.
        absmax: (E, blocks) uint8, the scale of each block.
        nested_absmax: (E, nested blocks) float32, the scales of those.
        offset: (E,) float32, their mean.
        is_transposed: whether it is (I, O) to whoever looks.
    """

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    offset: Tensor
    is_transposed: bool

    @staticmethod
    def __new__(
        cls: type[FourBitWeight],
        shape: torch.Size,
        dtype: torch.dtype,
        parts: dict[str, Tensor],
        is_transposed: bool = False,
    ) -> Any:
        """A tensor without numbers of its own."""
        seen = _turned(shape) if is_transposed else shape
        # What is looked at in inference mode is a view of a weight that was not made in it.
        with torch.inference_mode(False):
            self = Tensor._make_wrapper_subclass(cls, seen, dtype=dtype, device=parts["codes"].device)
        self.is_transposed = is_transposed
        for name in _PARTS:
            setattr(self, name, parts[name])
        return self

    @classmethod
    def of(cls, weight: Tensor, device: torch.device | None = None) -> FourBitWeight:
        """Quantise a stack, one expert after another.

        Args:
            weight: (E, O, I), float.
            device: where its 4 bits come to lie; None = where it is.
        """
        found: list[dict[str, Tensor]] = []
        for expert in weight.detach():
            blocks = _in_blocks(expert.to(device or weight.device))
            codes, state = quantize_4bit(blocks, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
            values = (codes.flatten(), state.absmax, state.state2.absmax, state.offset)
            found.append(dict(zip(_PARTS, values, strict=True)))
        parts = {name: torch.stack([one[name] for one in found]) for name in _PARTS}
        return cast(FourBitWeight, cls(weight.shape, weight.dtype, parts))

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self._parts().values())

    def dense(self) -> Tensor:
        """Its numbers, in new memory."""
        if self.ndim == 3:
            return torch.stack([_one(self, 0, number).dense() for number in range(len(self))])
        levels, nested_levels = _levels(self.device)
        nested = QuantState(self.nested_absmax, code=nested_levels, blocksize=_NESTED_BLOCK, dtype=torch.float32)
        state = QuantState(
            absmax=self.absmax,
            shape=torch.Size([2 * self.codes.numel() // _BLOCK, _BLOCK]),
            code=levels,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.offset,
            state2=nested,
        )
        numbers = dequantize_4bit(self.codes[:, None], state).flatten()[: self.numel()].view(self._own_shape)
        return numbers.t() if self.is_transposed else numbers

    @property
    def _own_shape(self) -> torch.Size:
        """(..., O, I), however it is looked at."""
        return _turned(self.shape) if self.is_transposed else self.shape

    def _parts(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _PARTS}

    def _like(self, change: Callable[[Tensor], Tensor], **changes: Any) -> FourBitWeight:
        """The same weight with each of its parts changed."""
        given = {"shape": self._own_shape, "dtype": self.dtype, "is_transposed": self.is_transposed, **changes}
        return cast(FourBitWeight, FourBitWeight(parts={k: change(v) for k, v in self._parts().items()}, **given))

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """Its parts, by which modules know that it is moved as a whole."""
        return list(_PARTS), (self.dtype, self.is_transposed)

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], context: Any, shape: torch.Size, stride: Any) -> FourBitWeight:
        """The way back."""
        dtype, is_transposed = context
        return cast(
            FourBitWeight, FourBitWeight(_turned(shape) if is_transposed else shape, dtype, parts, is_transposed)
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """What it is, without its numbers."""
        return f"FourBitWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Keep the 4 bits where that is the same, and be numbers elsewhere."""
        own = _KEEPS.get(func)
        if own is not None and isinstance(args[0], FourBitWeight):
            kept = own(*args, **(kwargs or {}))
            if kept is not None:
                return kept
        dense = partial(tree_map, lambda x: x.dense() if isinstance(x, FourBitWeight) else x)
        return func(*dense(args), **dense(kwargs or {}))


@cache
def _levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 16 numbers that codes stand for, and the 256 that scales stand for."""
    return get_4bit_type("nf4", device=device), create_dynamic_map().to(device)


def _in_blocks(weight: Tensor) -> Tensor:
    """(blocks, 64) all weights, zeros behind them; on a CPU bitsandbytes misreads rows that are not whole blocks."""
    flat = weight.flatten()
    return nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)


def _turned(shape: torch.Size) -> torch.Size:
    """The shape of a matrix, looked at from its other side; only a matrix is transposed in 4 bits."""
    return torch.Size(reversed(shape))


def _moved(weight: FourBitWeight, *, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any) -> Any:
    return weight._like(lambda part: part.to(device or part.device), dtype=dtype or weight.dtype)


def _one(weight: FourBitWeight, dim: int, index: int) -> Any:
    if dim or weight.ndim != 3:
        return None
    return weight._like(lambda part: part[index], shape=weight.shape[1:])


def _transposed(weight: FourBitWeight, *dims: int) -> Any:
    if weight.ndim != 2:
        return None
    return weight._like(lambda part: part, is_transposed=not weight.is_transposed)


_ATEN = torch.ops.aten
_KEEPS: dict[Any, Callable[..., Any]] = {
    _ATEN.detach.default: lambda weight: weight._like(lambda part: part),
    _ATEN.alias.default: lambda weight: weight._like(lambda part: part),
    _ATEN.clone.default: lambda weight, **kwargs: weight._like(Tensor.clone),
    _ATEN._to_copy.default: _moved,
    _ATEN.select.int: _one,
    _ATEN.t.default: _transposed,
    _ATEN.transpose.int: _transposed,
}
"""Operations after which a weight is still in 4 bits; one that gives None sees its numbers after all."""


def quantise_experts(model: PreTrainedModel, device: torch.device | None = None) -> int:
    """Put the stacked weights of all experts of a model into 4 bits, one expert after another.

    Args:
        model: whose experts are in full precision. It computes one expert at a time from then on: what computes all
            of them in one product needs all of their numbers at once.
        device: where their 4 bits come to lie; None = where they are.

    Returns:
        How many stacks were quantised.
    """
    found = expert_parameters(model)
    for module, name in found:
        weight = getattr(module, name)
        setattr(module, name, nn.Parameter(FourBitWeight.of(weight.data, device), requires_grad=False))
    if found and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return len(found)


def expert_parameters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The stacked weights (E, O, I) of the experts of a model: the module that holds each, and its name there."""
    return [
        (module, name)
        for path, module in model.named_modules()
        if "experts" in path.split(".")
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def has_four_bit_experts(module: nn.Module) -> bool:
    """Whether experts of a model are held in 4 bits."""
    return any(isinstance(parameter, FourBitWeight) for parameter in module.parameters())
