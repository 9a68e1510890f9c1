"""Weighted sums of rewards, their names, and how a configuration makes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_rlhf import rewards
from lit_rlhf.commands.training import Parser
from lit_rlhf.commands.trust import limit_names
from lit_rlhf.rewards import (
    AttachedReward,
    ExactAnswer,
    FunctionReward,
    HttpReward,
    Sample,
    WeightedReward,
    attach_rewards,
    score_samples,
)
from lit_rlhf.rewards.scores import reward_names

SAMPLES = [Sample("a", "four", row="train.jsonl:1"), Sample("a", "b", row="train.jsonl:2")]


def brevity(samples: Sequence[Sample]) -> list[float]:
    """A plain function as a reward."""
    return [-float(len(sample.response)) for sample in samples]


def size(response):
    return len(response)


class Algorithm:
    """What takes rewards from a configuration."""

    def __init__(self, rewards: list[WeightedReward]) -> None:
        self.rewards = rewards


def test_scores_are_summed_by_weight_and_parts_stay_as_they_are():
    parts = [WeightedReward(brevity, 0.5), WeightedReward(FunctionReward(size), -2.0), WeightedReward(brevity, 0, "c")]
    scored = score_samples(parts, SAMPLES)
    assert scored.total == [-10.0, -2.5]
    assert scored.parts == {"brevity": [-4.0, -1.0], "size": [4.0, 1.0], "c": [-4.0, -1.0]}
    assert score_samples(parts, []) == ([], {"brevity": [], "size": [], "c": []})


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], None, [None, 1.0]])
def test_every_reward_is_checked_and_named(scores):
    class Odd:
        def __call__(self, samples):
            return scores

    with pytest.raises(ValueError, match="reward 'odd'"):
        score_samples([WeightedReward(brevity), WeightedReward(Odd())], SAMPLES)


def test_names():
    class OwnReward:
        def __call__(self, samples: Sequence[Sample]) -> list[float]:
            return []

    made = [ExactAnswer(), HttpReward("http://127.0.0.1"), FunctionReward(size), brevity, OwnReward()]
    assert reward_names([WeightedReward(one) for one in made]) == ["exact_answer", "http", "size", "brevity", "own"]
    assert reward_names([WeightedReward(ExactAnswer(), name="right")]) == ["right"]


def test_names_are_unique():
    two = [WeightedReward(size), WeightedReward(ExactAnswer()), WeightedReward(FunctionReward(size))]
    with pytest.raises(ValueError, match=r"rewards\[0\] and rewards\[2\] are both named 'size'; give one another"):
        score_samples(two, [])
    with pytest.raises(ValueError, match="give at least one reward"):
        reward_names([])


@pytest.mark.parametrize(("wrong", "words"), [({"weight": float("nan")}, "weight"), ({"name": " "}, "name")])
def test_a_weight_is_a_number_and_a_name_is_none_or_a_word(wrong, words):
    with pytest.raises(ValueError, match=f"the {words} of a reward is"):
        WeightedReward(brevity, **wrong)


def test_those_that_need_the_policy_are_attached():
    class Needy(AttachedReward):
        def attach(self, backbone, tokenizer, stop_tokens, device=None):
            self.given = backbone, tokenizer, stop_tokens, device

        def __call__(self, samples):
            return [1.0] * len(samples)

    needy = Needy()
    attach_rewards([WeightedReward(brevity), WeightedReward(needy)], "b", "t", [2], torch.device("cpu"))
    assert needy.given == ("b", "t", [2], torch.device("cpu"))
    with pytest.raises(ValueError, match="both named 'needy'"):
        attach_rewards([WeightedReward(needy), WeightedReward(needy)], "b", "t", [2])


def built(*given: dict) -> list[WeightedReward]:
    """The rewards that a configuration makes."""
    limit_names(["--trust", "tests", "--trust", __name__])  # whatever ran before it in this process
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Algorithm, "model")
    config = parser.parse_object({"model": {"rewards": list(given)}})
    assert parser.parse_string(parser.dump(config)) == config
    return parser.instantiate(config).model.rewards


def reward(name: str, **arguments: object) -> dict:
    return {"class_path": f"lit_rlhf.rewards.{name}", "init_args": arguments}


READY = {
    "ModelReward": {"model": "runs/reward", "label": "POSITIVE", "normalise": "auto"},
    "FunctionReward": {"function": f"{__name__}.size", "timeout": 3, "arguments": {"scale": 2}},
    "HttpReward": {"url": "http://127.0.0.1:8190"},
    "ExactAnswer": {"column": "truth", "find": ["boxed", "number"]},
    "RegexMatch": {"pattern": r"\d+"},
    "FormatMatch": {"tags": ["think", "answer"]},
    "LengthTarget": {"target": 50, "unit": "words"},
    "OverlongPenalty": {"max_length": 128, "buffer": 32},
    "KeywordCount": {"words": ["happy", "glad"], "target": 6},
    "RepetitionPenalty": {"n": 4},
}


@pytest.mark.parametrize("name", READY)
def test_every_reward_can_be_configured(name, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[size.__module__])
    (made,) = built({"reward": reward(name, **READY[name]), "weight": 0.5, "name": "part"})
    assert type(made.reward) is getattr(rewards, name)
    assert (made.weight, made.name) == (0.5, "part")
    for argument, value in READY[name].items():
        if argument not in ("function", "url", "words"):
            assert getattr(made.reward, argument) == value


def test_every_public_reward_is_configured_above():
    scoring = {name for name in rewards.__all__ if "__call__" in vars(getattr(rewards, name))}
    assert scoring - {"AttachedReward", "Reward"} == set(READY)


@pytest.mark.parametrize(("name", "total"), [("brevity", [-4.0, -1.0]), ("size", [4.0, 1.0])])
def test_a_function_is_a_reward_by_its_import_path(name, total, monkeypatch):
    monkeypatch.setitem(sys.modules, brevity.__module__, sys.modules[brevity.__module__])
    (made,) = built({"reward": f"{brevity.__module__}.{name}"})
    assert isinstance(made.reward, FunctionReward)
    assert score_samples([made], SAMPLES) == (total, {name: total})


def test_a_function_that_asks_for_no_response_is_refused_at_once():
    def answer_only(answer):
        return 1.0

    with pytest.raises(ValueError, match="answer_only names"):
        WeightedReward(answer_only)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"reward": reward("ExactAnswer", columns="truth")}, "columns: unknown key; did you mean 'column'?"),
        ({"reward": reward("FormatMatch"), "weights": 2}, "weights: unknown key; did you mean 'weight'?"),
        ({"reward": reward("ExactAnswers")}, "'lit_rlhf.rewards' has no attribute 'ExactAnswers'"),
        ({"reward": reward("LengthTarget", target="many")}, "target: expected a whole number, not many"),
        ({"reward": reward("FunctionReward", function="lit_rlhf.rewards.nothing")}, "has no attribute 'nothing'"),
        ({"reward": "lit_rlhf.rewards.nothing"}, "nothing"),
        ({"reward": reward("ExactAnswer", find=["box"])}, "find"),
    ],
)
def test_a_typo_is_refused_by_name(wrong, told, capsys):
    parser = Parser()
    parser.add_class_arguments(Algorithm, "model")
    with pytest.raises(SystemExit):
        parser.parse_object({"model": {"rewards": [wrong]}})
    assert told in capsys.readouterr().err


def test_the_lazy_room_knows_its_names():
    assert dir(rewards) == rewards.__all__
    with pytest.raises(AttributeError, match=r"'lit_rlhf\.rewards' has no attribute 'Nothing'"):
        _ = rewards.Nothing
