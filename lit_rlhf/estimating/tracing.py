"""What a decoder layer of any family keeps and needs in passing, counted while it computes on tensors without numbers.

torch's FakeTensorMode runs the layers' own code, forward and backward, on tensors that have shapes and no memory; each
piece of memory that they would have is counted from its making to its end. Two layers and three tell what one more
costs, so that a model of any depth takes a second.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from lit_rlhf.models.layers.attention import FOREST_ATTENTION, ForestLayout
from lit_rlhf.models.layout import set_attention
from lit_rlhf.models.vision import is_seeing, open_eyes
from lit_rlhf.types import Forest


class Traced(NamedTuple):
    """Bytes per token and layer.

    Args:
        kept: for the backward pass.
        around: kept beside the layers, per token: positions, embeddings, the last norm and its states.
        forward: in passing, in the forward pass of one layer.
        backward: in passing, in the backward pass of one layer.
    """

    kept: float
    around: float
    forward: float
    backward: float


def trace_layers(
    make: Callable[[], nn.Module],
    layers_of: Callable[[PreTrainedModel], nn.ModuleList],
    forest: Forest,
    *,
    is_autocast: bool = False,
) -> Traced | None:
    """Trace decoder layers.

    Args:
        make: gives a model on the device ``meta``, adapters on it, what is trained requiring gradients.
        layers_of: finds its decoder layers.
        forest: the row that is traced.
        is_autocast: whether they compute under autocast to bfloat16.

    Returns:
        The mean layer's costs; None where the layers do what depends on numbers, such as sorting tokens by experts.
    """
    kinds = _kinds(layers_of(_base(make())))
    first = [number for members in kinds for number in members[:2]]
    few = _measure(make, layers_of, first, forest, is_autocast)
    if few is None:
        return None
    kept, of_few = 0.0, 0.0
    for members in kinds:
        more = _measure(make, layers_of, sorted([*first, members[0]]), forest, is_autocast)
        if more is None:
            return None
        kept += (more.kept - few.kept) * len(members)
        of_few += (more.kept - few.kept) * len(members[:2])
    return few._replace(kept=kept / sum(map(len, kinds)), around=few.kept - of_few)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive.

    Args:
        known: tensors that are not counted, such as weights.

    Attributes:
        now: bytes that are alive.
        peak: most of them since :meth:`mark`.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held = [tensor.untyped_storage() for tensor in known]
        self._sizes = {storage._cdata: 0 for storage in self._held}

    def mark(self) -> None:
        """Begin a new peak."""
        self.peak = self.now

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _base(model: nn.Module) -> PreTrainedModel:
    from peft import PeftModel

    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _kinds(layers: nn.ModuleList) -> list[list[int]]:
    """Numbers of the layers of each kind: of one class, with parts of the same shapes."""
    found: dict[Any, list[int]] = {}
    for number, layer in enumerate(layers):
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
        found.setdefault((type(layer), shapes), []).append(number)
    return list(found.values())


def _measure(
    make: Callable[[], nn.Module],
    layers_of: Callable[[PreTrainedModel], nn.ModuleList],
    chosen: Sequence[int],
    forest: Forest,
    is_autocast: bool,
) -> Traced | None:
    """Costs of a model of only these layers, per token; ``kept`` is all that is kept."""
    model = make()
    base = _base(model)
    set_attention([base], FOREST_ATTENTION)
    layers = layers_of(base)
    stack = [layers[number] for number in chosen]
    while len(layers):
        del layers[0]
    layers.extend(stack)  # one that is chosen twice stands twice
    config = base.config.get_text_config()
    config.num_hidden_layers = len(chosen)
    if kinds := config.to_dict().get("layer_types"):
        config.layer_types = [kinds[number] for number in chosen]
    autocast: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), _numbers_without_memory(model) as known, Live(known) as live:
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        try:
            with autocast:
                states = base.get_decoder()(
                    input_ids=forest.tokens[None],
                    position_ids=forest.positions[None],
                    attention_mask=mask,
                    use_cache=False,
                    forest_layout=ForestLayout(forest),
                    **(open_eyes(base).blank_inputs(forest) if is_seeing(base.config) else {}),
                ).last_hidden_state
            kept, forward = live.now, live.peak
            live.mark()
            states.backward(torch.empty_like(states))
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return None
        count = forest.num_tokens
        return Traced(kept / count, 0.0, (forward - kept) / count, (live.peak - kept) / count)


@contextmanager
def _numbers_without_memory(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a model on the device ``meta`` weights and gradients of the present mode, on a CPU."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it prints a trace where a kernel refuses
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    known: list[Tensor] = []
    for part in model.modules():
        for place in (part._parameters, part._buffers):
            for name, tensor in place.items():
                if tensor is None:
                    continue
                new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    if tensor.requires_grad:
                        new.grad = torch.empty_like(new)
                        known.append(new.grad)
                cast(Any, place)[name] = new
                known.append(new)
    try:
        yield known
    finally:
        logger.setLevel(level)
