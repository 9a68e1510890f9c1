"""Attention over a forest against one row per sequence through the models' own code."""

from __future__ import annotations

from itertools import count, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lit_rlhf.models.building import wrap_model
from lit_rlhf.models.layers import attention
from lit_rlhf.models.layers.attention import ForestLayout, Run, forest_attention

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama_one_head": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "mistral_window_3": (MistralForCausalLM, MistralConfig, {"sliding_window": 3}),
    "mistral_window_8": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2_window_4": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 9,
        },
    ),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig,
        {"logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A model, and the same weights in a backbone."""
    kind, config, extra = FAMILIES[request.param]
    torch.manual_seed(0)
    plain = kind(config(**{**SHAPE, **extra}, attn_implementation="eager")).eval()
    # transformers 5.17 takes sdpa by default also where that leaves a soft cap out.
    attention = {"attn_implementation": "eager"} if "attn_logit_softcapping" in extra else {}
    wrapped = kind(config(**{**SHAPE, **extra}, **attention)).eval()
    wrapped.load_state_dict(plain.state_dict())
    return plain, wrap_model(wrapped, reference="none")


def test_logprobs_and_gradients_of_every_family(family, ragged, row_logprobs):
    plain, backbone = family
    expected, ours = row_logprobs(plain, ragged), backbone.token_logprobs(ragged).logprobs
    assert backbone.layout == "forest"
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, len(ours))
    for loss in ((weights * expected).sum(), (weights * ours).sum()):
        loss.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in backbone.model.named_parameters():
        wanted = theirs[name].grad
        assert (parameter.grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-7, name
        parameter.grad = theirs[name].grad = None


@st.composite
def trees(draw):
    """Trees of depth 3 at most, uneven, some of their segments empty; every sequence has at least two tokens."""
    shape, depths = [(draw(st.integers(0, 6)), -1)], [0]
    for _ in range(draw(st.integers(0, 5))):
        parent = draw(st.sampled_from([number for number, depth in enumerate(depths) if depth < 3]))
        shape.append((draw(st.integers(0, 6)), parent))
        depths.append(depths[parent] + 1)
    parents = {parent for _, parent in shape}
    return [
        (max(length, 2) if number not in parents else length, parent) for number, (length, parent) in enumerate(shape)
    ]


@settings(deadline=None, max_examples=12)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_random_forests(family, make_forest, row_logprobs, shapes):
    plain, backbone = family
    ids = (5 + number * 37 % 300 for number in count())
    forest = make_forest(*([(list(islice(ids, length)), parent) for length, parent in shape] for shape in shapes))
    with torch.no_grad():
        expected, ours = row_logprobs(plain, forest), backbone.token_logprobs(forest).logprobs
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)


def test_runs_by_hand(make_forest):
    # root 0-2, its child 2-5 and grandchild 5-6 go on; two later children go back to their ancestors
    forest = make_forest([([1, 2], -1), ([3, 4, 5], 0), ([6], 1), ([7, 8], 1), ([9], 0)], [([1, 2], -1)])
    assert ForestLayout(forest).runs == (
        Run(0, 6, ((0, 6),)),
        Run(6, 8, ((0, 5), (6, 8))),
        Run(8, 9, ((0, 2), (8, 9))),
        Run(9, 11, ((9, 11),)),
    )


def test_queries_of_ends_by_hand(make_forest):
    """One query per leaf, all keys: also where the leaf is the end of a run that begins at a root."""
    forest = make_forest([([1, 2], -1), ([3, 4, 5], 0), ([6], 1), ([7, 8], 1), ([9], 0)], [([1, 2], -1)])
    layout = ForestLayout(forest, read="ends").last_layer
    assert layout.rows.tolist() == list(forest.ends) == [5, 7, 8, 10]
    assert layout.runs == (
        Run(0, 1, ((0, 6),)),
        Run(1, 2, ((0, 5), (6, 8))),
        Run(2, 3, ((0, 2), (8, 9))),
        Run(3, 4, ((9, 11),)),
    )
    assert ForestLayout(forest, read="ends").rows is None
    assert ForestLayout(forest).last_layer is None


@pytest.mark.parametrize("read", ["predictors", "ends"])
def test_states_at_rows_of_a_layer_trimmed_or_not(ragged, read):
    layout = ForestLayout(ragged, read=read)
    rows = ragged.predictors if read == "predictors" else torch.tensor(ragged.ends)
    states = torch.arange(ragged.num_tokens)[:, None] * torch.ones(3)
    assert layout.states_at(rows, states)[:, 0].tolist() == rows.tolist()
    assert layout.states_at(rows, states[layout.last_layer.rows])[:, 0].tolist() == rows.tolist()
    assert len(layout.last_layer.rows) < ragged.num_tokens


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("read", ["predictors", "ends"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_trimmed_queries_see_what_they_saw(monkeypatch, ragged, window, read, softcap):
    """On the pieces, on the kernel of runs, and on two variable-length calls."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, ragged.num_tokens, 8, dtype=torch.float64) for heads in (4, 2, 2))
    options = {"sliding_window": window, "softcap": softcap}
    whole, _ = forest_attention(None, query, key, value, None, forest_layout=ForestLayout(ragged), **options)
    layout = ForestLayout(ragged, read=read).last_layer
    ours, _ = forest_attention(None, query[:, :, layout.rows], key, value, None, forest_layout=layout, **options)
    torch.testing.assert_close(ours, whole[:, layout.rows])
    monkeypatch.setattr(attention, "varlen_attn", slow_varlen)
    if softcap is None:
        for_calls = attention._attend_varlen(query, key, value, ForestLayout(ragged), None, window)
        torch.testing.assert_close(for_calls[None], whole)


def test_masks_are_made_once_and_only_where_needed(make_forest):
    layout = ForestLayout(make_forest([([1, 2], -1), ([3], 0), ([4], 0)], [([1, 2], -1), ([3], 0), ([4], 0)]))
    first, second, third, fourth = layout.runs
    assert layout.mask(first, None, torch.float32) is None
    assert layout.mask(first, 3, torch.float32) is None
    assert layout.mask(first, 2, torch.float32).tolist() == [
        [0, -torch.inf, -torch.inf],
        [0, 0, -torch.inf],
        [-torch.inf, 0, 0],
    ]
    assert layout.mask(second, None, torch.float32) is layout.mask(fourth, None, torch.float32)
    assert layout.mask(third, None, torch.float32) is None


def slow_varlen(query, key, value, q_offsets, k_offsets, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What torch documents of varlen_attn: sequences by offsets, the causal corner at the bottom right, a window."""
    assert (max_q, max_k) == (int(q_offsets.diff().max()), int(k_offsets.diff().max()))
    assert q_offsets.dtype == k_offsets.dtype == torch.int32
    left, right = window_size
    assert right == 0
    pieces = []
    for number in range(len(q_offsets) - 1):
        q = query[q_offsets[number] : q_offsets[number + 1]].transpose(0, 1)
        k, v = (x[k_offsets[number] : k_offsets[number + 1]].transpose(0, 1) for x in (key, value))
        behind = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])
        seen = (behind >= 0) & (behind <= left if left >= 0 else behind >= 0)
        pieces.append(scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_two_variable_length_calls_equal_the_pieces(monkeypatch, ragged, window, scaling):
    monkeypatch.setattr(attention, "varlen_attn", slow_varlen)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, ragged.num_tokens, 8, dtype=torch.float64) for heads in (4, 2, 2))
    layout = ForestLayout(ragged)
    pieces, _ = forest_attention(
        None, query, key, value, None, scaling=scaling, forest_layout=layout, sliding_window=window
    )
    ours = attention._attend_varlen(query, key, value, layout, scaling, window)
    torch.testing.assert_close(ours[None], pieces)


def test_one_call_is_enough_without_second_children(monkeypatch, make_forest):
    calls = []
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **k: calls.append(1) or slow_varlen(*a, **k))
    query = torch.randn(1, 1, 3, 4)
    attention._attend_varlen(query, query, query, ForestLayout(make_forest([([1, 2], -1), ([3], 0)])), None, None)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_what_no_piece_can_give_is_refused(ragged, name):
    query = torch.randn(1, 1, ragged.num_tokens, 4)
    with pytest.raises(NotImplementedError, match=name):
        forest_attention(None, query, query, query, None, forest_layout=ForestLayout(ragged), **{name: torch.ones(1)})


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
def test_variable_length_calls_of_torch_on_a_gpu(ragged, window):
    torch.manual_seed(0)
    forest = ragged.to(torch.device("cuda"))
    layout = ForestLayout(forest)
    query, key, value = (
        torch.randn(1, heads, forest.num_tokens, 64, dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2)
    )
    ours, _ = forest_attention(None, query, key, value, None, forest_layout=layout, sliding_window=window)
    pieces, _ = forest_attention(
        None,
        *(x.float() for x in (query, key, value)),
        None,
        forest_layout=layout,
        sliding_window=window,
    )
    torch.testing.assert_close(ours.float(), pieces, rtol=2e-2, atol=2e-2)
