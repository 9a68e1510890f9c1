"""LoRA on stacked experts whose products stay low-rank.

PEFT adapts a stack of experts by adding B A to all of it in every pass: as large as the stack, kept for the backward
pass, rounded to the stack's type, and in 4 bits impossible. Here its wrappers, their weights, names and files stay as
PEFT makes them, and only the computation is another: for each expert that some token chose, on the tokens that did,

    y = x W^T + s (x A^T) B^T

Shape letters: T tokens, H hidden size, E experts, k experts of a token, r rank, I input and O output features.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, cast

from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import linear

Model = TypeVar("Model", bound=nn.Module)

GATED_EXPERTS = frozenset(
    f"{name}Experts" for name in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3", "Glm4Moe")
)
"""Classes of transformers that hold ``gate_up_proj`` (E, 2 I, H) and ``down_proj`` (E, H, I), and read
``down(act(gate(x)) * up(x))``; adapters on others are computed by PEFT."""


class _Adapter(NamedTuple):
    """A (E, r, I), B (E, O, r) and their scale."""

    a: Tensor
    b: Tensor
    scale: float


class ExpertLora(ParamWrapper):
    """PEFT's adapter on a parameter of experts, and those that it wraps; it computes them all at once."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Output (T, H) of the experts; by PEFT where more is on than one adapter without merging.

        Args:
            x: (T, H).
            *args: experts (T, k) and their weights (T, k), as the experts themselves are called.
            **kwargs: none; PEFT's own are left to it.
        """
        wrappers = self._wrappers()
        active = {name for wrapper in wrappers for name in wrapper.active_adapters if name in wrapper.lora_A}
        is_off = any(wrapper.disable_adapters for wrapper in wrappers)
        if is_off or kwargs or len(active) != 1 or any(wrapper.merged for wrapper in wrappers):
            return super().forward(x, *args, **kwargs)
        name = active.pop()
        adapters = {w.parameter_name: _adapter_of(w, name) for w in wrappers if name in w.lora_A}
        index, weights = args
        return _computed(wrappers[-1].get_base_layer(), adapters, x, index, weights)

    def _wrappers(self) -> list[ParamWrapper]:
        """This one, the one that it wraps, and so on."""
        found: list[ParamWrapper] = [self]
        while isinstance(found[-1].base_layer, ParamWrapper):
            found.append(found[-1].base_layer)
        return found


ExpertLora.__name__ = ParamWrapper.__name__  # by which PEFT knows its own when it adds one more adapter


def keep_low_rank(model: Model) -> Model:
    """Let the adapters on experts of a model, whatever PEFT has just put there, compute as this module says."""
    for module in model.modules():
        if type(module) is ParamWrapper and type(module.get_base_layer()).__name__ in GATED_EXPERTS:
            module.__class__ = ExpertLora
    return model


def _adapter_of(wrapper: ParamWrapper, name: str) -> _Adapter:
    a, b = (cast(Tensor, matrices[name].weight) for matrices in (wrapper.lora_A, wrapper.lora_B))
    experts = wrapper.num_experts
    return _Adapter(
        a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts)).permute(2, 0, 1), wrapper.scaling[name]
    )


def _computed(experts: Any, adapters: dict[str, _Adapter], x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Output (T, H) of experts, one expert after another."""
    output = x.new_zeros(x.shape)
    for number in index.unique().tolist():
        rows, places = (index == number).nonzero(as_tuple=True)
        states = x[rows]
        gate, up = _projected(experts.gate_up_proj, adapters.get("gate_up_proj"), states, number).chunk(2, dim=-1)
        states = _projected(experts.down_proj, adapters.get("down_proj"), experts.act_fn(gate) * up, number)
        output = output.index_add(0, rows, (states * weights[rows, places, None]).to(output.dtype))
    return output


def _projected(stack: Tensor, adapter: _Adapter | None, x: Tensor, number: int) -> Tensor:
    """Output (t, O) of one expert for its tokens (t, I)."""
    output = linear(x, stack[number])
    if adapter is None:
        return output
    low = linear(x, adapter.a[number].to(x.dtype))
    return output + adapter.scale * linear(low, adapter.b[number].to(x.dtype))
