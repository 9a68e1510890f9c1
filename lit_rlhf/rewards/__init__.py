"""What scores a response: one small interface, those that speak it, and their weighted sum.

Public names are loaded on first use, so that a reward in plain Python costs no import of transformers.
"""

from importlib import import_module

_PUBLIC = {
    "AttachedReward": "reward",
    "ExactAnswer": "verifiable",
    "FormatMatch": "verifiable",
    "FunctionReward": "function",
    "HttpReward": "http",
    "KeywordCount": "shape",
    "LengthTarget": "shape",
    "ModelReward": "model",
    "OverlongPenalty": "shape",
    "RegexMatch": "verifiable",
    "RepetitionPenalty": "shape",
    "Reward": "reward",
    "Sample": "reward",
    "ScoredSamples": "scores",
    "WeightedReward": "scores",
    "attach_rewards": "scores",
    "samples_of": "samples",
    "score_samples": "scores",
}

__all__ = [
    "AttachedReward",
    "ExactAnswer",
    "FormatMatch",
    "FunctionReward",
    "HttpReward",
    "KeywordCount",
    "LengthTarget",
    "ModelReward",
    "OverlongPenalty",
    "RegexMatch",
    "RepetitionPenalty",
    "Reward",
    "Sample",
    "ScoredSamples",
    "WeightedReward",
    "attach_rewards",
    "samples_of",
    "score_samples",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lit_rlhf.rewards' has no attribute '{name}'")
    return getattr(import_module(f"lit_rlhf.rewards.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
