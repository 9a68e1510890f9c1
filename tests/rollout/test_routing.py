"""Replay: updates use the experts that were chosen while measuring, however they are cut, padded or computed again."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from lit_rlhf.models.building import wrap_model
from lit_rlhf.models.moe.routers import find_routers, heard
from lit_rlhf.models.padded import unfold
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.packing import pack
from lit_rlhf.rollout.routing import Routing
from lit_rlhf.types import Instructions, Prompt, Rollouts
from tests.tiny_moe import make_mixture

LENGTHS = (5, 3, 6, 1, 4)
GROUPS = (0, 0, 1, 1, 1)


@pytest.fixture
def rollouts():
    tokens = 3 + torch.arange(30).view(5, 6) * 7 % 55
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    prompts = tuple(Prompt(tuple(range(9 + 4 * g, 12 + 5 * g)), "", (), {}, f"p:{g}", "p") for g in GROUPS)
    return Rollouts(prompts, torch.tensor(GROUPS), tokens * mask, mask, torch.zeros(5, 6), mask[:, 0])


def measured(rollouts, kind="replay", attention="auto", family="mixtral", **options):
    """A backbone and a routing that has measured its rollouts; the routers then move."""
    backbone = wrap_model(make_mixture(family), reference="none")
    backbone.attention = attention
    if options.get("checkpointing"):
        backbone.base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": backbone._recomputing})
    backbone.prepare()
    routing = Routing(kind)
    routing.open(backbone)
    routing.measure(rollouts)
    with torch.no_grad():
        before = [
            (batch, routing(batch, backbone.token_logprobs).logprobs)
            for batch in pack(rollouts, range(5), options.get("token_budget", 12))
        ]
        routing.learn()
        for router in find_routers(backbone.model):
            router.module.weight.copy_(router.module.weight.roll(1, 0))  # each expert has its neighbour's tokens now
    return backbone, routing, before


def update(backbone, routing, batch):
    logprobs = routing(batch, backbone.token_logprobs).logprobs
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    return logprobs.detach(), torch.autograd.grad(logprobs.sum(), trained, allow_unused=True)


def used(backbone, routing, batch):
    """The experts that a pass of a micro-batch really uses, after all hooks: what the experts are called with."""
    seen = []
    experts = [module for name, module in backbone.model.named_modules() if name.endswith(".experts")]
    handles = [module.register_forward_pre_hook(lambda m, i: seen.append(i[1])) for module in experts]
    with torch.no_grad():
        routing(batch, backbone.token_logprobs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_each_token_has_the_experts_that_it_had(rollouts, attention, family):
    backbone, routing, before = measured(rollouts, attention=attention, family=family, token_budget=10**6)
    ((batch, _),) = before
    free, _, _ = measured(rollouts, attention=attention, family=family)
    for router in find_routers(free.model):
        router.module.weight.data.copy_(router.module.weight.roll(-1, 0))
    with torch.no_grad(), heard(find_routers(free.model), lambda: True) as said:
        free.token_logprobs(batch.forest)
    cells = unfold(batch.forest).cells if backbone.layout == "padded" else slice(None)
    for number, experts in enumerate(used(backbone, routing, batch)):
        assert torch.equal(experts[cells].sort(-1).values, said[number].experts[cells].sort(-1).values)


def test_a_replayed_pass_does_not_depend_on_the_cut(rollouts):
    backbone, routing, _ = measured(rollouts)
    (whole,) = pack(rollouts, range(5), 10**6)
    expected, gradients = update(backbone, routing, whole)
    parts = [update(backbone, routing, batch) for batch in pack(rollouts, range(5), 9)]
    assert len(parts) > 2
    torch.testing.assert_close(torch.cat([logprobs for logprobs, _ in parts]), expected)
    for column, wanted in zip(zip(*(own for _, own in parts), strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(column), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [{"attention": "sdpa"}, {"checkpointing": True}], ids=["padded", "checkpointed"])
def test_padded_rows_and_checkpointed_layers_replay_the_same(rollouts, other):
    found = []
    for options in ({}, other):
        backbone, routing, _ = measured(rollouts, **options)
        backbone.model.train()
        found.append(update(backbone, routing, pack(rollouts, range(5), 10**6)[0]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    for own, wanted in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
    free, routing, _ = measured(rollouts, kind="free")
    assert (update(free, routing, pack(rollouts, range(5), 10**6)[0])[0] - found[0][0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["free", "replay"])
def test_choices_that_differ_are_counted(rollouts, kind):
    backbone, routing, _ = measured(rollouts, kind)
    assert routing.mismatch(torch.device("cpu")) == {}
    same, routing_of_same, _ = measured(rollouts, kind)
    for router in find_routers(same.model):
        router.module.weight.data.copy_(router.module.weight.roll(-1, 0))
    (batch,) = pack(rollouts, range(5), 10**6)
    for one, its_routing in ((backbone, routing), (same, routing_of_same)):
        update(one, its_routing, batch)
    assert float(routing_of_same.mismatch(torch.device("cpu"))["router/mismatch"]) == 0.0
    assert 0.3 < float(routing.mismatch(torch.device("cpu"))["router/mismatch"]) <= 1.0
    assert routing.mismatch(torch.device("cpu")) == {}  # told once


def test_choices_of_response_tokens_are_counted_over_ranks(rollouts, monkeypatch):
    backbone, routing, _ = measured(rollouts)
    (batch,) = pack(rollouts, range(5), 10**6)
    update(backbone, routing, batch)
    seen = []
    monkeypatch.setattr("lit_rlhf.rollout.routing.sum_over_ranks", lambda both: seen.append(both) or both + 10)
    told = routing.mismatch(torch.device("cpu"))["router/mismatch"]
    ((differing, count),) = seen
    assert count == sum(LENGTHS) * len(find_routers(backbone.model)) * 2
    assert float(told) == pytest.approx(float((differing + 10) / (count + 10)))


@pytest.mark.parametrize("role", ["critic", "reference"])
def test_other_roles_are_neither_replayed_nor_heard(rollouts, role):
    """A critic computes beside the policy, inside of the same call."""
    backbone, routing, _ = measured(rollouts)
    (batch,) = pack(rollouts, range(5), 10**6)
    backbone.reference_model = backbone.model  # so that there is one

    def both(forest):
        policy = backbone.token_logprobs(forest).logprobs
        with backbone.role(role):
            return policy, backbone.token_logprobs(forest).logprobs

    with torch.no_grad():
        expected = backbone.token_logprobs(batch.forest).logprobs
        policy, other = routing(batch, both)
        told = routing.mismatch(torch.device("cpu"))
        routing(batch, backbone.token_logprobs)
    torch.testing.assert_close(other, expected)
    assert (policy - other).abs().max() > 1e-3
    assert routing.mismatch(torch.device("cpu")) == told


def test_what_is_not_learnt_from_is_left_alone(rollouts):
    backbone, routing, _ = measured(rollouts)
    routing.measure(None)
    (batch,) = pack(rollouts, [0], 10**6)
    with torch.no_grad():
        expected = backbone.token_logprobs(batch.forest).logprobs
        assert torch.equal(routing(batch, backbone.token_logprobs).logprobs, expected)
        routing.learn()
        assert torch.equal(routing(batch, backbone.token_logprobs).logprobs, expected)


def test_texts_to_imitate_beside_responses_route_freely(rollouts):
    _, routing, _ = measured(rollouts)
    (batch,) = pack(rollouts, range(5), 10**6)
    assert routing.within(batch) is not nullcontext
    assert routing.within(Instructions(batch.forest, ("texts:1",), ("texts",))) is nullcontext


def test_another_module_on_the_backbone_is_not_held_to_what_the_last_one_measured(rollouts):
    backbone, _, _ = measured(rollouts)
    (batch,) = pack(rollouts, range(5), 10**6)
    assert backbone.within(batch) is not nullcontext
    Routing("free").open(backbone)
    assert backbone.within(batch) is nullcontext


def test_of_a_dense_model_there_is_nothing_to_replay(tiny_llama):
    from transformers import AutoModelForCausalLM

    dense = wrap_model(AutoModelForCausalLM.from_pretrained(tiny_llama()), reference="none")
    with pytest.raises(ValueError, match=r"updates.routing is set, and 'llama' has no routers"):
        Routing("replay").open(dense)
    routing = Routing("free")
    routing.open(dense)
    assert routing.mismatch(torch.device("cpu")) == {}


def test_the_choice_is_one_of_two():
    assert UpdateOptions().routing == "free"
    with pytest.raises(ValueError, match=r"updates\.routing is 'again'"):
        UpdateOptions(routing="again")
