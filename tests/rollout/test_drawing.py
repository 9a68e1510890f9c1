"""Which random numbers a response gets: its row decides, and nothing that stands beside it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lit_rlhf.rollout.drawing import draw, no_rollouts, response_names, seed_of
from lit_rlhf.rollout.sampling.request import SamplingOptions

WHOLE = SimpleNamespace(prepare=nullcontext, whole_weights=nullcontext)
"""A backbone that is not sharded, and is not asked."""


class Echo:
    """Keeps what it was asked for."""

    is_exact = True

    def __call__(self, backbone, request):
        self.request = request
        return "rollouts"


def seeds_of(prompts, tiny_tokenizer, key="0:iteration 3", num_responses=2):
    sampler, options = Echo(), SamplingOptions(num_responses)
    said = draw(sampler, WHOLE, prompts, options, tokenizer=tiny_tokenizer, stop_tokens=[2], key=key)
    assert said == "rollouts"
    assert list(sampler.request.prompts) == list(prompts)
    assert sampler.request.options is options
    assert sampler.request.tokenizer is tiny_tokenizer
    assert sampler.request.stop_tokens == [2]
    return sampler.request.seeds


def test_seeds_depend_on_the_row_alone(numbered_prompt, tiny_tokenizer):
    prompts = [numbered_prompt(number) for number in range(5)]
    whole = seeds_of(prompts, tiny_tokenizer)
    assert len(set(whole)) == len(whole) == 10
    first, second = seeds_of(prompts[3:], tiny_tokenizer), seeds_of(prompts[:3], tiny_tokenizer)
    assert [*second, *first] == whole, "on two ranks"
    back = seeds_of(prompts[::-1], tiny_tokenizer)
    assert [back[at : at + 2] for at in (8, 6, 4, 2, 0)] == [whole[at : at + 2] for at in (0, 2, 4, 6, 8)]
    one = seeds_of(prompts, tiny_tokenizer, num_responses=1)
    assert one == whole[::2], "the first response does not depend on how many there are"


def test_another_key_is_another_draw(numbered_prompt, tiny_tokenizer):
    keys = ("0:iteration 3", "0:iteration 4", "1:iteration 3", "0:held-out")
    seeds = [tuple(seeds_of([numbered_prompt(0)], tiny_tokenizer, key)) for key in keys]
    assert len(set(seeds)) == len(keys)


def test_a_row_that_comes_twice_is_answered_twice(numbered_prompt):
    one, other = numbered_prompt(0), numbered_prompt(1)
    assert response_names([one, other, one], 2) == [
        *("train:1#0", "train:1#1", "train:2#0", "train:2#1", "train:1#2", "train:1#3"),
    ]


@pytest.mark.parametrize(("name", "seed"), [("", 8238016292129134938), ("a", 2340832890917691671)])
def test_a_seed_is_one_that_torch_takes_and_stays_the_same(name, seed):
    """A run that is resumed by another version draws as the first one did."""
    assert seed_of(name) == seed
    assert all(0 <= seed_of(str(number)) < 2**63 for number in range(99))
    torch.Generator().manual_seed(seed)


def test_a_rank_without_prompts_has_rollouts_without_responses(make_policy, tiny_tokenizer):
    sampler = Echo()
    none = draw(sampler, make_policy(), [], SamplingOptions(), tokenizer=tiny_tokenizer, stop_tokens=[2], key="0")
    assert not hasattr(sampler, "request")
    assert none.prompts == ()
    assert none.lengths.tolist() == []
    assert [tensor.shape for tensor in none[1:]] == [(0,), (0, 1), (0, 1), (0, 1), (0,)]
    dtypes = [torch.int64, torch.int64, torch.bool, torch.float32, torch.bool]
    assert [tensor.dtype for tensor in no_rollouts(torch.device("cpu"))[1:]] == dtypes
