"""What a forward and a backward pass take: predicted, and measured on real models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

from lit_rlhf.estimating.anatomy import anatomy
from lit_rlhf.estimating.fused_layers import kept_by_rows
from lit_rlhf.estimating.passes import Pass, is_fused, layer_costs, training_pass, widths
from lit_rlhf.estimating.run import Run, Texts
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.layers import run_attention
from lit_rlhf.models.layers.causal_blocks import attend_causally
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, Segment

SIZES = {
    **{"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 500},
}
CASES: dict[str, tuple[Any, dict[str, Any], Texts]] = {
    "fused": (LlamaConfig(**SIZES), {}, Texts(32, 96, 2)),
    "fused, few are read": (LlamaConfig(**SIZES), {}, Texts(200, 24, 2)),
    "fused, beyond the short": (LlamaConfig(**SIZES), {}, Texts(500, 24, 2)),
    "fused, half precision": (LlamaConfig(**SIZES), {"dtype": "bfloat16"}, Texts(32, 96, 2)),
    "fused, recomputed": (LlamaConfig(**SIZES), {"gradient_checkpointing": True}, Texts(200, 24, 2)),
    "fused, normed heads": (Qwen3Config(**SIZES, head_dim=32), {}, Texts(32, 96, 2)),
    "stock, with dropout": (LlamaConfig(**SIZES), {"lora": LoraOptions(dropout=0.1)}, Texts(32, 96, 2)),
    "stock, all trained": (LlamaConfig(**SIZES), {"lora": LoraOptions(enabled=False)}, Texts(32, 96, 2)),
    "stock, soft cap": (Gemma2Config(**SIZES, head_dim=32), {}, Texts(32, 96, 2)),
    "stock, another family": (
        GPT2Config(n_embd=128, n_layer=4, n_head=4, vocab_size=500, n_positions=512),
        {"gradient_checkpointing": True},
        Texts(32, 96, 2),
    ),
}
TREES = 9


def measured(folder: Path, run: Run, peak_of: Callable[[Callable[[], Any]], int]) -> int:
    model = AutoModelForCausalLM.from_config(run.config).to(getattr(torch, run.backbone.dtype))
    model.save_pretrained(folder)
    backbone = build_backbone(run.backbone, reference="none")
    backbone.prepare()
    forest = text_of(run)
    assert forest.num_tokens == run.pass_tokens

    def step() -> None:
        backbone.token_logprobs(forest, with_entropy=True).logprobs.sum().backward()

    step()
    if run.backbone.lora.enabled:
        backbone.zero_grad()
    return peak_of(step)


def text_of(run: Run) -> Forest:
    prompt = Segment([5] * run.texts.prompt, [False] * run.texts.prompt)
    response = Segment([6] * run.texts.response, [True] * run.texts.response, 0)
    return Forest.pack([[prompt, *[response] * run.texts.per_prompt]] * TREES)


def predicted(run: Run) -> Pass:
    found = anatomy(run.config, run.backbone.dtype)
    return training_pass(run, found, layer_costs(run, found))


SLOW = ("fused, normed heads", "stock, with dropout", "stock, soft cap", "stock, another family")
"""The others show the same ways of counting; these show more families, at seconds each."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_a_pass_takes_what_is_predicted(case: str, tmp_path: Path, peak_of: Callable[[Callable[[], Any]], int]):
    config, changes, texts = CASES[case]
    backbone = BackboneConfig(str(tmp_path), **{"dtype": "float32", **changes})
    run = Run("sft", backbone, config, texts, 10**6, TREES, device="cpu")
    assert is_fused(run, anatomy(config, backbone.dtype)) == case.startswith("fused")
    assert predicted(run).peak == pytest.approx(measured(tmp_path, run, peak_of), rel=0.1)


def test_the_head_of_a_gpu_takes_larger_tiles(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lit_rlhf.estimating.passes.is_short", lambda *run: False)  # softmax weights are a CPU's
    config = LlamaConfig(**{**SIZES, "vocab_size": 50_000})
    cpu = predicted(make_run(config=config, texts=Texts(32, 96, 200)))
    gpu = predicted(make_run(config=config, texts=Texts(32, 96, 200), device="cuda"))
    assert gpu.peak - cpu.peak > 4 * 4 * 60 * 2**20


def test_what_no_kernel_can_run_without_numbers_is_guessed(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lit_rlhf.estimating.passes.trace_layers", lambda *args, **kwargs: None)
    run = make_run(backbone={"fused": False, "lora": LoraOptions(r=3)})
    costs = layer_costs(run, anatomy(run.config))
    assert costs.origin == "rough"
    assert costs.kept > 0


def test_a_trained_head_learns_from_logits_computed_again(make_run: Callable[..., Run]):
    plain = predicted(make_run())
    head = predicted(make_run(backbone={"lora": LoraOptions(modules_to_save=["lm_head"])}))
    assert head.kept < plain.kept  # no unit gradients wait


def test_softmax_weights_are_counted_as_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = LlamaConfig(**SIZES)
    run = Run(
        "sft", BackboneConfig(str(tmp_path), dtype="float32"), config, Texts(32, 96, 2), 10**6, TREES, device="cpu"
    )
    found = anatomy(config, "float32")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    backbone = build_backbone(run.backbone, reference="none")
    backbone.prepare()
    kept: list[tuple[int, int]] = []

    def attend(query: torch.Tensor, *others: Any) -> list[torch.Tensor]:
        weights = attend_causally(query, *others)
        kept.append((sum(block.numel() for block in weights) // config.num_attention_heads, query.shape[2]))
        return weights

    monkeypatch.setattr(run_attention, "attend_causally", attend)
    backbone.token_logprobs(text_of(run))
    inner, last = kept[: -2 * TREES], kept[-2 * TREES :]  # two runs a tree, in each layer
    counted = widths(run, found)
    assert counted.seen == sum(count for count, _ in inner) / sum(queries for _, queries in inner)
    costs = layer_costs(run, found)
    rest = kept_by_rows(counted._replace(seen=0.0)) + 4 + 4 * counted.hidden
    own = 4 * counted.heads * sum(count for count, _ in last) / sum(queries for _, queries in last)
    assert costs.last_read - rest == pytest.approx(own, rel=0.12)
    assert widths(replace(run, device="cuda"), found).seen == 0.0
