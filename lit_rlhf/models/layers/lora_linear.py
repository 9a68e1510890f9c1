"""The algebra of frozen linear layers with low-rank adapters, outside of autograd.

One layer is ``y = x W^T + c + s (x A^T) B^T`` with W and c frozen. Its gradients, from g = dL/dy, are

    dA = s (g B)^T x,    dB = s g^T (x A^T),    dx = g W + s (g B) A,

so x is all that the backward pass needs; x A^T is computed again. Layers that read the same x are treated together:
their A are stacked into one product.

In float32, and where there are enough tokens for it to be cheaper, an adapter is folded into the weight for the time
of one product, ``W' = W + s B A``: y = x W'^T + c and dx = g W'. In half precision that would round the adapter away,
so there its products stay apart, in the type of x. A 4-bit weight is dequantised for the time of one product.

Shape letters: T tokens, I input and O output features, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import bitsandbytes
import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from lit_rlhf.models.layers.products import add_product, packed, product


class Adapter(NamedTuple):
    """A low-rank update of a weight.

    Args:
        a: (r, I), of any floating type.
        b: (O, r).
        scale: s, usually alpha / r.
    """

    a: Tensor
    b: Tensor
    scale: float

    def is_folded(self, inputs: Tensor) -> bool:
        """Whether the adapter joins the weight for ``inputs`` (T, I) rather than being applied beside it."""
        sides = self.b.shape[0], self.a.shape[1]
        return inputs.dtype == torch.float32 and inputs.shape[0] * sum(sides) >= sides[0] * sides[1]


class Projection(NamedTuple):
    """A frozen linear layer and the adapter that is on right now.

    Args:
        weight: (O, I), or 4-bit codes of it.
        bias: (O,) or None.
        quant_state: how bitsandbytes packed the weight; None = it is dense.
        adapter: None = none is on.
        holds_adapter: whether the weight is a copy that the adapter is folded into.
    """

    weight: Tensor
    bias: Tensor | None
    quant_state: bitsandbytes.functional.QuantState | None = None
    adapter: Adapter | None = None
    holds_adapter: bool = False

    @property
    def num_weights(self) -> int:
        """O * I."""
        return (self.weight if self.quant_state is None else self.quant_state).shape.numel()

    def ready(self, inputs: Tensor) -> Projection:
        """The same layer with a dense weight in the type of ``inputs`` (T, I), the adapter in it where it is folded."""
        if self.holds_adapter or self.weight.is_mkldnn:
            return self
        if self.adapter is not None and self.adapter.is_folded(inputs):
            return self._replace(weight=self._folded(inputs.dtype), quant_state=None, holds_adapter=True)
        return self._replace(weight=self._dense(inputs.dtype), quant_state=None)

    def beside(self, inputs: Tensor) -> Adapter | None:
        """The adapter where it is applied beside the weight to ``inputs`` (T, I)."""
        is_in = self.adapter is None or self.holds_adapter or self.adapter.is_folded(inputs)
        return None if is_in else self.adapter

    def packed(self) -> Projection:
        """The same layer for float32 inputs on a CPU, its adapter in a copy of the weight that few rows read faster."""
        return Projection(packed(self._folded(torch.float32)), self.bias)

    def _dense(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the frozen weight alone."""
        if self.quant_state is None:
            return self.weight
        return bitsandbytes.functional.dequantize_4bit(self.weight.data, self.quant_state).to(dtype)

    def _folded(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weight with the adapter in it."""
        weight = self._dense(dtype)
        if self.adapter is None:
            return weight
        a, b, scale = self.adapter
        return torch.addmm(weight, b.to(weight.dtype), a.to(weight.dtype), alpha=scale)


def projection_of(module: nn.Module, dtype: torch.dtype) -> Projection | None:
    """What a linear layer computes at this moment, if that is no more than a :class:`Projection`.

    Args:
        module: a linear layer of torch or bitsandbytes (4 bit), or PEFT's LoRA on one.
        dtype: of its input.

    Returns:
        None for another type of layer, a trained weight, a merged, mixed or varied adapter (DoRA and its like), a
        dropout that is on, or a weight that does not compute in ``dtype``.
    """
    if type(module) not in (LoraLinear, LoraLinear4bit):
        return _frozen(module, dtype)
    layer = cast(LoraLinear, module)
    base = _frozen(layer.get_base_layer(), dtype)
    names = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    if base is None or layer.merged or not names:
        return None if layer.merged else base
    name = names[0]
    dropping = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    if len(names) > 1 or dropping or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    a, b = (cast(Tensor, matrices[name].weight) for matrices in (layer.lora_A, layer.lora_B))
    return base._replace(adapter=Adapter(a, b, float(layer.scaling[name])))


def _frozen(module: nn.Module, dtype: torch.dtype) -> Projection | None:
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return None
    if isinstance(module, bitsandbytes.nn.Linear4bit) and module.compute_dtype == dtype:
        return Projection(module.weight, module.bias, quant_state_of(module))
    # Of the very types: a tensor subclass as weight (other quantisers, sharded tensors) has an algebra of its own.
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter and module.weight.dtype == dtype:
        return Projection(module.weight, module.bias)
    return None


def quant_state_of(module: bitsandbytes.nn.Linear4bit) -> bitsandbytes.functional.QuantState:
    """How a 4-bit weight is packed. A sharded weight is a plain tensor while it is whole; the layer knows it then."""
    weight: Any = module.weight
    return weight.quant_state if isinstance(weight, bitsandbytes.nn.Params4bit) else cast(Any, module).quant_state


def projected(inputs: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Outputs (T, O) of layers that all read ``inputs`` (T, I), each in new memory."""
    lows = _lows(inputs, [adapter for p in projections if (adapter := p.beside(inputs)) is not None])
    outputs = []
    for projection in projections:
        bias = None if projection.bias is None else projection.bias.to(inputs.dtype)
        output = product(inputs, projection.ready(inputs).weight, bias)
        if (adapter := projection.beside(inputs)) is not None:
            output.addmm_(next(lows), adapter.b.to(output.dtype).T, alpha=adapter.scale)
        outputs.append(output)
    return tuple(outputs)


def projected_backward(
    inputs: Tensor,
    projections: Sequence[Projection],
    gradients: Sequence[Tensor],
    *,
    wants_inputs: bool,
    wants_adapters: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of :func:`projected`.

    Args:
        inputs: (T, I).
        projections: the layers.
        gradients: (T, O) of each output.
        wants_inputs: whether the gradient of ``inputs`` is needed.
        wants_adapters: whether those of the adapters are.

    Returns:
        The gradient (T, I) of ``inputs``, in new memory, or None. The gradients of A and B of each layer in turn, None
        where there is no adapter or they are not wanted.
    """
    adapters = [projection.adapter for projection in projections]
    # s (g B) of each layer, (T, r)
    lows = [
        None if x is None else product(g, (x.b * x.scale).to(g.dtype).T)
        for x, g in zip(adapters, gradients, strict=True)
    ]
    adapter_gradients: list[Tensor | None] = [None] * (2 * len(projections))
    if wants_adapters:
        adapter_gradients = _adapter_gradients(inputs, adapters, gradients, lows)
    if not wants_inputs:
        return None, adapter_gradients
    total: Tensor | None = None
    for projection, gradient, low in zip(projections, gradients, lows, strict=True):
        weight = projection.ready(inputs).weight.T
        if total is None:
            total = product(gradient, weight)
        else:
            add_product(total, gradient, weight)
        if (adapter := projection.beside(inputs)) is not None and low is not None:
            total.addmm_(low, adapter.a.to(low.dtype))
    return total, adapter_gradients


def _adapter_gradients(
    inputs: Tensor,
    adapters: Sequence[Adapter | None],
    gradients: Sequence[Tensor],
    low_gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of A and B of each layer in turn."""
    present = [adapter for adapter in adapters if adapter is not None]
    if not present:
        return [None] * (2 * len(adapters))
    stacked = product(torch.cat([low for low in low_gradients if low is not None], dim=1).T, inputs.T)
    a_gradients = iter(stacked.split([adapter.a.shape[0] for adapter in present]))
    lows = _lows(inputs, present)
    result: list[Tensor | None] = []
    for adapter, gradient in zip(adapters, gradients, strict=True):
        if adapter is None:
            result += [None, None]
        else:
            b_gradient = product(next(lows).T, gradient.T).mul_(adapter.scale).T  # the wide side last is the faster
            result += [next(a_gradients).to(adapter.a.dtype), b_gradient.to(adapter.b.dtype)]
    return result


def _lows(inputs: Tensor, adapters: Sequence[Adapter]) -> Iterator[Tensor]:
    """``x A^T`` (T, r) of each adapter, by one product."""
    if not adapters:
        return iter(())
    stack = torch.cat([adapter.a for adapter in adapters]).to(inputs.dtype)
    return iter(product(inputs, stack).split([adapter.a.shape[0] for adapter in adapters], dim=1))
