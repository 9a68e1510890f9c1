"""The reward model beside an answer: the score that ``score`` gives, on the policies' backbone where that can be."""

from __future__ import annotations

import argparse

import pytest

from datamodules.sources import Row
from lit_rlhf.commands.speaking.judging import Verdict, open_judge
from lit_rlhf.rollout.sampling.token_stream import StreamOptions

TALK = [{"role": "user", "content": "Hi"}]
ARGS = argparse.Namespace(base=None, dtype="auto", quantization="none")


def test_scores_are_those_of_the_command_and_the_policies_stay(voices_of, reward_folders, scorer_of):
    voices = voices_of("sft")
    options = StreamOptions(temperature=0.0, max_new_tokens=8)

    def said():
        voice = voices.by_name["sft"]
        return "".join(piece.text for piece in voice.answer(voice.reader.whole(TALK), options))

    before = said()
    judge = open_judge(str(reward_folders()), ARGS, voices.backbone)
    assert "reward" in voices.backbone.model.peft_config
    scorer = scorer_of(reward_folders())
    for prompt, response in ((TALK, [{"role": "assistant", "content": "Thank you."}]), ("Hi", "Thank you.")):
        (expected,) = scorer([Row("row", "", {"prompt": prompt, "response": response})])
        verdict = judge(prompt, "Thank you.")
        assert verdict.score == pytest.approx(expected.scores[0], abs=1e-5)
        assert verdict.deviations == pytest.approx((expected.scores[0] - 0.5) / 2.0, abs=1e-5)
        assert said() == before
    with pytest.raises(ValueError, match="no score: "):
        judge(TALK, "")


def test_a_reward_model_of_another_base_brings_its_own(voices_of, reward_folders, tiny_llama, scorer_of):
    voices = voices_of(f"whole={tiny_llama()}")
    judge = open_judge(str(reward_folders()), ARGS, voices.backbone)
    (expected,) = scorer_of(reward_folders())([Row("row", "", {"prompt": "Hi", "response": "Thank you."})])
    assert judge("Hi", "Thank you.").score == pytest.approx(expected.scores[0], abs=1e-5)


def test_an_adapter_on_another_base_of_the_same_shape_brings_its_own_too(
    voices_of, policy_folders, reward_folders, tiny_llama, scorer_of
):
    voices = voices_of(policy_folders("cousin", base=tiny_llama(seed=9)))
    judge = open_judge(str(reward_folders()), ARGS, voices.backbone)
    assert "reward" not in voices.backbone.model.peft_config
    (expected,) = scorer_of(reward_folders())([Row("row", "", {"prompt": "Hi", "response": "Thank you."})])
    assert judge("Hi", "Thank you.").score == pytest.approx(expected.scores[0], abs=1e-5)


def test_what_is_no_reward_model_is_refused(voices_of, policy_folders):
    with pytest.raises(ValueError, match="no reward model"):
        open_judge(str(policy_folders("dpo")), ARGS, voices_of("sft").backbone)


def test_a_verdict_for_a_person(reward_folders, voices_of):
    assert str(Verdict(1.734, 0.44)) == "1.73 (+0.4 sd)"
    assert str(Verdict(-1.0)) == "-1.00"
    judge = open_judge(str(reward_folders(measured=False)), ARGS, voices_of("sft").backbone)
    assert judge("Hi", "Thank you.").deviations is None
