"""Attention over a forest, for any Hugging Face decoder that takes its attention from the registry of transformers.

A token attends to itself, to what precedes it in its segment and to all of its ancestors. Segments that follow one
another as parent and first child are one *run*; a run whose head is a root is plain causal attention, every other run
attends to its ancestors and then causally to itself. So a preference pair costs two calls: prompt with the first
response, then the second response over prompt and self. On a CPU they are :mod:`lit_rlhf.models.layers.run_attention`;
on a GPU in half precision, two variable-length calls for the whole row; elsewhere, and where a model needs a soft cap,
one call of scaled_dot_product_attention per run.

The layout travels as a keyword argument through the model's own layers, so that gradient checkpointing replays it.
Source of the two-call form: Wang et al., "Accelerating Direct Preference Optimization with Prefix Sharing",
arXiv 2410.20305.

Shape letters: T tokens in the row, Q queries and K keys of one run, D head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlhf.models.layers.cached_attention import CachedRows
from lit_rlhf.models.layers.causal_blocks import is_short
from lit_rlhf.models.layers.cross_attention import CachedPictures, SeenPictures
from lit_rlhf.models.layers.run_attention import attend_runs
from lit_rlhf.types import Forest

FOREST_ATTENTION = "lit_rlhf_forest"
"""Name under which the attention is registered with transformers."""

_VARLEN_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether this torch's variable-length attention takes fewer key-value heads than heads (2.12 and newer)."""


Read = Literal["all", "predictors", "ends"]
"""Whose hidden states are read: all tokens', those that predict a scored one, or the last of every sequence."""


Keep = Callable[[int, Tensor, Tensor], None]
"""Takes the number of a layer, its keys and its values."""


class Run(NamedTuple):
    """Consecutive segments of a row, each the parent of the next.

    Args:
        start: place of the first query among the queries.
        end: place after the last one.
        spans: (start, end) row ranges of the keys, in order of depth; the last one ends with the last query.
    """

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]

    @property
    def num_keys(self) -> int:
        """K, ancestors and all."""
        return sum(end - start for start, end in self.spans)


class ForestLayout:
    """Which tokens of a row see which, in the form that the kernels want. One per forest, shared by all layers.

    Args:
        forest: the packed row.
        queries: which tokens are queries; ``predictors`` are those of whole leaves. All keys stay.
        read: which hidden states will be read, so that the last layer may leave out all other queries.
        keep: takes the number of each layer, its keys and its values (1, heads, T, D) as they pass; None = nobody does.

    Attributes:
        runs: cover all queries in order.
        rows: (Q,) int64, row index of each query; None = every token of the row is one.
        last_layer: the layout of the last layer.
    """

    keep: Keep | None
    rows: Tensor | None
    last_layer: ForestLayout | None

    def __init__(self, forest: Forest, *, queries: Read = "all", read: Read = "all", keep: Keep | None = None) -> None:
        self._begin(_runs(forest, queries), forest.tokens.device)
        self.keep = keep
        if queries != "all":
            self.rows = _query_rows(self.runs).to(self.device, non_blocking=True)
        if read != "all":
            self.last_layer = ForestLayout(forest, queries=read, keep=keep)

    def _begin(self, runs: tuple[Run, ...], device: torch.device) -> None:
        self.keep = None
        self.runs = runs
        self.device = device
        self.rows = None
        self.last_layer = None
        self.windows: set[int | None] = set()  # that layers asked for
        self._masks: dict[tuple[int, int, int | None, torch.dtype], Tensor | None] = {}
        self._varlen: tuple[_Varlen | None, _Varlen | None] | None = None

    def passing(self, attention: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that queries of a layer attend to, from those (1, heads, T, D) that it computed."""
        if self.keep is not None:
            self.keep(cast(int, attention.layer_idx), key, value)
        return key, value

    def states_at(self, rows: Tensor, states: Tensor) -> Tensor:
        """Hidden states (N, H) of some rows (N,) int64 of the forest, out of those (T or Q, H) that a model returned.

        Args:
            rows: row indices; where the last layer was trimmed, of its queries.
            states: of all tokens, or of the last layer's queries, in order.
        """
        queries = None if self.last_layer is None else self.last_layer.rows
        if queries is not None and len(states) == len(queries):
            rows = torch.searchsorted(queries, rows)
        return states.index_select(0, rows)

    def mask(self, run: Run, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask (Q, K) of a run, 0 where a query sees a key and -inf elsewhere; None = plain causal.

        Args:
            run: the run.
            window: a query sees the ``window`` latest tokens of its sequence, itself included; None = all.
            dtype: of the queries.
        """
        num_queries, num_keys = run.end - run.start, run.num_keys
        if window is not None and window >= num_keys:
            window = None
        key = (num_queries, num_keys, window, dtype)
        if key not in self._masks:
            self._masks[key] = self._build_mask(num_queries, num_keys, window, dtype)
        return self._masks[key]

    def run_masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """Masks of all runs in the form that :func:`lit_rlhf.models.layers.run_attention.attend_runs` takes."""

        def is_plain(run: Run) -> bool:
            return is_short(run.num_keys, dtype) and (window is None or window >= run.num_keys)

        return [None if is_plain(run) else self.mask(run, window, dtype) for run in self.runs]

    def _build_mask(self, num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if window is None and num_queries == num_keys:
            return None
        depth = torch.arange(num_keys - num_queries, num_keys, device=self.device)[:, None]
        behind = depth - torch.arange(num_keys, device=self.device)
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return torch.zeros(num_queries, num_keys, dtype=dtype, device=self.device).masked_fill_(~seen, -torch.inf)

    @property
    def varlen(self) -> tuple[_Varlen | None, _Varlen | None]:
        """The row as at most two variable-length calls: runs that begin at a root, then all others."""
        if self._varlen is None:
            first = [run for run in self.runs if len(run.spans) == 1]
            later = [run for run in self.runs if len(run.spans) > 1]
            self._varlen = (_Varlen.of(first, self.device), _Varlen.of(later, self.device))
        return self._varlen


class _Varlen(NamedTuple):
    """One variable-length call over runs.

    Args:
        queries: (Tq,) int64, row index of every query.
        keys: (Tk,) int64, row index of every key.
        query_offsets: int32, where each run's queries begin, and their total.
        key_offsets: the same for the keys.
        max_queries: most queries of a run.
        max_keys: most keys of a run.
    """

    queries: Tensor
    keys: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    max_queries: int
    max_keys: int

    @classmethod
    def of(cls, runs: list[Run], device: torch.device) -> _Varlen | None:
        if not runs:
            return None
        queries = [torch.arange(run.start, run.end) for run in runs]
        keys = [torch.cat([torch.arange(*span) for span in run.spans]) for run in runs]
        query_sizes, key_sizes = [len(index) for index in queries], [len(index) for index in keys]

        def offsets(sizes: list[int]) -> Tensor:
            return torch.tensor([0, *sizes]).cumsum(0).to(device, torch.int32, non_blocking=True)

        return cls(
            torch.cat(queries).to(device, non_blocking=True),
            torch.cat(keys).to(device, non_blocking=True),
            offsets(query_sizes),
            offsets(key_sizes),
            max(query_sizes),
            max(key_sizes),
        )


def _runs(forest: Forest, queries: Read) -> tuple[Run, ...]:
    starts, inner = forest.starts, set(forest.parents)
    runs: list[Run] = []
    head = at = 0
    for segment in range(1, len(forest.lengths) + 1):
        if segment < len(forest.lengths) and forest.parents[segment] == segment - 1:
            continue
        start, end = starts[head], starts[segment - 1] + forest.lengths[segment - 1]
        ancestors = [(starts[number], starts[number] + forest.lengths[number]) for number in forest.path(head)[:-1]]
        first, last = start, end
        if queries == "predictors":
            first, last = _predictors(forest.lengths[head:segment], start, ends_in_leaf=segment - 1 not in inner)
        elif queries == "ends":
            first = max(start, end - 1)
        if last > first:
            runs.append(Run(at, at + last - first, _joined([*ancestors, (start, last)])))
            at += last - first
        head = segment
    return tuple(runs)


def _predictors(lengths: Sequence[int], start: int, *, ends_in_leaf: bool) -> tuple[int, int]:
    """Row range that holds all predictors of a run, told from the lengths of its segments.

    They begin with the last token of the first segment that has any, unless that is the last one. The last token of a
    leaf predicts nothing; children of another last segment stand further on in the row.
    """
    begin = next((length for length in lengths[:-1] if length), 1) - 1
    return start + begin, start + sum(lengths) - (ends_in_leaf and bool(lengths[-1]))


def _query_rows(runs: Sequence[Run]) -> Tensor:
    """(Q,) row index of every query: each run's are the last rows of its keys."""
    ranges = [torch.arange(run.spans[-1][1] - (run.end - run.start), run.spans[-1][1]) for run in runs]
    return torch.cat([torch.empty(0, dtype=torch.int64), *ranges])


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ancestors that touch become one span; the last one, the run itself, stays apart from its ancestors."""
    joined: list[tuple[int, int]] = []
    for start, end in spans[:-1]:
        if start == end:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return (*joined, spans[-1])


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | SeenPictures | CachedPictures | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    forest_layout: ForestLayout | CachedRows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function in the form that transformers registers.

    Args:
        module: the layer's attention module.
        query: (1, heads, T, D) with a layout, or of the rows that are its queries; any batch without one.
        key: (1, key-value heads, T, D).
        value: the same shape.
        attention_mask: ignored with a layout, unless the keys are rows of pictures; without one, the mask of ordinary
            rows.
        dropout: probability, while training.
        scaling: of the scores; 1 / sqrt(D) where None.
        forest_layout: who sees whom; None = ordinary rows (generation, the padded layout). With cached rows, a query
            sees the cache.
        sliding_window: the latest tokens that a query sees, in tokens of its sequence; None = all.
        softcap: scores become ``softcap * tanh(scores / softcap)``; None = off.
        **kwargs: what transformers passes besides.

    Returns:
        The output (1, T, heads, D) of all queries, and None in place of attention weights.

    Raises:
        NotImplementedError: if the model asks for attention sinks or a position bias, which no piece here can give.
    """
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention over a forest cannot apply '{name}'")
    if isinstance(attention_mask, SeenPictures | CachedPictures):
        keep = isinstance(forest_layout, ForestLayout) and forest_layout.keep is not None
        number = cast(int, module.layer_idx)
        return attention_mask.attend(number, query, key, value, scaling=scaling, keep=keep), None
    if forest_layout is None:
        if softcap is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        mask = _row_mask(query, key, attention_mask)
        return _attend(query, key, value, mask, dropout, scaling, softcap).transpose(1, 2).contiguous(), None
    if isinstance(forest_layout, CachedRows):
        layer = cast(int, module.layer_idx)
        return forest_layout.attend(layer, query, key, value, scaling, sliding_window, softcap), None
    key, value = forest_layout.passing(module, key, value)
    forest_layout.windows.add(sliding_window)
    if softcap is None and dropout == 0.0 and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _attend_varlen(query, key, value, forest_layout, scaling, sliding_window)[None], None
    alike = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]  # autocast mixes types
    if softcap is None and dropout == 0.0 and query.device.type == "cpu" and alike:
        masks = forest_layout.run_masks(sliding_window, query.dtype)
        return attend_runs(query, key, value, forest_layout.runs, masks, scaling), None
    outputs = []
    for run in forest_layout.runs:
        keys, values = (torch.cat([x[:, :, start:end] for start, end in run.spans], dim=2) for x in (key, value))
        mask = forest_layout.mask(run, sliding_window, query.dtype)
        outputs.append(_attend(query[:, :, run.start : run.end], keys, values, mask, dropout, scaling, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """(1, heads, Q, D); ``mask`` is additive, None = plain causal."""
    if softcap is None:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
    weights = torch.softmax((scores + mask).float(), dim=-1).to(query.dtype)
    return nn.functional.dropout(weights, dropout) @ value


def _row_mask(query: Tensor, key: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Additive form of the mask that transformers made; None = plain causal."""
    if attention_mask is None:
        return None if query.shape[2] > 1 else torch.zeros(1, key.shape[2], dtype=query.dtype, device=query.device)
    if attention_mask.dtype != torch.bool:
        return attention_mask
    zeros = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
    return zeros.masked_fill_(~attention_mask, torch.finfo(query.dtype).min)


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: ForestLayout, scaling: float | None, window: int | None
) -> Tensor:
    """(T, heads, D) by at most two variable-length calls."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {}
    if groups > 1 and _VARLEN_TAKES_GROUPS:
        options = {"enable_gqa": True}
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.empty_like(query)
    for call in layout.varlen:
        if call is None:
            continue
        attended = varlen_attn(
            query.index_select(0, call.queries),
            key.index_select(0, call.keys),
            value.index_select(0, call.keys),
            call.query_offsets,
            call.key_offsets,
            call.max_queries,
            call.max_keys,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            **options,
        )
        output = output.index_copy(0, call.queries, cast(Tensor, attended))
    return output


AttentionInterface.register(FOREST_ATTENTION, forest_attention)
AttentionMaskInterface.register(FOREST_ATTENTION, sdpa_mask)
