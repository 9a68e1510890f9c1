"""Attention run by run against one dense softmax over a mask of who sees whom."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lit_rlhf.models.layers import causal_blocks, run_attention
from lit_rlhf.models.layers.attention import ForestLayout
from lit_rlhf.models.layers.causal_blocks import attend_causally
from lit_rlhf.models.layers.run_attention import attend_runs

D = 8


def visible(forest):
    """(T, T) bool: row sees column. Written from the definition, token by token."""
    owner = [segment for segment, length in enumerate(forest.lengths) for _ in range(length)]
    paths = [set(forest.path(segment)) for segment in range(len(forest.lengths))]
    return torch.tensor([[b in paths[a] and j <= i for j, b in enumerate(owner)] for i, a in enumerate(owner)])


def qkv(forest, rows, heads, key_heads, dtype=torch.float32):
    torch.manual_seed(0)
    num_queries = forest.num_tokens if rows is None else len(rows)
    shapes = ((heads, num_queries), (key_heads, forest.num_tokens), (key_heads, forest.num_tokens))
    return [torch.randn(1, *shape, D).to(dtype).requires_grad_() for shape in shapes]


def dense(query, key, value, seen, scaling):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf)
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2)


@pytest.fixture(params=["in blocks", "by the kernel"])
def way(request, monkeypatch):
    """How a run is computed: block by block, of three queries, or by the kernel that long ones have."""
    monkeypatch.setattr(causal_blocks, "_BLOCK", 3)
    if request.param == "by the kernel":
        monkeypatch.setattr(causal_blocks, "MOST_KEYS", 0)
    return request.param


def attend(query, key, value, layout, scaling=None, window=None):
    return attend_runs(query, key, value, layout.runs, layout.run_masks(window, query.dtype), scaling)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("queries", ["all", "predictors", "ends"])
def test_outputs_and_gradients(heads, key_heads, queries, ragged, way):
    layout = ForestLayout(ragged, queries=queries)
    inputs = qkv(ragged, layout.rows, heads, key_heads)
    seen = visible(ragged) if layout.rows is None else visible(ragged)[layout.rows]
    expected, ours = dense(*inputs, seen, 0.3), attend(*inputs, layout, 0.3)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(ours)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for found, theirs in zip(torch.autograd.grad((ours * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-6)


def test_the_usual_scale(ragged, way):
    layout, inputs = ForestLayout(ragged), qkv(ragged, None, 2, 2)
    torch.testing.assert_close(attend(*inputs, layout), attend(*inputs, layout, D**-0.5))


def test_a_window(ragged, way):
    layout, inputs = ForestLayout(ragged), qkv(ragged, None, 2, 2)
    depth = ragged.positions
    seen = visible(ragged) & (depth[:, None] - depth[None] < 3)
    torch.testing.assert_close(attend(*inputs, layout, 0.3, window=3), dense(*inputs, seen, 0.3), rtol=1e-5, atol=1e-6)


def test_weights_are_not_held_where_no_backward_pass_follows(ragged, monkeypatch):
    alive = []

    def noting(*args):
        assert not any(one() is not None for one in alive[:-1])  # here a run is one block
        found = attend_causally(*args)
        alive.extend(weakref.ref(block) for block in found)
        return found

    monkeypatch.setattr(run_attention, "attend_causally", noting)
    attend(*(x.detach() for x in qkv(ragged, None, 2, 2)), ForestLayout(ragged))
    assert len(alive) == len(ForestLayout(ragged).runs)


def test_half_precision(ragged):
    layout, inputs = ForestLayout(ragged), qkv(ragged, None, 4, 2, torch.bfloat16)
    ours = attend(*inputs, layout, 0.3)
    ours.float().sum().backward()
    expected = dense(*(x.detach().float() for x in inputs), visible(ragged), 0.3)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, rtol=2e-2, atol=2e-2)
    assert all(x.grad.dtype == torch.bfloat16 for x in inputs)


def test_predictors_are_all_among_the_queries(ragged):
    rows = ForestLayout(ragged, queries="predictors").rows.tolist()
    assert set(ragged.predictors.tolist()) <= set(rows)
    assert rows == sorted(set(rows))


@pytest.mark.parametrize("most_keys", [512, 0])
def test_nothing_is_kept_twice(most_keys, ragged, monkeypatch):
    monkeypatch.setattr(causal_blocks, "MOST_KEYS", most_keys)
    layout, inputs, kept = ForestLayout(ragged), qkv(ragged, None, 4, 2), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(*inputs, layout)
    per_token = 4 * D + 2 * (2 * D) + 4 * D  # queries, keys and values, output
    # Of every head one number for each token; or its weights in blocks: here a run is one block.
    weights = 4 * sum((run.end - run.start) * run.num_keys for run in layout.runs)
    of_heads = weights if most_keys else 4 * ragged.num_tokens
    assert sum(kept.values()) == per_token * ragged.num_tokens + of_heads
