"""Fused decoder layers against the stock ones: the same numbers from less memory, and the stock path where due."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gpt_neox import GPTNeoXConfig, GPTNeoXForCausalLM

from lit_rlhf.models.adapters import POLICY, REFERENCE, active_adapter, copy_adapter
from lit_rlhf.models.building import wrap_model
from lit_rlhf.models.layers import fused, products
from lit_rlhf.models.layers.attention import ForestLayout
from lit_rlhf.models.layers.fused import fuse

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama_all_heads_bias": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral_window": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2_window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}


@torch.no_grad()
def make_policy(kind=LlamaForCausalLM, config=LlamaConfig, extra=None, dtype=torch.float32, **lora):
    """A frozen random model, norms and biases not trivial, and a LoRA that is not zero."""
    torch.manual_seed(0)
    model = kind(config(**{**SHAPE, **(extra or {})}))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    policy = get_peft_model(model.to(dtype).requires_grad_(False).train(), LoraConfig(**options), adapter_name=POLICY)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0.0, 0.1)
    return policy


def outcome(policy, forest, retain=False):
    """Log-probabilities, and the gradients of an uneven sum of them."""
    backbone = wrap_model(policy, reference="none")
    logprobs = backbone.token_logprobs(forest).logprobs
    assert backbone.layout == "forest"
    policy.zero_grad()
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward(retain_graph=retain)
    return logprobs.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def assert_equal_outcome(ours, theirs, tolerance=3e-6):
    """Norms of differences; a gradient that all but vanishes is measured on the scale of the others."""
    assert (ours[0] - theirs[0]).norm() <= tolerance * theirs[0].norm()
    assert ours[1].keys() == theirs[1].keys()
    scale = max(gradient.norm() for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-2 * scale), name


@pytest.fixture
def computed(monkeypatch):
    """Number of times that a layer took the fused path, in a list of one."""
    count, compute = [0], fused._FusedLayer._compute

    def counting(self, *args, **kwargs):
        count[0] += 1
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(fused._FusedLayer, "_compute", counting)
    return count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj", "down_proj"], ["k_proj", "o_proj", "gate_proj"]]
)
def test_the_same_numbers_as_stock_layers(family, targets, ragged, computed):
    policy = make_policy(*FAMILIES[family], target_modules=targets)
    theirs = outcome(policy, ragged)
    assert fuse(policy.get_base_model()) == 3
    wrap_model(policy, reference="none").prepare()
    computed[0] = 0
    ours = outcome(policy, ragged)
    assert computed[0] >= 3
    assert_equal_outcome(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_numbers_in_portions(family, ragged, computed, monkeypatch):
    policy = make_policy(*FAMILIES[family])
    theirs = outcome(policy, ragged)
    monkeypatch.setattr(products, "PORTION", 8)
    fuse(policy.get_base_model())
    assert_equal_outcome(outcome(policy, ragged), theirs)
    assert computed[0] >= 3


def test_the_same_numbers_on_real_pairs(real_pairs, shared_data, build, stir, computed):
    folder = shared_data / "models" / "stories260k-llama"
    theirs, ours = (build(folder, fused=how).model for how in (False, True))
    ours.load_state_dict(stir(theirs, scale=0.02).state_dict())
    expected = outcome(theirs, real_pairs)
    assert computed[0] == 0
    assert_equal_outcome(outcome(ours, real_pairs), expected, tolerance=1e-5)
    assert computed[0] > 0


def test_gradient_checkpointing_keeps_inputs_alone(ragged, computed):
    policy = make_policy()
    theirs = outcome(policy, ragged)
    base = policy.get_base_model()
    fuse(base)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    computed[0] = 0
    assert_equal_outcome(outcome(policy, ragged), theirs)
    assert computed[0] >= 2 * 3  # forward, and again in the backward pass


def test_kept_for_the_backward_pass(ragged):
    """Six hidden and two MLP widths per token and layer at most, where keys have as many heads as queries."""
    policy = make_policy(extra={"num_key_value_heads": 4, "num_hidden_layers": 4})
    fuse(policy.get_base_model())
    backbone = wrap_model(policy, reference="none")
    backbone.prepare()
    known = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        states = backbone.hidden_states(ragged)
    per_layer = sum(kept.values()) / 4 / 4 / ragged.num_tokens
    widths = 6 * SHAPE["hidden_size"] + 2 * SHAPE["intermediate_size"]
    assert states.requires_grad
    assert per_layer <= 1.15 * widths  # norms, log-sums, angles, and the last norm of the model


def test_a_backward_pass_can_be_repeated(ragged):
    policy = make_policy()
    fuse(policy.get_base_model())
    backbone = wrap_model(policy, reference="none")
    loss = (backbone.token_logprobs(ragged).logprobs ** 2).sum()
    trained = [p for p in policy.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, trained, allow_unused=True)
    for one, two in zip(first, second, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


def test_adapters_are_looked_up_at_each_call(ragged, computed):
    """None, the policy, and a reference that was added after fusing."""
    stock, policy = make_policy(), make_policy()
    fuse(policy.get_base_model())
    for model in (stock, policy):
        copy_adapter(model, POLICY, REFERENCE)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if REFERENCE in name.split("."):
                    parameter.mul_(0.5)
    wrap_model(policy, reference="none").prepare()
    seen = []
    for adapter in (None, POLICY, REFERENCE):
        computed[0] = 0
        found = []
        for model in (stock, policy):
            with active_adapter(model, adapter), torch.no_grad():
                found.append(wrap_model(model, reference="none").token_logprobs(ragged).logprobs)
        torch.testing.assert_close(found[1], found[0], rtol=2e-6, atol=2e-6)
        assert computed[0] >= 3
        seen.append(found[1])
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[1], seen[2])


def refuse(*args, **kwargs):
    raise AssertionError("this call belongs to the stock path")


def add_hook(policy):
    for module in policy.modules():
        if type(module).__name__ == "LlamaMLP":
            module.register_forward_hook(lambda module, args, output: output * 1.5)


def train_norms(policy):
    for name, parameter in policy.named_parameters():
        if "layernorm" in name:
            parameter.requires_grad_(True)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"lora_dropout": 0.5}, None),
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({"modules_to_save": ["gate_proj", "input_layernorm"], "target_modules": ["q_proj"]}, None),
        ({}, add_hook),
        ({}, train_norms),
        ({}, lambda policy: policy.merge_adapter()),
    ],
    ids=["dropout", "dora", "lora_bias", "whole_modules", "hook", "trained_norms", "merged"],
)
def test_what_does_not_fit_is_left_to_the_stock_path(options, change, ragged, monkeypatch):
    found = []
    for how in (False, True):
        policy = make_policy(extra={"mlp_bias": True, "attention_bias": True}, **options)
        if change is not None:
            change(policy)
        backbone = wrap_model(policy, reference="none")
        backbone.prepare()
        assert backbone.layout == "forest"
        if how:
            fuse(policy.get_base_model())
            monkeypatch.setattr(fused._FusedLayer, "_compute", refuse)
        torch.manual_seed(5)
        logprobs = backbone.token_logprobs(ragged).logprobs
        found.append(logprobs)
        if logprobs.requires_grad:
            logprobs.sum().backward()
            found[-1] = (logprobs.detach(), [p.grad for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def test_dropout_fits_while_evaluating(ragged, computed):
    policy = make_policy(lora_dropout=0.5)
    fuse(policy.get_base_model())
    outcome(policy, ragged)  # training: the stock path, but for the probe, which is evaluation
    computed[0] = 0
    with torch.no_grad():
        wrap_model(policy.eval(), reference="none").token_logprobs(ragged)
    assert computed[0] >= 3


def test_full_fine_tuning_and_autocast_are_stock(build, ragged, monkeypatch):
    monkeypatch.setattr(fused._FusedLayer, "_compute", refuse)
    whole = build(lora={"enabled": False}, fused=True, reference="none")
    whole.token_logprobs(ragged).logprobs.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        build(fused=True).token_logprobs(ragged)


def test_generation_is_stock(build, monkeypatch):
    stock, ours = build(), build(fused=True)
    ours.prepare()
    monkeypatch.setattr(fused._FusedLayer, "_compute", refuse)
    prompts = [[5, 9, 4], [8, 8, 8, 8, 12]]
    answers = [backbone.generate(prompts, 8, stop_tokens=[2], temperature=0.0) for backbone in (stock, ours)]
    assert answers[0] == answers[1]


def test_the_last_layer_computes_only_what_is_read(ragged, build, monkeypatch):
    ours = build(fused=True)
    ours.prepare()
    widths, compute = [], fused._FusedLayer._compute

    def noting(self, *args, **kwargs):
        states = compute(self, *args, **kwargs)
        widths.append(len(states))
        return states

    monkeypatch.setattr(fused._FusedLayer, "_compute", noting)
    whole = ours.hidden_states(ragged)
    read = ours.hidden_states(ragged, read="predictors")
    short = len(ForestLayout(ragged, read="predictors").last_layer.rows)
    assert widths == [ragged.num_tokens, ragged.num_tokens, ragged.num_tokens, short]
    assert len(set(ragged.predictors.tolist())) <= short < ragged.num_tokens
    torch.testing.assert_close(read, whole[ragged.predictors], rtol=1e-5, atol=1e-6)
    ends = ours.hidden_states(ragged, read="ends")
    assert widths[-2:] == [ragged.num_tokens, ragged.num_sequences]
    torch.testing.assert_close(ends, whole[list(ragged.ends)], rtol=1e-5, atol=1e-6)


def states_and_gradients(policy, forest, read):
    """Hidden states of the ends, read so or out of all tokens', and gradients of an uneven sum of them."""
    backbone = wrap_model(policy, reference="none")
    states = backbone.hidden_states(forest, read=read)
    states = states if read == "ends" else states[list(forest.ends)]
    policy.zero_grad()
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["fused", "stock"])
def test_the_ends_alone_are_those_of_whole_layers(family, lora, ragged):
    """Windows reach from an end over its ancestors; layers that are left to the stock path are trimmed after it."""
    policy = make_policy(*FAMILIES[family], **lora)
    expected = states_and_gradients(policy, ragged, "all")
    fuse(policy.get_base_model())
    assert_equal_outcome(states_and_gradients(policy, ragged, "ends"), expected)


def test_stock_layers_after_fusing_return_what_is_read_too(ragged):
    policy = make_policy(use_dora=True)
    expected = outcome(policy, ragged)
    fuse(policy.get_base_model())
    assert_equal_outcome(outcome(policy, ragged), expected)


def test_half_precision_is_as_exact_as_stock(ragged):
    """bfloat16 base and float32 adapters, measured against float32: no further off than PEFT by half."""
    exact = make_policy()
    with torch.no_grad():
        for parameter in exact.get_base_model().parameters():
            if not parameter.requires_grad:
                parameter.copy_(parameter.bfloat16().float())
    stock = make_policy(dtype=torch.bfloat16)
    ours = deepcopy(stock)
    fuse(ours.get_base_model())
    truth = outcome(exact, ragged)
    errors = []
    for policy in (stock, ours):
        logprobs, gradients = outcome(policy, ragged)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        flat, flat_truth = (torch.cat([g.flatten() for g in part.values()]) for part in (gradients, truth[1]))
        errors.append(((logprobs - truth[0]).norm(), (flat - flat_truth).norm() / flat_truth.norm()))
    assert errors[1][0] <= 1.5 * errors[0][0]
    assert errors[1][1] <= 1.5 * errors[0][1]
    assert errors[0][1] < 0.1


def test_four_bits(build, ragged, stir, computed):
    policy = stir(build(quantization="nf4")).model
    expected = outcome(policy, ragged)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    assert computed[0] == 0
    fuse(policy.get_base_model())
    assert_equal_outcome(outcome(policy, ragged), expected, tolerance=1e-5)
    assert computed[0] >= 2
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_eight_bits_are_stock(build, ragged, monkeypatch):
    monkeypatch.setattr(fused._FusedLayer, "_compute", refuse)
    build(quantization="int8", fused=True).token_logprobs(ragged)


def test_layers_keep_their_names_and_weights(computed, ragged):
    policy = make_policy()
    base = policy.get_base_model()
    names, printed = list(policy.state_dict()), str(policy)
    assert fuse(base) == 3
    assert fuse(base) == 0
    assert list(policy.state_dict()) == names
    assert str(policy) == printed
    copied = deepcopy(policy)
    assert_equal_outcome(outcome(copied, ragged), outcome(policy, ragged), tolerance=0)
    assert computed[0] >= 6


def test_other_decoders_are_left_alone():
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    assert fuse(GPTNeoXForCausalLM(GPTNeoXConfig(**shape))) == 0


def test_padded_rows_are_stock(build, ragged, monkeypatch):
    monkeypatch.setattr(fused._FusedLayer, "_compute", refuse)
    ours = build(fused=True, attention="sdpa").token_logprobs(ragged).logprobs
    torch.testing.assert_close(ours, build(attention="sdpa").token_logprobs(ragged).logprobs)


def test_another_activation_is_stock(ragged, monkeypatch):
    monkeypatch.setattr(fused._FusedLayer, "_compute", refuse)
    policy = make_policy(extra={"hidden_act": "gelu"})
    assert fuse(policy.get_base_model()) == 3
    outcome(policy, ragged)
