"""What healthy looks like, panel by panel: the words of the docs, which a test holds them to."""

from __future__ import annotations

from collections.abc import Iterable

_ROLLOUTS = {
    "score": "rises, then flattens; both alike",
    "score_parts": "rise together; one that falls while the score rises is being traded away",
    "score_std": "well above 0: without spread there is nothing to learn",
    "kl": "starts at 0, grows ever more slowly; 5-50 usual, under a nat per token",
    "entropy": "falls slowly; under a fifth of its beginning, variety is lost",
    "length": "follows the task, not the iteration",
    "finished": "steady or rising",
    "explained_variance": "rises above 0 within some ten iterations, to 0.3-0.9; below 0 the critic does harm",
    "sampler_kl": "0 where both compute alike; under 0.01 in mixed precision",
    "policy_loss": "near 0, of either sign: it says little",
    "value_loss": "falls, then follows the scale of the returns",
    "approx_kl": "0.001-0.05",
    "clip_fraction": "together 0.05-0.25",
    "value_clip_fraction": "under 0.3",
    "ratio_max": "1 in the first minibatch, then under 5",
    "grad_norm": "steady; spikes mean a rate that is too high",
    "lr": "follows the schedule",
    "seconds": "rollouts are usually the larger half",
    "tokens_per_second": "constant",
    "advantages_std": "steady or falling",
}

_PAIRS = {
    "loss": "starts at ln 2 = 0.693 for the sigmoid loss and falls; 0 is overfitting",
    "rewards/accuracy": "from 0.5 up; held-out 0.6-0.8 on human labels, whose noise is the ceiling",
    "rewards/accuracy_shorter": "far below the former: the policy learns length, not preference",
    "rewards": "near 0 or above; sinking with the rejected one is common, sinking fast is not",
    "rewards/margin": "grows, then flattens",
    "logprobs": "falls a little; by a tenth and more: lower the rate or add `sft_loss`",
    "kl": "starts at 0, grows slowly; past 1 the policy has left the reference",
    "entropy": "falls slowly; a collapse means lost variety",
    "data/fill": "above 0.8; lower means that a step is smaller than the budget",
    "grad_norm": "steady; spikes mean a rate that is too high",
    "lr": "follows the schedule",
    "tokens_per_second": "constant",
}

_SCORES = {
    "loss": "Bradley-Terry starts near ln 2 = 0.693 and falls; held-out rising again is overfitting, often in the "
    "second epoch",
    "scores/accuracy": "held-out 0.6-0.8 on human labels, whose noise is the ceiling",
    "scores": "both drifting away together is harmless, and `centring_loss` stops it",
    "scores/margin": "grows, then flattens",
    "scores/accuracy_longer": "near each other; else it scores length",
    "scores/length_correlation": "near that of the labels; towards 1 PPO will learn to be long",
    "scores/ece": "below 0.05",
    "scores/brier": "0.25 knows nothing",
    "grad_norm": "steady",
    "lr": "follows the schedule",
    "tokens_per_second": "constant",
}

_TEXTS = {
    "loss": "falls, fast in the first steps; held-out rising again is overfitting, often from the second or third "
    "epoch on",
    "nll": "the loss itself for plain settings; compare runs by it",
    "perplexity": "2-8 for chat data and models of some billions; comparable under one tokenizer only",
    "token_accuracy": "rises a little: 0.5-0.8 in open answers, near 1 where answers are fixed; held-out far below "
    "training is overfitting",
    "entropy": "near `nll`: below it the model is surer than it is right, the first sign of overfitting",
    "grad_norm": "steady; spikes mean a rate that is too high",
    "lr": "follows the schedule",
    "tokens_per_second": "constant",
}

PAGES = {
    "watching.md": ("score_std", _ROLLOUTS),
    "algorithms/reward.md": ("scores/accuracy", _SCORES),
    "algorithms/dpo.md": ("rewards/accuracy", _PAIRS),
    "algorithms/sft.md": ("token_accuracy", _TEXTS),
}
"""Words by the page of the docs that they stand on, behind a panel that tells which page a run belongs to."""


def healthy(panels: Iterable[str]) -> dict[str, str]:
    """What healthy looks like, by panel; nothing for a run that logs none of our names.

    Args:
        panels: that the run has.
    """
    known = set(panels)
    return next((words for sign, words in PAGES.values() if sign in known), {})
