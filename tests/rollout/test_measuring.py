"""Numbers of the tokens of responses: those of rows alone, however they are packed."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.rollout.measuring import Measurer
from lit_rlhf.rollout.options import UpdateOptions

BUDGETS = (1, 17, 10**6)


def measure_policy(policy, rollouts, token_budget, temperature=1.0, **options):
    measurer = Measurer(UpdateOptions(token_budget=token_budget), temperature)
    return measurer.policy_and_reference(policy, rollouts, **options)


@torch.no_grad()
def rows_alone(policy, rollouts, temperature):
    """The oracle: each response behind its prompt as a row of its own, by all logits of the model."""
    logprobs, entropy = torch.zeros(2, *rollouts.logprobs.shape)
    for member, prompt in enumerate(rollouts.prompts):
        length = int(rollouts.lengths[member])
        row = torch.tensor([[*prompt.tokens, *rollouts.tokens[member, :length].tolist()]])
        states = policy.base.get_decoder()(row, use_cache=False).last_hidden_state[0, len(prompt.tokens) - 1 : -1]
        said = (policy.base.get_output_embeddings()(states) / temperature).log_softmax(-1)
        logprobs[member, :length] = said.gather(1, rollouts.tokens[member, :length, None])[:, 0]
        entropy[member, :length] = -(said.exp() * said).sum(-1)
    return logprobs, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_and_reference_are_those_of_rows_alone(make_rollouts, make_policy, temperature):
    """The first token of a response is predicted by the last one of its prompt."""
    policy, rollouts = make_policy(), make_rollouts()
    expected = rows_alone(policy, rollouts, temperature)
    with policy.role("reference"):
        reference, _ = rows_alone(policy, rollouts, temperature)
    found = measure_policy(policy, rollouts, token_budget=50, temperature=temperature)
    wanted = dict(zip(("logprobs", "entropy"), expected, strict=True), ref_logprobs=reference)
    for name, values in wanted.items():
        torch.testing.assert_close(getattr(found, name), values, rtol=1e-4, atol=2e-5, msg=name)
    assert not torch.allclose(found.logprobs, found.ref_logprobs, atol=1e-3)
    assert not any(column.requires_grad for column in found)
    assert policy.acting == "policy"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("garbage", [False, True])
def test_neither_the_cut_nor_garbage_in_pads_changes_a_number(make_rollouts, make_policy, budget, garbage):
    policy, rollouts = make_policy(), make_rollouts(garbage=garbage)
    whole = measure_policy(policy, make_rollouts(), token_budget=10**6, temperature=1.0)
    found = measure_policy(policy, rollouts, token_budget=budget, temperature=1.0)
    width = whole.logprobs.shape[1]
    for ours, wanted in zip(found, whole, strict=True):
        torch.testing.assert_close(ours[:, :width], wanted, rtol=1e-5, atol=1e-6)
        assert not ours[~rollouts.response_mask].any()


def test_columns_keep_their_places(make_rollouts):
    rollouts = make_rollouts(garbage=True)

    def read(micro_batch):
        forest = micro_batch.forest
        return forest.tokens[forest.targets], forest.positions[forest.targets].half()

    measurer = Measurer(UpdateOptions(token_budget=20), 1.0)
    tokens, positions = measurer.columns(torch.nn.Module(), read, rollouts, num_columns=2)
    assert tokens.equal((rollouts.tokens * rollouts.response_mask).float())
    prompts = torch.tensor([len(prompt.tokens) for prompt in rollouts.prompts])[:, None]
    depth = prompts + torch.arange(rollouts.tokens.shape[1])
    assert positions.equal((depth * rollouts.response_mask).float())


def test_nothing_is_measured_of_nothing(make_rollouts, make_policy):
    found = measure_policy(make_policy(), make_rollouts((), 2), token_budget=10, temperature=1.0)
    assert [column.shape for column in found] == [(0, 1)] * 3
