"""Routers of every family: what they say is read once and rightly, and they choose what they are told to choose."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.moe.routers import find_routers, forced, freeze_routers, heard, require_routers
from tests.tiny_moe import FAMILIES, make_mixture

TOKENS = torch.arange(3, 27)[None]


def always() -> bool:
    return True


def run(model, is_on=always):
    with torch.no_grad(), heard(find_routers(model), is_on) as said:
        return model(input_ids=TOKENS).logits, said


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_router_and_experts_those_that_it_uses(family):
    model = make_mixture(family)
    routers = find_routers(model)
    inputs = {}
    handles = [
        router.module.register_forward_hook(lambda m, i, o, n=n: inputs.__setitem__(n, i[0].flatten(0, -2)))
        for n, router in enumerate(routers)
    ]
    _, said = run(model)
    for handle in handles:
        handle.remove()
    assert sorted(said) == [*range(len(routers))] != []
    for number, routed in said.items():
        expected = inputs[number] @ routers[number].module.weight.T
        torch.testing.assert_close(routed.logits, expected, atol=1e-5, rtol=1e-5)
        probabilities = routed.probabilities(routed.logits)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(24))
        assert probabilities.dtype == torch.float32
        assert routed.experts.shape == (24, 2)
        if family not in ("deepseek_v2", "deepseek_v3", "glm4_moe"):  # those choose within groups
            top = probabilities.topk(2).indices.sort(-1).values
            assert torch.equal(routed.experts.sort(-1).values, top)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_that_is_told_its_own_choice_says_the_same(family):
    model = make_mixture(family)
    logits, said = run(model)
    experts = torch.stack([said[number].experts for number in range(len(said))], 1)
    with forced(find_routers(model), experts, always):
        again, heard_again = run(model)
    torch.testing.assert_close(again, logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(heard_again[0].experts, said[0].experts)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_choice_is_computed_with_its_own_weights(family):
    model = make_mixture(family)
    routers = find_routers(model)
    logits, said = run(model)
    experts = torch.stack([(said[number].experts + 1) % 4 for number in range(len(said))], 1)
    with forced(routers, experts, always):
        other, own = run(model)
    assert (other - logits).abs().max() > 1e-3
    assert torch.equal(own[0].experts, said[0].experts)  # what it would have chosen by itself is still heard
    gone, _ = run(model)
    assert torch.equal(gone, logits)
    with forced(routers, experts, lambda: False):
        assert torch.equal(run(model)[0], logits)


def test_the_weights_of_a_forced_choice_are_worked_out_by_hand():
    model = make_mixture("mixtral")
    router = find_routers(model)[0].module
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0]).log1p()  # exp: 4, 3, 2, 1
    states = torch.zeros(1, 32)
    states[0, 0] = 1.0
    with forced(find_routers(model)[:1], torch.tensor([[[3, 1]]]), always):
        _, weights, experts = router(states)
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75]]))
    assert experts.tolist() == [[3, 1]]


def test_nothing_is_heard_of_passes_that_are_not_meant():
    assert run(make_mixture("mixtral"), lambda: False)[1] == {}


def test_what_is_heard_carries_a_gradient_through_checkpointed_layers():
    model = make_mixture("mixtral").train()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with heard(find_routers(model), always) as said:
            states = model.model(input_ids=TOKENS, use_cache=False).last_hidden_state
        loss = sum(routed.probabilities(routed.logits)[:, 0].sum() for routed in said.values()) + states.sum()
        gradients.append(
            torch.autograd.grad(loss, [model.model.embed_tokens.weight, find_routers(model)[0].module.weight])
        )
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
        assert plain.abs().max() > 0


def test_routers_are_frozen_and_nothing_else():
    model = make_mixture("qwen2_moe").requires_grad_(True)
    freeze_routers(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == [f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)]


def test_a_model_without_known_routers_is_refused_in_words():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    with pytest.raises(ValueError, match=r"train_router is set, and 'llama' has no routers .* MixtralTopKRouter"):
        require_routers(LlamaForCausalLM(LlamaConfig(**shape)), "backbone.train_router")
