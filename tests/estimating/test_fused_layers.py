"""The formulas of fused layers, worked by hand."""

from __future__ import annotations

from lit_rlhf.estimating.fused_layers import (
    Widths,
    backward_mlp,
    forward_pass,
    kept_by_keys,
    kept_by_rows,
    kept_per_token,
)

LLAMA_3 = Widths(hidden=4096, query=4096, key=1024, mlp=14336, heads=32, layers=32, number_bytes=2)


def test_what_is_kept_of_a_token_by_hand():
    # bf16: input and mid-layer state, rotated queries and output, keys and values, gate and up; two norms, 32 sums.
    assert kept_per_token(LLAMA_3) == 2 * (2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 14336) + 4 + 4 + 4 * 32


def test_what_only_read_tokens_need_is_all_but_input_keys_and_values():
    assert kept_by_keys(LLAMA_3) == 2 * (4096 + 2048) + 4
    assert kept_by_rows(LLAMA_3) + kept_by_keys(LLAMA_3) == kept_per_token(LLAMA_3)


def test_normed_heads_keep_float32_copies():
    assert kept_by_rows(LLAMA_3._replace(is_normed=True)) - kept_by_rows(LLAMA_3) == 4 * (4096 + 1024)


def test_a_gpu_keeps_an_output_and_keys_of_its_own():
    assert kept_by_rows(LLAMA_3._replace(on_gpu=True)) - kept_by_rows(LLAMA_3) == 2 * (4096 + 2 * 1024)


def test_the_backward_pass_of_the_mlp_is_the_larger_of_two_moments():
    # Half precision, a narrow MLP: the norm behind it, in float32. A wide one: three tensors of its width.
    assert backward_mlp(LLAMA_3._replace(mlp=4096)) == 4 * 4096 + 12 * 4096 + 2 * 4096 + 4 * 4096
    assert backward_mlp(LLAMA_3._replace(mlp=40_000)) == 6 * 40_000 + 4 * 4096


def test_what_is_in_passing_is_of_the_tokens_that_are_computed_at_a_time():
    portion = LLAMA_3._replace(portion=0.25)
    assert backward_mlp(LLAMA_3) == 2 * 2 * 14336 + 14 * 4096 + 4 * 4096
    assert backward_mlp(portion) == (2 * 2 * 14336 + 14 * 4096) // 4 + 4 * 4096
    assert forward_pass(portion) == 2 * (4096 + 4096 + 3 * 14336 // 4)


def test_a_pass_without_a_graph_needs_the_mlp_or_the_attention():
    assert forward_pass(LLAMA_3) == 2 * (4096 + 4096 + 3 * 14336)
    assert forward_pass(LLAMA_3._replace(mlp=100)) == 2 * (4096 + 4096 + 2 * 4096 + 2 * 1024)
