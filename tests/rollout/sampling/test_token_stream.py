"""Answers as they are drawn: the tokens of generate, what is kept between turns, what interrupts."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from lit_rlhf.models.layers.linear_logprobs import LogitTransform
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.padded_decoder import PaddedDecoder
from lit_rlhf.rollout.sampling.token_stream import StreamOptions, TokenStream

PROMPT = [1, 40, 41, 42, 43, 44]
GREEDY = StreamOptions(temperature=0.0, max_new_tokens=12)


@pytest.fixture
def backbone(sampled_backbone):
    return sampled_backbone()


@pytest.fixture
def stream(backbone):
    return TokenStream(backbone, nullcontext)


def drawn(stream, prompt, options=GREEDY, stop_tokens=(2,), num_tokens=320):
    return [one.token for one in stream.draw(prompt, options, stop_tokens=stop_tokens, num_tokens=num_tokens)]


def test_the_likeliest_tokens_are_those_of_generate_in_every_turn(backbone, stream):
    prompt = PROMPT
    for turn in range(3):
        (expected,) = backbone.generate([prompt], 12, stop_tokens=[2], temperature=0.0)
        assert drawn(stream, prompt) == expected
        assert stream.num_reused == (0 if turn == 0 else len(prompt) - 4)  # the last token was never computed on
        prompt = [*prompt, *expected, 50 + turn, 51, 52]


def test_what_another_prompt_shares_is_kept_and_the_rest_forgotten(backbone, stream):
    drawn(stream, PROMPT)
    other = [*PROMPT[:4], 60, 61]
    (expected,) = backbone.generate([other], 12, stop_tokens=[2], temperature=0.0)
    assert drawn(stream, other) == expected
    assert stream.num_reused == 4
    again = drawn(stream, PROMPT)
    assert stream.num_reused == 4
    assert again == drawn(TokenStream(backbone, nullcontext), PROMPT)
    assert drawn(stream, [77, 78]) == backbone.generate([[77, 78]], 12, stop_tokens=[2], temperature=0.0)[0]
    assert stream.num_reused == 0
    assert drawn(stream, [77, 78]) == drawn(TokenStream(backbone, nullcontext), [77, 78])


def test_a_stop_token_ends_it(backbone, stream):
    (expected,) = backbone.generate([PROMPT], 12, stop_tokens=[2], temperature=0.0)
    place = next(number for number in range(1, 12) if expected[number] not in expected[:number])
    assert drawn(stream, PROMPT, stop_tokens=[expected[place]]) == expected[: place + 1]


def test_samples_follow_the_seed_and_the_nucleus(backbone, stream):
    def sample(**options):
        return drawn(stream, PROMPT, StreamOptions(**{"max_new_tokens": 8, **options}))

    assert sample(seed=1) == sample(seed=1) != sample(seed=2)
    assert sample(top_p=1e-6, temperature=3.0) == sample(temperature=0.0)
    assert all(token < 100 for token in drawn(stream, PROMPT, StreamOptions(seed=3), num_tokens=100))


def test_a_seed_gives_the_draws_that_it_gives_in_training(backbone, stream, make_request):
    request = make_request(max_new_tokens=20, seeds=[7, 8, 9, 10], temperature=0.8)
    rollouts = CachedSampler()(backbone, request)
    found = zip(request.prompts, request.seeds, rollouts.tokens, rollouts.response_mask, strict=True)
    for prompt, seed, tokens, mask in found:
        options = StreamOptions(temperature=0.8, max_new_tokens=20, seed=seed)
        assert drawn(stream, prompt.tokens, options) == tokens[mask].tolist()


def test_log_probabilities_are_those_of_the_policy(backbone, stream, trainer_logprobs, make_request):
    options = StreamOptions(temperature=2.0, top_p=0.5, max_new_tokens=6, seed=4)
    found = list(stream.draw(PROMPT, options, stop_tokens=[2], num_tokens=320))
    rows = torch.tensor([[*PROMPT, *(one.token for one in found)]])
    with torch.no_grad():
        logits = backbone.base(input_ids=rows).logits[0, len(PROMPT) - 1 : -1]
    torch.testing.assert_close(torch.stack([one.logprobs for one in found]), logits.log_softmax(-1), rtol=0, atol=1e-4)


def test_what_the_model_does_to_its_logits_is_done(backbone, stream):
    (before,) = stream.draw(PROMPT, StreamOptions(max_new_tokens=1), stop_tokens=[2], num_tokens=320)
    backbone.transform = LogitTransform(scale=0.5)
    (after,) = stream.draw(PROMPT, StreamOptions(max_new_tokens=1), stop_tokens=[2], num_tokens=320)
    torch.testing.assert_close(after.logprobs, (before.logprobs / 2).log_softmax(-1), rtol=0, atol=1e-5)


def test_tokens_that_stand_for_pictures_are_not_drawn(backbone, stream, monkeypatch):
    others = [token for token in range(320) if token != 7]
    monkeypatch.setattr(type(backbone), "undrawn_tokens", others)
    assert drawn(stream, PROMPT) == [7] * GREEDY.max_new_tokens


def test_an_answer_left_in_the_middle_of_a_pass_harms_no_later_one(backbone, stream, monkeypatch):
    expected = drawn(TokenStream(backbone, nullcontext), PROMPT)
    drawn(stream, PROMPT)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PaddedDecoder, "extend", stopped)
        with pytest.raises(KeyboardInterrupt):
            drawn(stream, PROMPT)
    assert drawn(stream, PROMPT) == expected
    assert stream.num_reused == 0


def test_two_streams_take_turns_and_mode_and_gradients_stay(backbone):
    expected = drawn(TokenStream(backbone, nullcontext), PROMPT), drawn(TokenStream(backbone, nullcontext), [77, 78])
    streams = [TokenStream(backbone, nullcontext) for _ in range(2)]
    backbone.train()
    pair = [
        one.draw(prompt, GREEDY, stop_tokens=[2], num_tokens=320)
        for one, prompt in zip(streams, (PROMPT, [77, 78]), strict=True)
    ]
    together = []
    for both in zip(*pair, strict=True):
        assert torch.is_grad_enabled()
        assert backbone.training
        together.append([one.token for one in both])
    assert tuple(map(list, zip(*together, strict=True))) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StreamOptions(**options)


def test_prompts_that_cannot_be_answered_are_refused(stream):
    with pytest.raises(ValueError, match="no tokens"):
        drawn(stream, [])
    with pytest.raises(ValueError, match="token id 999 lies outside"):
        drawn(stream, [5, 999])


def test_weights_that_overflow_are_named(backbone, stream):
    backbone.prepare()
    with torch.no_grad():
        backbone.base.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        drawn(stream, PROMPT)
