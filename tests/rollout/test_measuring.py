"""Numbers of the tokens of responses: those of rows alone, however they are packed, and weights that sum to one."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch import distributed as dist

from lit_rlhf.rollout.measuring import measure, measure_policy, token_weights, whitened_over_ranks

BUDGETS = (1, 17, 10**6)


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
    assert policy._role == "policy"


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
    tokens, positions = measure(rollouts, 20, lambda f: (f.tokens[f.targets], f.positions[f.targets].half()), 2)
    assert tokens.equal((rollouts.tokens * rollouts.response_mask).float())
    prompts = torch.tensor([len(prompt.tokens) for prompt in rollouts.prompts])[:, None]
    depth = prompts + torch.arange(rollouts.tokens.shape[1])
    assert positions.equal((depth * rollouts.response_mask).float())


def test_nothing_is_measured_of_nothing(make_rollouts, make_policy):
    found = measure_policy(make_policy(), make_rollouts((), 2), token_budget=10, temperature=1.0)
    assert [column.shape for column in found] == [(0, 1)] * 3


CPU = torch.device("cpu")
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)


def test_weights_of_tokens_by_hand():
    by_tokens = token_weights(MASK, [0, 3], "tokens", CPU)
    torch.testing.assert_close(by_tokens, torch.tensor([[1, 1, 1, 0], [0] * 4, [0] * 4, [1, 1, 0, 0]]) / 5)
    by_sequences = token_weights(MASK, [0, 2, 3], "sequences", CPU)
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [0] * 4, [0] * 4, [1 / 4, 1 / 4, 0, 0]])
    torch.testing.assert_close(by_sequences, expected)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("members", [[0], [0, 1, 3], [0, 1, 2, 3]])
def test_weights_sum_to_one(average, members):
    assert float(token_weights(MASK, members, average, CPU).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("members", [[], [2]])
def test_nothing_weighs_nothing(average, members):
    assert not token_weights(MASK, members, average, CPU).any()
    assert token_weights(MASK[:0], [], average, CPU).shape == (0, 4)


def test_whitening_reads_responses_alone():
    values = torch.where(MASK, torch.tensor([[1.0, 2.0, 3.0, 0.0]] * 4), float("nan"))
    found = whitened_over_ranks(values, MASK)
    known = values[MASK]
    expected = (known - known.mean()) / known.std(correction=0)
    torch.testing.assert_close(found[MASK], expected, rtol=1e-4, atol=1e-5)
    assert not found[~MASK].any()
    assert whitened_over_ranks(values[2:3], MASK[2:3]).isnan().all(), "nothing to go by: as they were"


SHARES = ((slice(0, 1), slice(1, 4)), (slice(0, 4), slice(4, 4)))


def over_ranks(rank, path):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for shares in SHARES:
        mask, mine = MASK[shares[rank]], values[shares[rank]]
        members = list(range(len(mask)))
        weights = [token_weights(mask, members, average, CPU) for average in ("tokens", "sequences")]
        found.append([*weights, whitened_over_ranks(mine, mask)])
    dist.destroy_process_group()
    torch.save(found, path / f"{rank}.pt")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_ranks_weigh_and_whiten_as_one(tmp_path):
    """Strategies average gradients over ranks: what two ranks weigh together is twice what one does."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=over_ranks, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0))
    alone = [2 * token_weights(MASK, range(4), average, CPU) for average in ("tokens", "sequences")]
    alone.append(whitened_over_ranks(values, MASK))
    for first, second in zip(*ranks, strict=True):
        for ours, others, wanted in zip(first, second, alone, strict=True):
            torch.testing.assert_close(torch.cat([ours, others]), wanted, rtol=1e-5, atol=1e-6)
