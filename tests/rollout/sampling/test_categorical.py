"""Draws of tokens: the distribution, the log-probabilities, the numbers they are drawn with."""

import pytest
import torch
from transformers import TopPLogitsWarper

from lit_rlhf.rollout.sampling.categorical import draw_tokens, nucleus, uniforms

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, -3.0, 1.1])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_follow_the_distribution(temperature):
    count = 20_000
    tokens, logprobs = draw_tokens(LOGITS.expand(count, -1), uniforms([5], count)[0], temperature, len(LOGITS))
    expected = torch.softmax(LOGITS / temperature, 0)
    seen = torch.bincount(tokens, minlength=len(LOGITS))
    chi_square = float(((seen - count * expected) ** 2 / (count * expected)).sum())
    assert chi_square < 20.5  # 0.999 quantile at 5 degrees of freedom
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_temperature_zero_takes_the_likeliest_and_tells_its_own_log_probability():
    tokens, logprobs = draw_tokens(LOGITS[None], torch.tensor([0.99], dtype=torch.float64), 0.0, len(LOGITS))
    assert tokens.tolist() == [2]
    torch.testing.assert_close(logprobs, torch.log_softmax(LOGITS, 0)[2:3])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_the_tokenizer_lacks_are_not_drawn_but_count(temperature):
    logits = torch.tensor([[0.0, 1.0, 5.0]]).expand(64, 3)
    tokens, logprobs = draw_tokens(logits, uniforms([1], 64)[0], temperature, 2)
    assert set(tokens.tolist()) == ({1} if temperature == 0.0 else {0, 1})
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, 1).gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_interval_give_tokens_that_can_be(number):
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 3:6] = 0.0
    tokens, logprobs = draw_tokens(logits, torch.tensor([number], dtype=torch.float64), 1.0, 9)
    assert tokens.tolist() == [3 if number == 0.0 else 5]
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_show_in_the_log_probability(broken):
    logits = torch.tensor([[0.0, broken, 1.0]])
    tokens, logprobs = draw_tokens(logits, torch.tensor([0.5], dtype=torch.float64), 1.0, 3)
    assert 0 <= int(tokens) < 3
    assert not logprobs.isfinite().any()


def test_numbers_depend_on_their_seed_alone_and_the_global_state_is_left():
    before = torch.get_rng_state()
    table = uniforms([3, 9, 3], 40)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(table[0], table[2])
    assert not torch.equal(table[0], table[1])
    assert torch.equal(uniforms([9], 40)[0], table[1])
    assert 0.0 <= float(table.min()) <= float(table.max()) < 1.0


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.5), (1.0, 0.9), (0.5, 0.9), (2.0, 0.9), (1.0, 1e-6)])
def test_the_nucleus_is_that_of_transformers(temperature, top_p):
    logits = torch.stack([LOGITS, LOGITS.flip(0), LOGITS * 3])
    expected = TopPLogitsWarper(top_p)(None, logits / temperature)
    kept = nucleus(logits, temperature, top_p)
    assert torch.equal(kept.isfinite(), expected.isfinite())
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.0, 0.1)])
def test_nothing_is_left_out_where_all_mass_is_wanted_or_none_is_drawn_from(temperature, top_p):
    assert nucleus(LOGITS[None], temperature, top_p).isfinite().all()
