"""What a user says about learning from rollouts. Plain dataclasses: the command line shows them field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints


@dataclass
class KLOptions:
    """How the policy is held to its reference.

    Args:
        coef: of the KL divergence per token, 0.01-0.1 usual: 0.05 for summaries and chat, less for long answers.
            In PPO it is part of the reward of every token.
        estimator: of the divergence in the reward: "k1" = log-ratio, unbiased also in its gradient (default); "k2" =
            half its square; "k3" = ratio - 1 - log-ratio, never negative. (J. Schulman, "Approximating KL divergence",
            2020.)
        target: divergence to hold, in nats per response; ``coef`` is then only where it begins (Ziegler et al.,
            arXiv 1909.08593, eq. 3). 6 usual. None = ``coef`` stays.
        horizon: responses in which an error of the target of 20 percent or more moves ``coef`` by 20 percent.
        loss_coef: of the divergence as a part of the loss, instead of or beside the reward; 0 = none.
        loss_estimator: of that part: "k2", whose gradient is that of the divergence, or "k3+", the value of k3 with the
            gradient of k2.
    """

    coef: float = 0.05
    estimator: Literal["k1", "k2", "k3"] = "k1"
    target: float | None = None
    horizon: int = 10_000
    loss_coef: float = 0.0
    loss_estimator: Literal["k2", "k3+"] = "k2"

    def __post_init__(self) -> None:
        _check_choices(self, "kl")
        if self.coef < 0 or self.loss_coef < 0 or self.horizon < 1 or (self.target is not None and self.target <= 0):
            raise ValueError(
                f"kl.coef is {self.coef}, loss_coef is {self.loss_coef}, horizon is {self.horizon} and target is "
                f"{self.target}; coefficients are not negative, horizon is at least 1, a target is above 0"
            )
        if self.target is not None and not self.coef:
            raise ValueError(f"kl.target is {self.target} and kl.coef is 0; a coefficient that moves begins above 0")


@dataclass
class AdvantageOptions:
    """How rewards of tokens become advantages (Schulman et al., "GAE", arXiv 1506.02438).

    Args:
        gamma: discount per token; 1 = a score counts the same for the first token and the last.
        gae_lambda: 0-1; towards 1 advantages rest on what happened, towards 0 on what the critic expects.
        value_lambda: lambda of the critic's targets where it is another one; 1 for long responses (VAPO, arXiv
            2504.05118). None = ``gae_lambda``.
        length_alpha: the policy's lambda follows the length l of each response, 1 - 1 / (length_alpha * l) (same
            source, 0.05 there). None = ``gae_lambda``.
        whiten: shift and scale the advantages of all responses, over all ranks, to mean 0 and standard deviation 1.
    """

    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_lambda: float | None = None
    length_alpha: float | None = None
    whiten: bool = True

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda", "value_lambda"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"advantages.{name} is {value}; it lies in 0-1")
        if self.length_alpha is not None and self.length_alpha <= 0:
            raise ValueError(f"advantages.length_alpha is {self.length_alpha}; it is above 0, or null")


@dataclass
class ClipOptions:
    """How far one iteration may move policy and values.

    Args:
        clip_range: by how much the ratio to the policy that wrote the responses may fall below 1 or rise above it.
        clip_range_high: how far it may rise, where that is another number (clip-higher, DAPO, arXiv 2503.14476): 0.28
            keeps entropy up in long reasoning. None = ``clip_range``.
        dual_clip: bound, in advantages, of the loss of a token with a negative advantage whose ratio exploded (Ye et
            al., arXiv 1912.09729); above 1. None = no bound.
        clip_range_value: by how much a value may move from what it was. None = freely.
    """

    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float | None = 3.0
    clip_range_value: float | None = 0.2

    def __post_init__(self) -> None:
        for name in ("clip_range", "clip_range_high", "clip_range_value"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"clipping.{name} is {value}; it is above 0")
        if self.dual_clip is not None and self.dual_clip <= 1.0:
            raise ValueError(f"clipping.dual_clip is {self.dual_clip}; it is above 1, or null")


@dataclass
class ScoreOptions:
    """What becomes of scores before they are learnt from, in this order.

    Args:
        normalise: "running": divide by the running standard deviation of all scores so far (the mean stays). "none".
        clip: bound of a score on both sides, after that; 0 = none.
        missing_eos_penalty: taken off the score of a response that was cut at the length limit, so that the policy
            learns to finish.
        missing_eos_score: takes the place of such a score, whatever the rewards said; below what responses that finish
            are given. None = it stays.
        min_length: tokens that a response should have.
        short_penalty: taken off the score of a shorter one.
        overlong_buffer: tokens before the length limit in which a penalty grows from 0 to ``overlong_penalty`` (DAPO,
            arXiv 2503.14476, eq. 13); 0 = none.
        overlong_penalty: at the length limit.
        ignore_unfinished: learn nothing from responses that were cut (overlong filtering, same source).
    """

    normalise: Literal["none", "running"] = "none"
    clip: float = 10.0
    missing_eos_penalty: float = 1.0
    missing_eos_score: float | None = None
    min_length: int = 0
    short_penalty: float = 1.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    ignore_unfinished: bool = False

    def __post_init__(self) -> None:
        _check_choices(self, "scores")
        names = ("clip", "missing_eos_penalty", "min_length", "short_penalty", "overlong_buffer", "overlong_penalty")
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"scores.{name} is {getattr(self, name)}; it is not negative")


@dataclass
class UpdateOptions:
    """How often and in what portions the responses of an iteration are learnt from.

    Args:
        num_epochs: passes over the responses of an iteration. 1-4 usual.
        num_minibatches: portions of a pass, with an optimizer step each.
        token_budget: most tokens of one forward pass; gradients accumulate within a portion, exactly. Changes memory
            and speed, never the result.
        max_grad_norm: norm that gradients are clipped to; 0 = none.
        average: what the loss of a portion is averaged over: "tokens" of all its responses, or "sequences": over the
            tokens of each response, then over responses.
        max_kl: end the passes of an iteration once a portion's policy is that far from the one that wrote the
            responses, in nats per token (k3); 0.01-0.1 usual. None = never.
        importance_cap: bound of the weights that correct for a sampler that computes with other weights or in other
            precision than training does (truncated importance sampling). None = 2 for such a sampler, no weights else.
        routing: of a mixture of experts: "free", or "replay", which computes every update with the experts that tokens
            had before the first one (routing replay); online DPO takes "free" alone.
    """

    num_epochs: int = 2
    num_minibatches: int = 2
    token_budget: int = 8192
    max_grad_norm: float = 1.0
    average: Literal["tokens", "sequences"] = "tokens"
    max_kl: float | None = None
    importance_cap: float | None = None
    routing: Literal["free", "replay"] = "free"

    def __post_init__(self) -> None:
        _check_choices(self, "updates")
        for name in ("num_epochs", "num_minibatches", "token_budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"updates.{name} is {getattr(self, name)}; it is at least 1")
        if self.max_grad_norm < 0:
            raise ValueError(f"updates.max_grad_norm is {self.max_grad_norm}; it is not negative, and 0 is no bound")
        if self.max_kl is not None and self.max_kl <= 0:
            raise ValueError(f"updates.max_kl is {self.max_kl}; it is above 0, or null")
        if self.importance_cap is not None and self.importance_cap < 1:
            raise ValueError(f"updates.importance_cap is {self.importance_cap}; it is at least 1, or null")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of an iteration whose passes do not end early."""
        return self.num_epochs * self.num_minibatches


def _check_choices(options: Any, key: str) -> None:
    """Refuse a word that is none of those that a field knows; the command line does it before."""
    for name, kind in get_type_hints(type(options)).items():
        choices, value = get_args(kind), vars(options)[name]
        if isinstance(value, str) and value not in choices:
            raise ValueError(f"{key}.{name} is '{value}'; there are {', '.join(map(repr, choices))}")
