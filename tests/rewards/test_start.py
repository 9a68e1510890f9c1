"""Which reward model a critic begins as."""

import pytest

from lit_rlhf.models.heads.critic import RewardStart
from lit_rlhf.rewards import ModelReward, WeightedReward
from lit_rlhf.rewards.start import reward_start


def brevity(samples):
    return [-len(sample.response) for sample in samples]


BREVITY = WeightedReward(brevity)


def model(name, weight=1.0, **options):
    return WeightedReward(ModelReward(name, **options), weight, name)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([BREVITY], None),
        ([model("a")], RewardStart("a", 1.0, True)),
        ([BREVITY, model("a", 0.5), model("b")], RewardStart("a", 0.5, True)),
        ([model("a", 0.0), model("b", -2.0)], RewardStart("b", -2.0, True)),
        ([model("a", 0.0)], None),
        ([model("a", normalise=True)], RewardStart("a", 1.0, True)),
        ([model("a", normalise=False)], RewardStart("a", 1.0, False)),
        ([], None),
    ],
)
def test_the_first_that_counts(rewards, expected):
    assert reward_start(rewards) == expected


def test_one_that_is_open_lies_in_no_folder(monkeypatch):
    opened = ModelReward("a")
    opened.model = object()
    assert reward_start([WeightedReward(opened), model("b")]) == RewardStart("b", 1.0, True)
