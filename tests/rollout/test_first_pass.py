"""What the first step needs is computed once, while measuring; what anything else needs, whenever it is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lit_rlhf.rollout import measuring
from lit_rlhf.rollout.first_pass import FirstPass
from lit_rlhf.rollout.measuring import Measurer
from lit_rlhf.rollout.minibatches import split
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.packing import pack
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.types import Picture


@pytest.fixture
def weight():
    return torch.ones((), requires_grad=True)


@pytest.fixture
def compute(weight):
    def compute(forest):
        compute.calls.append(forest)
        return weight * forest

    compute.calls = []
    return compute


def micro_batch(forest, *members):
    return SimpleNamespace(forest=forest, members=torch.tensor(members))


def test_it_is_computed_once_and_carries_its_graph(compute, weight):
    first_pass, batch = FirstPass(), micro_batch(2.0, 0, 3)
    first_pass.expect(batch)
    with torch.no_grad():
        measured = first_pass(batch, compute)
    again = first_pass(micro_batch(2.0, 0, 3), compute)  # packed anew, of the same responses
    assert again is measured
    assert len(compute.calls) == 1
    again.backward()
    assert weight.grad == 2.0


def test_it_serves_once(compute):
    first_pass, batch = FirstPass(), micro_batch(2.0, 0)
    first_pass.expect(batch)
    for _ in range(3):
        first_pass(batch, compute)
    assert len(compute.calls) == 2, "the weights have moved by then"


def test_other_responses_are_not_kept(compute):
    first_pass = FirstPass()
    first_pass.expect(micro_batch(2.0, 0, 1))
    with torch.no_grad():
        assert not first_pass(micro_batch(3.0, 0), compute).requires_grad
        assert not first_pass(micro_batch(3.0, 0, 2), compute).requires_grad


def test_what_waits_from_an_iteration_that_failed_is_forgotten(compute):
    first_pass, batch = FirstPass(), micro_batch(2.0, 0)
    first_pass.expect(batch)
    first_pass(batch, compute)
    first_pass.expect(batch)
    first_pass(batch, compute)
    assert len(compute.calls) == 2
    first_pass.expect(None)
    assert (first_pass._members, first_pass._said) == (None, None)


@pytest.mark.parametrize(("num_minibatches", "budget", "is_kept"), [(1, 10**6, True), (2, 10**6, True), (1, 40, False)])
def test_the_measurer_expects_what_the_first_step_learns_from(
    make_rollouts, make_policy, num_minibatches, budget, is_kept
):
    policy, rollouts = make_policy(), make_rollouts()
    updates = UpdateOptions(num_minibatches=num_minibatches, token_budget=budget)
    measurer = Measurer(updates, 0.7)
    alone = measurer.policy_and_reference(policy, rollouts)
    found = measurer.policy_and_reference(policy, rollouts, learnt_by="key", entropy_gradient=True)
    for ours, wanted in zip(found, alone, strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    members = split(rollouts, num_minibatches, "key:0")[0]
    first = pack(rollouts, members, budget)[0]
    calls = []
    policy.base.register_forward_hook(lambda *_: calls.append(1))
    policy.base.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    said = measurer.policy(policy, first, entropy_gradient=True)
    assert not calls if is_kept else calls
    assert said.logprobs.requires_grad
    expected = found.logprobs[first.members][rollouts.response_mask[first.members]]
    torch.testing.assert_close(said.logprobs.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("updates", "options", "begins"),
    [
        ({}, {}, True),
        ({"num_minibatches": 2}, {}, False),
        ({"token_budget": 8}, {}, False),
        ({"token_budget": "what may be drawn"}, {}, True),
        ({"token_budget": "less than may be drawn"}, {}, False),
        ({}, {"gradient_checkpointing": True}, False),
    ],
)
def test_prompts_are_begun_where_the_first_step_learns_from_all(
    updates, options, begins, sampled_backbone, make_request, tiny_tokenizer
):
    backbone, request = sampled_backbone(**options), make_request(num_responses=2)
    backbone.prepare()
    most_drawn = len(request.seeds) * request.options.max_new_tokens
    most = most_drawn + sum(len(prompt.tokens) for prompt in request.prompts)
    budgets = {"what may be drawn": most, "less than may be drawn": most - 1}
    updates = {name: budgets.get(value, value) for name, value in updates.items()}
    measurer = Measurer(UpdateOptions(**{"num_minibatches": 1, **updates}), 1.0)
    begun = measurer.begin(backbone, request.prompts, most_drawn)
    assert (begun is not None) == begins
    rollouts = CachedSampler()(backbone, request._replace(begun=begun))
    rows = []
    backbone.base.get_decoder().layers[0].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    said = measurer.policy_and_reference(backbone, rollouts, learnt_by="key")
    prompts, responses = sum(len(p.tokens) for p in request.prompts), int(rollouts.response_mask.sum())
    if not updates:
        assert rows == [responses + prompts * (not begins), prompts + responses], "the reference begins anew"
    alone = Measurer(UpdateOptions(), 1.0).policy_and_reference(backbone, rollouts)
    for ours, wanted in zip(said, alone, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    rows.clear()
    measurer.policy_and_reference(backbone, rollouts, learnt_by="key")
    assert sum(rows) >= 2 * (prompts + responses), "the weights may have moved by the next measurement"


def test_prompts_are_not_begun_where_a_graph_of_their_own_would_not_serve(
    sampled_backbone, make_request, tiny_tokenizer, monkeypatch
):
    backbone, prompts = sampled_backbone(), make_request().prompts
    measurer = Measurer(UpdateOptions(num_minibatches=1), 1.0)
    picture = Picture({"pixel_values": torch.zeros(1, 3, 2, 2)}, num_tokens=1, digest="a")
    assert measurer.begin(backbone, [*prompts[:-1], prompts[-1]._replace(pictures=(picture,))], 8) is None
    monkeypatch.setattr(measuring, "is_sharded", lambda _: True)
    assert measurer.begin(backbone, prompts, 8) is None


def test_what_was_begun_and_never_measured_is_forgotten(sampled_backbone, make_request, tiny_tokenizer):
    backbone, prompts = sampled_backbone(), make_request().prompts
    measurer = Measurer(UpdateOptions(num_minibatches=1), 1.0)
    assert measurer.begin(backbone, prompts, 8) is not None
    assert measurer.begin(backbone, prompts, 10**9) is None, "the next iteration has prompts of its own"
