"""The sampler by continuous batching: greedy tokens of the default, everything put back; slow, for each call is."""

from types import SimpleNamespace

import pytest
import torch

from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.continuous_sampler import ContinuousSampler


def answered(monkeypatch, backbone, answers):
    """Let generate_batch answer with these tokens, and see what it was asked."""
    asked = {}

    def generate_batch(inputs, generation_config, progress_bar):
        asked.update(inputs=inputs, config=generation_config, attention=backbone.base.config._attn_implementation)
        named = {
            f"req_{number}": SimpleNamespace(generated_tokens=answers[number % len(answers)])
            for number in reversed(range(len(inputs)))
        }
        return {name: answer for name, answer in named.items() if answer.generated_tokens is not None}

    monkeypatch.setattr(type(backbone.base), "generate_batch", lambda self, **asked: generate_batch(**asked))
    return asked


def test_what_it_asks_and_what_it_makes_of_the_answer(sampled_backbone, make_request, trainer_logprobs, monkeypatch):
    backbone, request = sampled_backbone(), make_request(temperature=0.7, stop_tokens=(9,))
    backbone.prepare()
    before, draws = backbone.base.config._attn_implementation, torch.get_rng_state()
    asked = answered(monkeypatch, backbone, [[5, 9], [6, 7, 8], [9], [5]])
    rollouts = ContinuousSampler()(backbone, request)
    assert asked["inputs"] == [list(prompt.tokens) for prompt in request.prompts]
    assert (asked["config"].temperature, asked["config"].top_k, asked["config"].do_sample) == (0.7, 0, True)
    assert asked["attention"] == "sdpa"
    assert backbone.base.config._attn_implementation == before
    assert torch.equal(torch.get_rng_state(), draws)
    assert rollouts.lengths.tolist()[:3] == [2, 3, 1]
    assert rollouts.finished.tolist()[:3] == [True, False, True]
    expected = trainer_logprobs(backbone, rollouts, 0.7)
    torch.testing.assert_close(rollouts.logprobs[rollouts.response_mask], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("answers", [[[5], None], [[5], []]])
def test_a_prompt_without_an_answer_is_told(sampled_backbone, make_request, monkeypatch, answers):
    backbone = sampled_backbone()
    backbone.prepare()
    answered(monkeypatch, backbone, answers)
    with pytest.raises(ValueError, match="answered 2 of 4 prompts"):
        ContinuousSampler()(backbone, make_request())


def test_what_it_refuses():
    with pytest.raises(ValueError, match="max_rows is 0"):
        ContinuousSampler(0)


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_default(sampled_backbone, make_request):
    backbone, request = sampled_backbone(), make_request(temperature=0.0, num_responses=2)
    ours, theirs = CachedSampler()(backbone, request), ContinuousSampler()(backbone, request)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.finished, theirs.finished)


@pytest.mark.slow
def test_draws_follow_the_distribution(sampled_backbone, make_request):
    """The first tokens of many responses have, on average, the log-probability that the distribution promises."""
    backbone = sampled_backbone()
    request = make_request(temperature=0.5, num_responses=100)
    ours, theirs = CachedSampler(max_rows=512)(backbone, request), ContinuousSampler()(backbone, request)
    means = [float(rollouts.logprobs[:, 0].mean()) for rollouts in (ours, theirs)]
    spread = float(ours.logprobs[:, 0].std()) / 400**0.5
    assert abs(means[0] - means[1]) < 5 * spread
