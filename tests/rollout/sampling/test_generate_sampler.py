"""The sampler by transformers' own loop: greedy tokens of the default, log-probabilities of training."""

import pytest
import torch
from transformers import StaticCache

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.generate_sampler import GenerateSampler


@pytest.mark.parametrize("max_rows", [64, 3])
def test_greedy_tokens_are_those_of_the_default(max_rows, sampled_backbone, make_request):
    backbone, request = sampled_backbone(), make_request(temperature=0.0, num_responses=2)
    ours, theirs = CachedSampler()(backbone, request), GenerateSampler(max_rows)(backbone, request)
    for name in ("tokens", "response_mask", "finished", "groups"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-5)
    assert ours.prompts == theirs.prompts


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_static_cache_changes_no_token(attention, sampled_backbone, make_request, monkeypatch):
    backbone, made, make = sampled_backbone(attention=attention), [], StaticCache.__init__
    monkeypatch.setattr(StaticCache, "__init__", lambda *args, **kwargs: made.append(1) or make(*args, **kwargs))
    request = make_request(stop_tokens=range(2, 40), num_responses=3)
    expected = GenerateSampler(max_rows=5)(backbone, request)
    assert not made
    rollouts = GenerateSampler(max_rows=5, cache="static")(backbone, request)
    assert made
    assert torch.equal(rollouts.tokens, expected.tokens)
    assert torch.equal(rollouts.finished, expected.finished)
    torch.testing.assert_close(rollouts.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert torch.equal(GenerateSampler(max_rows=5)(backbone, request).tokens, expected.tokens)


def test_samples_end_where_they_should(sampled_backbone, make_request, trainer_logprobs):
    backbone = sampled_backbone()
    before = torch.get_rng_state()
    request = make_request(stop_tokens=range(2, 40), temperature=0.7, num_responses=3)
    rollouts = GenerateSampler()(backbone, request)
    assert torch.equal(torch.get_rng_state(), before)
    expected = trainer_logprobs(backbone, rollouts, 0.7)
    torch.testing.assert_close(rollouts.logprobs[rollouts.response_mask], expected, rtol=0, atol=1e-5)
    last = rollouts.tokens.gather(1, rollouts.lengths[:, None] - 1)[:, 0]
    assert torch.equal(rollouts.finished, (last >= 2) & (last < 40))
    assert 0 < int(rollouts.finished.sum()) <= 12
    again = GenerateSampler()(backbone, request)
    assert torch.equal(again.tokens, rollouts.tokens)
    other = GenerateSampler()(backbone, request._replace(seeds=[7] * 12))
    assert not torch.equal(other.tokens[:, 0], rollouts.tokens[:, 0])


def test_strings_end_a_response(sampled_backbone, make_request, tiny_tokenizer):
    backbone = sampled_backbone()
    free = GenerateSampler()(backbone, make_request(temperature=0.0, stop_tokens=(319,)))
    request = make_request(
        temperature=0.0, stop_tokens=(319,), stop_strings=[tiny_tokenizer.decode(free.tokens[1, 2:5])]
    )
    ours, theirs = CachedSampler()(backbone, request), GenerateSampler()(backbone, request)
    assert theirs.finished[1]
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.finished, theirs.finished)


def test_a_broken_policy_is_named(sampled_backbone, make_request):
    backbone = sampled_backbone()
    request = make_request(temperature=0.0)
    GenerateSampler()(backbone, request)
    with torch.no_grad():
        backbone.base.get_decoder().norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"rows\.jsonl:0: the log-probabilities"):
        GenerateSampler()(backbone, request)
    with pytest.raises(ValueError, match="max_rows is 0"):
        GenerateSampler(0)
    with pytest.raises(ValueError, match="cache is 'paged'"):
        GenerateSampler(cache="paged")


def test_dropout_is_off(tiny_llama, make_request, trainer_logprobs):
    backbone = build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4, dropout=0.5)))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    rollouts = GenerateSampler()(backbone.train(), make_request())
    expected = trainer_logprobs(backbone.eval(), rollouts)
    torch.testing.assert_close(rollouts.logprobs[rollouts.response_mask], expected, rtol=0, atol=1e-5)
