"""Rewards of your own beside ready ones: a function, a class, and a checked answer, summed by weight.

    python examples/own_reward.py

In a configuration the same rewards are, if this file lies in the working directory as own_reward.py, and --trust
own_reward stands on the command line:

    rewards:
      - reward: {class_path: lit_rlhf.rewards.ExactAnswer}
        weight: 2.0
      - reward: own_reward.shows_work
      - reward: {class_path: own_reward.Politeness, init_args: {words: [please, thank]}}
        weight: 0.5
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlhf.rewards import ExactAnswer, Sample, ScoredSamples, WeightedReward, score_samples

QUESTION = "A box holds 8 pens. How many pens are in 9 boxes?"
RESPONSES = ("8 * 9 = 72, so the answer is 72. Thank you!", "The answer is $72.00.", "Please ask somebody else.")


def shows_work(response: str, answer: str) -> float:
    """1 if there is a step on the way to the answer; `answer` is a column of the row."""
    return float("=" in response.split(answer)[0])


class Politeness:
    """The share of polite words that a response has.

    Args:
        words: that are polite.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses."""
        return [sum(word in sample.response.lower() for word in self.words) / len(self.words) for sample in samples]


def main() -> ScoredSamples:
    """Score three responses and print what each reward says of them."""
    rewards = [
        WeightedReward(ExactAnswer(), weight=2.0),
        WeightedReward(shows_work),
        WeightedReward(Politeness(["please", "thank"]), weight=0.5),
    ]
    samples = [Sample(QUESTION, response, columns={"answer": "72"}) for response in RESPONSES]
    scored = score_samples(rewards, samples)
    print(" ".join(f"{name:>12}" for name in [*scored.parts, "score"]))
    for *parts, total, response in zip(*scored.parts.values(), scored.total, RESPONSES, strict=True):
        print(" ".join(f"{score:12.2f}" for score in [*parts, total]), "", response)
    return scored


if __name__ == "__main__":
    main()
