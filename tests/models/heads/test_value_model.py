"""The model with a value head: what it computes for every family, what it does not compute, and its names for tensors.

Folders are the business of test_value_files.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

import lit_rlhf
from lit_rlhf import AutoModelForCausalLMWithValueHead, ValueHead
from lit_rlhf.models.loading import quantization_config

VOCABULARY, HIDDEN = 67, 16
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 64}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = {
    "llama": SHAPE,
    "gpt_neox": SHAPE,
    "gpt2": GPT2,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": 2},
    "opt": {**SHAPE, "word_embed_proj_dim": 8, "ffn_dim": 32},
    "gemma2": {**SHAPE, "head_dim": 8, "final_logit_softcapping": 0.05},
    "cohere": {**SHAPE, "logit_scale": 0.25},
    "granite": {**SHAPE, "logits_scaling": 4.0},
    "mixtral": {**SHAPE, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gemma3": {
        "text_config": {**SHAPE, "head_dim": 8, "pad_token_id": 0},
        "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "image_token_index": 60,
    },
}
TOKENS = torch.tensor([[5, 9, 13, 2, 44, 21, 8], [30, 3, 17, 50, 6, 11, 29]])


def language_model(family="llama", **overrides):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **{**FAMILIES[family], **overrides})
        ).eval()


def value_model(family="llama", **overrides):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLMWithValueHead(language_model(family, **overrides))


def lora(**options):
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, **options)


def states_below_head(model, **inputs):
    """The oracle: what the model's own forward hands to its output layer."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = model(use_cache=False, **inputs)
    hook.remove()
    return seen[0], output


def test_it_prints_as_it_always_did():
    model = value_model()
    inner = str(model.pretrained_model).replace("\n", "\n  ")
    head = str(model.v_head).replace("\n", "\n  ")
    assert inner.startswith("LlamaForCausalLM(")
    assert str(model) == (f"AutoModelForCausalLMWithValueHead(\n  (pretrained_model): {inner}\n  (v_head): {head}\n)")
    assert isinstance(model.v_head, ValueHead)
    assert {"AutoModelForCausalLMWithValueHead", "ValueHead"} <= set(lit_rlhf.__all__)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_loss_and_values_of_every_family(family):
    model = value_model(family)
    states, expected = states_below_head(model.pretrained_model, input_ids=TOKENS, labels=TOKENS)
    logits, loss, values = model(TOKENS, labels=TOKENS)
    assert torch.equal(logits, expected.logits), "caps and scales are kept"
    assert torch.equal(loss, expected.loss)
    assert torch.equal(values, model.v_head(states).squeeze(-1))
    assert (values.shape, values.dtype) == (TOKENS.shape, torch.float32)
    assert values.std() > 0.01
    assert model(TOKENS)[1] is None
    torch.testing.assert_close(model.values(TOKENS), values)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_values_do_not_depend_on_padding(family):
    model = value_model(family)
    row, padding, ones = TOKENS[:1, :5], torch.full((1, 3), 7), torch.ones(1, 5, dtype=torch.long)
    plain = model.values(row)
    zeros = torch.zeros_like(padding)
    left, left_mask = torch.cat([padding, row], 1), torch.cat([zeros, ones], 1)
    right, right_mask = torch.cat([row, padding], 1), torch.cat([ones, zeros], 1)
    for values in (model.values(left, left_mask), model(left, attention_mask=left_mask)[2]):
        torch.testing.assert_close(values[:, 3:], plain, atol=1e-6, rtol=0)
    for values in (model.values(right, right_mask), model(right, attention_mask=right_mask)[2]):
        torch.testing.assert_close(values[:, :5], plain, atol=1e-6, rtol=0)
    assert not torch.allclose(model.values(left)[:, 3:], plain, atol=1e-4, rtol=0), "unmasked, padding is text"


class Passing(nn.Module):
    """What a model may call its decoder, though it goes on computing after it."""

    def forward(self, states):
        return (states,)


class Norm(nn.Module):
    """A last norm with such a decoder in it."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.decoder = norm, Passing()

    def forward(self, states):
        return self.norm(self.decoder(states)[0])


@torch.no_grad()
def test_the_states_are_those_that_reach_the_output_head(monkeypatch):
    model = value_model()
    expected = model.values(TOKENS)
    base = model.pretrained_model
    base.model.norm = Norm(base.model.norm)
    monkeypatch.setattr(base, "get_decoder", lambda: base.model.norm.decoder)
    assert torch.equal(model(TOKENS)[2], expected)


def test_nothing_is_left_hooked():
    model = value_model("opt")
    model(TOKENS)
    with pytest.raises(TypeError):
        model(TOKENS, labels="none")
    assert [name for name, part in model.named_modules() if part._forward_hooks] == []


class Shapes(TorchDispatchMode):
    """Shapes of everything that is computed inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.seen |= {tuple(tensor.shape) for tensor in made if isinstance(tensor, torch.Tensor)}
        return result


def of_vocabulary(seen, rows):
    """Shapes with as many numbers as logits for ``rows`` tokens of each sequence."""
    return [shape for shape in seen if VOCABULARY in shape and shape != (VOCABULARY, HIDDEN) and rows in shape]


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_no_logits_and_no_stack_of_states(adapted):
    model = value_model()
    if adapted:
        model = AutoModelForCausalLMWithValueHead(get_peft_model(model.pretrained_model, lora()))
    outputs = []
    decoder = model.config and model._decoder
    decoder.register_forward_hook(lambda _, __, output: outputs.append(output))
    with Shapes() as shapes:
        model.values(TOKENS)
    assert not [shape for shape in shapes.seen if VOCABULARY in shape[-1:]]
    with Shapes() as shapes:
        logits, _, values = model(TOKENS, logits_to_keep=2)
    assert (logits.shape, values.shape) == ((2, 2, VOCABULARY), (2, 7))
    assert not of_vocabulary(shapes.seen, rows=7)
    with Shapes() as shapes:
        model(TOKENS)
    assert of_vocabulary(shapes.seen, rows=7), "the test can see logits where there are some"
    assert [output.hidden_states for output in outputs] == [None] * 3
    assert [output.past_key_values for output in outputs] == [None] * 3


@torch.no_grad()
def test_the_last_logits_alone():
    model = value_model("gemma2")
    torch.testing.assert_close(model(TOKENS, logits_to_keep=3)[0], model(TOKENS)[0][:, -3:])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_step_by_step(family):
    model = value_model(family)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    whole, expected = model(TOKENS, attention_mask=mask)[::2]
    assert len(model(TOKENS)) == 3
    *_, first, cache = model(TOKENS[:, :4], attention_mask=mask[:, :4], return_past_key_values=True)
    logits, _, second, cache = model(TOKENS[:, 4:], cache, mask, return_past_key_values=True)
    torch.testing.assert_close(torch.cat([first, second], 1)[mask.bool()], expected[mask.bool()])
    torch.testing.assert_close(logits, whole[:, 4:])
    assert cache.get_seq_length() == 7


@torch.no_grad()
def test_embeddings_in_place_of_tokens():
    model = value_model("gpt2")
    embedded = model.pretrained_model.get_input_embeddings()(TOKENS)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    expected = model.values(TOKENS, mask)
    torch.testing.assert_close(model.values(inputs_embeds=embedded, attention_mask=mask), expected)


@pytest.mark.parametrize(("family", "expected"), [("llama", True), ("bloom", False), ("gemma3", False)])
def test_who_is_told_positions(family, expected):
    """Not who has none, and not who makes them of several numbers per token."""
    model, told = value_model(family), []
    model._base.base_model.register_forward_pre_hook(lambda _, __, inputs: told.append(inputs), with_kwargs=True)
    model.values(TOKENS, torch.ones_like(TOKENS))
    assert (told[0].get("position_ids") is not None) == expected


def test_positions_that_are_given_count():
    model, positions = value_model("gpt2"), torch.arange(7).flip(0)[None].expand(2, 7)
    ones = torch.ones_like(TOKENS)
    assert not torch.allclose(model.values(TOKENS, ones), model.values(TOKENS, ones, position_ids=positions))


def test_a_model_in_bfloat16():
    model = value_model().to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.v_head.summary.weight.dtype == torch.float32
    logits, _, values = model(TOKENS)
    assert logits.dtype == values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float()), "nor computed in bfloat16"
    with torch.autocast("cpu", torch.bfloat16):
        assert value_model().values(TOKENS).dtype == torch.float32


def test_it_generates():
    model = value_model()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **options), model.pretrained_model.generate(TOKENS, **options))
    assert model.generate(input_ids=TOKENS, **options).shape == (2, 11)


def test_names_of_tensors_are_those_in_the_wild():
    model = value_model()
    head = {"v_head.summary.weight", "v_head.summary.bias"}
    assert set(model.state_dict()) == {*model.pretrained_model.state_dict(), *head}
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"pretrained_model", "v_head"}
    adapted = AutoModelForCausalLMWithValueHead(get_peft_model(language_model(), lora()))
    assert set(adapted.state_dict()) == head
    assert adapted.is_peft_model
    assert not model.is_peft_model


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_dict_is_loaded_back(adapted, nested):
    def make(seed):
        torch.manual_seed(seed)
        base = language_model()
        nn.init.normal_(base.lm_head.weight)
        model = AutoModelForCausalLMWithValueHead(get_peft_model(base, lora()) if adapted else base)
        return nn.Sequential(nn.Linear(2, 2), model) if nested else model

    one, other = make(1), make(2)
    if nested and not adapted:
        assert {"1.lm_head.weight", "1.v_head.summary.bias", "0.bias"} <= set(one.state_dict())
    kept = {name: parameter.clone() for name, parameter in one.named_parameters()}
    other.load_state_dict(one.state_dict())
    loaded = dict(other.named_parameters())
    same = {name for name in kept if torch.equal(loaded[name], kept[name])}
    if adapted:
        assert not [name for name in kept if "v_head" in name and name not in same]
    else:
        assert same == set(kept)
    with pytest.raises(RuntimeError, match=r"Missing key.*v_head\.summary\.bias"):
        other.load_state_dict({key: value for key, value in one.state_dict().items() if "v_head.summary.b" not in key})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stranger"):
        other.load_state_dict({**one.state_dict(), "stranger": torch.zeros(1)})
    if not adapted:
        with pytest.raises(RuntimeError, match=r"Missing key.*lm_head\.weight"):
            other.load_state_dict({k: value for k, value in one.state_dict().items() if "lm_head" not in k})


def test_tensors_under_the_names_of_parameters_are_loaded_too():
    one, other = value_model(), value_model()
    nn.init.ones_(one.pretrained_model.lm_head.weight)
    other.load_state_dict(dict(one.named_parameters()))
    assert (other.pretrained_model.lm_head.weight == 1).all()


def test_a_copy_is_whole():
    model = value_model()
    twin = copy.deepcopy(model)
    assert set(twin.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(twin.values(TOKENS), model.values(TOKENS))


def test_checkpointing_reaches_the_model():
    model = value_model()
    model.train()
    model.v_head.dropout.p = 0.0
    gradients = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        model.values(TOKENS).sum().backward()
        gradients.append(model.pretrained_model.model.embed_tokens.weight.grad.clone())
    assert model.pretrained_model.model.layers[0].gradient_checkpointing
    torch.testing.assert_close(*gradients)
    model.gradient_checkpointing_disable()
    assert not model.pretrained_model.model.layers[0].gradient_checkpointing


def test_gradients_through_a_frozen_embedding():
    model = value_model().requires_grad_(False)
    assert not model.values(TOKENS).requires_grad
    model.enable_input_require_grads()
    assert model.values(TOKENS).requires_grad


@pytest.mark.parametrize("training", [False, True])
def test_it_is_in_the_mode_of_its_model(training):
    model = AutoModelForCausalLMWithValueHead(language_model().train(training))
    assert {module.training for module in model.modules()} == {training}
    assert {module.training for module in model.eval().modules()} == {False}


def test_options_of_the_head():
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        language_model(),
        summary_dropout_prob=0.0,
        v_head_init_strategy="normal",
        v_head_initializer_range=0.0,
    )
    assert isinstance(model.v_head.dropout, nn.Identity)
    assert not model.values(TOKENS).any()
    assert AutoModelForCausalLMWithValueHead(language_model(), 0.3).v_head.dropout.p == 0.3
    assert model.config is model.pretrained_model.config
    assert model.device == torch.device("cpu")


@torch.no_grad()
def test_adapters_count():
    plain, base = value_model(), language_model()
    adapted = AutoModelForCausalLMWithValueHead.from_pretrained(base, peft_config=lora())
    adapted.v_head.load_state_dict(plain.v_head.state_dict())
    states, expected = states_below_head(adapted.pretrained_model.get_base_model(), input_ids=TOKENS)
    logits, _, values = adapted(TOKENS)
    assert torch.equal(logits, expected.logits)
    assert torch.equal(values, adapted.v_head(states).squeeze(-1))
    assert torch.equal(values, adapted.values(TOKENS))
    assert not torch.allclose(values, plain.values(TOKENS), atol=1e-3)
    with adapted.pretrained_model.disable_adapter():
        torch.testing.assert_close(adapted.values(TOKENS), plain.values(TOKENS))
    assert {module.training for module in adapted.modules()} == {False}


def test_what_is_trained():
    model = AutoModelForCausalLMWithValueHead.from_pretrained(language_model(), peft_config=lora())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"v_head.summary.weight", "v_head.summary.bias"} < trained
    assert all("lora_" in name or "v_head" in name for name in trained)
    model.values(TOKENS).sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == trained
    assert all(parameter.requires_grad for parameter in value_model().parameters())


def test_four_bits(tmp_path):
    language_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        tmp_path,
        quantization_config=quantization_config("nf4", torch.float32),
        device_map={"": "cpu"},
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    packed = model._base.model.layers[0].mlp.up_proj.base_layer
    assert type(packed).__name__ == "Linear4bit"
    assert not packed.support_avx512bf16_for_cpu, "which would repack the weights for good"
    states, expected = states_below_head(model._base, input_ids=TOKENS)
    logits, _, values = model(TOKENS)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(values, model.v_head(states).squeeze(-1))
    torch.testing.assert_close(model.values(TOKENS), values)
    values.sum().backward()
    assert model.v_head.summary.weight.grad is not None


def test_models_that_cannot_have_values():
    with pytest.raises(ValueError, match="has no decoder below its head"):
        AutoModelForCausalLMWithValueHead(language_model().model)
    tuned = get_peft_model(language_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PROMPT_TUNING, which adds tokens"):
        AutoModelForCausalLMWithValueHead(tuned)
    with pytest.raises(ValueError, match="has an adapter already"):
        AutoModelForCausalLMWithValueHead.from_pretrained(get_peft_model(language_model(), lora()), peft_config=lora())
