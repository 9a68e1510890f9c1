"""A score of sampled answers, followed through training: what the numbers of a loss only promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedTokenizerBase

from lit_rlhf.callbacks.prompts import encode, read_prompts
from lit_rlhf.embedded import resolve
from lit_rlhf.models.tokenizers import stop_tokens, tokenizer_of


class SampledScore(Callback):
    """Samples an answer to each of some held-out prompts at every validation, and scores it with a function.

    Logs ``val/sampled_score``, the mean score, and ``val/sampled_win_rate``, the share of prompts whose answer scores
    more than the one given before training (ties count half). Every validation samples from the same seed.

    Args:
        score: called with a prompt, as it stands in the file, and an answer; higher is better. In a config, its import
            path.
        prompts: file of JSON lines with a "prompt" each, a text or a list of messages; may be an ``embedded:`` name.
        num_prompts: how many of them, from the beginning.
        max_new_tokens: most tokens of an answer.
        tokenizer: a tokenizer or its name; None = that of the data module.
    """

    def __init__(
        self,
        score: Callable[[Any, str], float],
        prompts: str,
        num_prompts: int = 128,
        max_new_tokens: int = 64,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
    ) -> None:
        self.score = score
        self.prompts = prompts
        self.num_prompts = num_prompts
        self.max_new_tokens = max_new_tokens
        self.tokenizer = tokenizer
        self.first: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """The scores before training, so that a resumed run compares with the same beginning."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores before training over from a checkpoint."""
        self.first = state_dict["first"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, score and log."""
        if trainer.state.fn != "fit":
            return
        scores = self._scores(trainer, pl_module)
        self.first = self.first or scores
        pl_module.log("val/sampled_score", sum(scores) / len(scores))
        pl_module.log("val/sampled_win_rate", win_rate(scores, self.first))

    def _scores(self, trainer: Trainer, pl_module: Any) -> list[float]:
        tokenizer = tokenizer_of(trainer, self.tokenizer)
        prompts = read_prompts(Path(resolve(self.prompts)))[: self.num_prompts]
        answers = pl_module.model.generate(
            [encode(prompt, tokenizer, is_raw=True) for prompt in prompts],
            self.max_new_tokens,
            stop_tokens=stop_tokens(tokenizer, pl_module.model),
            seed=0,
        )
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [self.score(prompt, text.strip()) for prompt, text in zip(prompts, texts, strict=True)]


def win_rate(scores: Sequence[float], others: Sequence[float]) -> float:
    """Share of places where ``scores`` is higher, a tie counting half.

    Example:
        >>> win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 1.0])
        0.625
    """
    wins = [(score > other) + (score == other) / 2 for score, other in zip(scores, others, strict=True)]
    return sum(wins) / len(wins)
