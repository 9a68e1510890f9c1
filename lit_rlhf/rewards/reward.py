"""The interface of a reward: whatever gives a response one number, higher better."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from lit_rlhf.types import Picture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlhf.models.backbone import Backbone


class Sample(NamedTuple):
    """One response to one prompt, with all that a reward may want to know of them.

    Args:
        prompt: the prompt as it was tokenised, special tokens of a chat template included.
        response: the response without special tokens.
        messages: the conversation up to the response; empty where the prompt is plain text.
        prompt_tokens: token ids of the prompt.
        response_tokens: token ids of the response, what ends it included.
        columns: all other columns of the row that the prompt came from, such as a reference answer.
        row: address of that row, such as ``train.jsonl:17``.
        finished: whether the response ended by itself; False = it was cut at the length limit.
        pictures: of the prompt, as the policy was given them; as the row names them they are in ``columns``.
    """

    prompt: str
    response: str
    messages: tuple[dict[str, Any], ...] = ()
    prompt_tokens: Sequence[int] = ()
    response_tokens: Sequence[int] = ()
    columns: Mapping[str, Any] = {}
    row: str = ""
    finished: bool = True
    pictures: tuple[Picture, ...] = ()

    @property
    def address(self) -> str:
        """What messages call it: its row, or the beginning of its prompt where it has none."""
        return self.row or f"the response to {self.prompt!r:.60}"


class Reward(Protocol):
    """Anything that can be called with samples and answers with a score for each."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses.

        Args:
            samples: any number of them.

        Returns:
            One finite number per sample, in their order.
        """
        ...


class AttachedReward(ABC):
    """A reward that has to know the policy before it can score, such as a reward model on the policy's backbone."""

    @abstractmethod
    def attach(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        stop_tokens: Collection[int],
        device: torch.device | None = None,
    ) -> None:
        """Get ready to score responses of a policy. Called once, before the first sample and any optimizer.

        Args:
            backbone: carries the policy; its active role stays what it is.
            tokenizer: of the policy.
            stop_tokens: ids that end a response of the policy.
            device: where quantised weights are made; None = where the backbone's are.

        Raises:
            ValueError: if the reward does not fit the policy.
        """

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses, as every :class:`Reward` does."""


def checked_scores(scores: Any, samples: Sequence[Sample], name: str) -> list[float]:
    """What a reward answered, as plain numbers.

    Args:
        scores: a list, or a one-dimensional array or tensor, of numbers; truth values count as 1 and 0.
        samples: that were scored.
        name: of the reward, for messages.

    Raises:
        ValueError: if they are not one finite number per sample; with the row of the first that is none.

    Example:
        >>> checked_scores([1, True, 0.5], [Sample("a", "b")] * 3, "example")
        [1.0, 1.0, 0.5]
    """
    if isinstance(scores, torch.Tensor | np.ndarray):
        scores = scores.tolist()
    if not isinstance(scores, list | tuple):
        raise ValueError(f"reward '{name}' answered with {scores!r:.60}; it must give a list, one number per response")
    if len(scores) != len(samples):
        raise ValueError(f"reward '{name}' gave {len(scores)} scores for {len(samples)} responses")
    return [checked_score(score, sample, name) for score, sample in zip(scores, samples, strict=True)]


def checked_score(score: Any, sample: Sample, name: str) -> float:
    """The score of one response as a plain number.

    Raises:
        ValueError: if it is no finite number; with the row.
    """
    if isinstance(score, torch.Tensor) and score.numel() == 1:
        score = score.item()
    if not isinstance(score, Real | np.bool_) or not math.isfinite(score):
        raise ValueError(f"{sample.address}: reward '{name}' gave {score!r:.60}; it must give a finite number")
    return float(score)
