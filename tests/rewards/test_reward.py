"""The interface of a reward: a plain function will do."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlhf.rewards.http import HttpReward
from lit_rlhf.rewards.reward import Reward, Sample


def brevity(samples: Sequence[Sample]) -> list[float]:
    return [-float(len(sample.response)) for sample in samples]


def test_a_sample_needs_a_prompt_and_a_response_and_a_function_is_a_reward():
    rewards: list[Reward] = [brevity, HttpReward("http://127.0.0.1:1")]
    assert rewards[0]([Sample("a", "four"), Sample("a", "")]) == [-4.0, -0.0]
    sample = Sample("a", "b")
    assert (sample.messages, sample.prompt_tokens, sample.response_tokens, sample.columns, sample.row) == (
        (),
        (),
        (),
        {},
        "",
    )
