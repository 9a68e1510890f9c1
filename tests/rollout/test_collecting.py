"""Prompts to scored responses: who is asked what, who is told, and what becomes of a rank without prompts."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.metrics.phases import Phases
from lit_rlhf.rewards import WeightedReward
from lit_rlhf.rewards.reward import AttachedReward
from lit_rlhf.rollout.collecting import Collector, response_rows, watched_responses
from lit_rlhf.rollout.sampling.request import SamplingOptions


def length(samples):
    return [float(len(sample.response_tokens)) for sample in samples]


def ended(samples):
    return [float(sample.finished) for sample in samples]


class Known(AttachedReward):
    """Remembers what it was attached to."""

    def attach(self, *known):
        self.known = known

    def __call__(self, samples):
        return [0.5] * len(samples)


class Scripted:
    """Gives ready-made responses."""

    is_exact = True

    def __init__(self, rollouts):
        self.rollouts, self.requests = rollouts, []

    def __call__(self, backbone, request):
        self.requests.append(request)
        return self.rollouts


@pytest.fixture
def collector(make_rollouts, make_policy, tiny_tokenizer):
    """A collector of ready-made responses, opened."""
    phases = Phases()
    rewards = [WeightedReward(length, 0.5), WeightedReward(ended, -2.0, "end"), WeightedReward(Known(), 0.0)]
    made = Collector(Scripted(make_rollouts(garbage=True)), SamplingOptions(2, 6), rewards, 7, phases)
    made.policy = make_policy()
    made.open(made.policy, tiny_tokenizer, torch.device("cpu"))
    return made


def test_scores_are_weighted_sums_and_parts_are_not_weighted(collector, numbered_prompt):
    scored = collector(collector.policy, [numbered_prompt(number) for number in range(4)], "iteration 3")
    lengths, finished = scored.rollouts.lengths.float(), scored.rollouts.finished.float()
    assert scored.parts["length"].equal(lengths)
    assert scored.parts["end"].equal(finished)
    assert scored.scores.equal(0.5 * lengths - 2.0 * finished)
    assert list(scored.parts) == ["length", "end", "known"]
    assert {column.dtype for column in (scored.scores, *scored.parts.values())} == {torch.float32}
    assert [sample.row for sample in scored.samples] == [f"train:{1 + number // 2}" for number in range(8)]
    assert collector.phases.report()["rollout/tokens_per_second"] > 0


def test_the_sampler_is_asked_with_the_seed_and_the_key(collector, numbered_prompt):
    prompts = [numbered_prompt(number) for number in range(4)]
    for key in ("iteration 3", "iteration 4", "iteration 3"):
        collector(collector.policy, prompts, key)
    first, other, again = (request.seeds for request in collector.sampler.requests)
    assert first == again
    assert not set(first) & set(other)
    collector.seed = 8
    collector(collector.policy, prompts, "iteration 3")
    assert collector.sampler.requests[-1].seeds != first
    greedy = SamplingOptions(1, temperature=0.0)
    collector(collector.policy, prompts, "held-out", greedy)
    assert collector.sampler.requests[-1].options is greedy
    assert collector.sampler.requests[0].options is collector.sampling


def test_ends_are_those_of_tokenizer_model_and_options_once_each(make_policy, tiny_tokenizer):
    policy = make_policy()
    policy.base.generation_config.eos_token_id = [2, 9]
    reward, options = Known(), SamplingOptions(stop_tokens=[11, 2])
    made = Collector(None, options, [WeightedReward(reward)], 0, Phases())
    made.open(policy, tiny_tokenizer, torch.device("cpu"))
    assert made.stop_tokens == [2, 9, 11]
    assert reward.known == (policy, tiny_tokenizer, [2, 9, 11], torch.device("cpu"))


def test_rewards_are_needed_and_their_names_differ():
    for rewards, message in (([], "rewards is empty"), ([WeightedReward(length)] * 2, "both named 'length'")):
        with pytest.raises(ValueError, match=message):
            Collector(None, SamplingOptions(), rewards, 0, Phases())


def test_a_rank_without_prompts(collector):
    scored = collector(collector.policy, [], "iteration 0")
    assert not collector.sampler.requests
    assert scored.scores.shape == (0,)
    assert [part.shape for part in scored.parts.values()] == [(0,)] * 3
    assert response_rows(scored, torch.zeros(0)) == []


def test_rows_for_tables(collector, numbered_prompt):
    scored = collector(collector.policy, [numbered_prompt(number) for number in range(4)], "0")
    rows = response_rows(scored, torch.arange(8.0))
    assert [row["kl"] for row in rows] == list(range(8))
    lengths, finished = scored.rollouts.lengths.tolist(), scored.rollouts.finished.tolist()
    expected = {
        **{"prompt": "prompt 0", "response": scored.samples[1].response, "length": lengths[1], "kl": 1.0},
        **{"finished": finished[1], "score": 0.5 * lengths[1] - 2.0 * finished[1]},
        "rewards": {"length": float(lengths[1]), "end": float(finished[1]), "known": 0.5},
    }
    assert rows[1] == expected
    kinds = {name: type(value) for name, value in rows[1].items()}
    assert (kinds["score"], kinds["length"], kinds["finished"]) == (float, int, bool)


def test_what_is_logged_of_each_response(collector, numbered_prompt):
    scored = collector(collector.policy, [numbered_prompt(number) for number in range(4)], "0")
    found = watched_responses(scored)
    assert set(found) == {"score", "finished", "rewards/length", "rewards/end", "rewards/known"}
    assert found["score"].equal(scored.scores)
    assert found["finished"].equal(scored.rollouts.finished.float())
