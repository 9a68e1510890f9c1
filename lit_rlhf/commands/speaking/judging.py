"""What a reward model says of answers as they come."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel

from datamodules.preference import PreferenceDataModule
from datamodules.sources import Row
from lit_rlhf.commands import finished_run, score
from lit_rlhf.commands.scoring import Scorer
from lit_rlhf.commands.speaking.prompts import Messages
from lit_rlhf.embedded import resolve
from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.reward_model import RewardModel, add_reward_model, load_reward_model


class Verdict(NamedTuple):
    """What a reward model says of an answer.

    Args:
        score: in the unit of the model.
        deviations: in standard deviations from the mean of its validation data; None where these are not known.
    """

    score: float
    deviations: float | None = None

    def __str__(self) -> str:
        """For a person, such as ``1.73 (+0.4 sd)``."""
        return f"{self.score:.2f}" + ("" if self.deviations is None else f" ({self.deviations:+.1f} sd)")


class Judge:
    """A reward model that scores single answers.

    Args:
        scorer: scores rows as the command ``score`` does.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __call__(self, prompt: Messages | str, answer: str) -> Verdict:
        """Score an answer.

        Args:
            prompt: messages, or a text.
            answer: what was said to it.

        Raises:
            ValueError: if the model can give it no score, such as to an empty one.
        """
        response = answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
        (one,) = self._scorer([Row("the answer", "", {"prompt": prompt, "response": response})])
        if one.error is not None:
            raise ValueError(f"no score: {one.error}")
        is_measured = self._scorer.model.score.is_measured
        return Verdict(one.scores[0], self._scorer.normalise(one.scores)[0] if is_measured else None)


def open_judge(run: str, args: argparse.Namespace, backbone: Backbone) -> Judge:
    """Load a reward model, onto the backbone of the policies where it was trained on the same base.

    Args:
        run: its folder or hub name.
        args: how it is loaded otherwise.
        backbone: of the policies.

    Raises:
        ValueError: if there is no such reward model.
    """
    folder = Path(resolve(run))
    model = _load(folder, args, backbone)
    tokenizer = finished_run.load_tokenizer(folder)
    data = PreferenceDataModule(predict=[], kind="graded", tokenizer=tokenizer, **score.limits(folder, {}))
    return Judge(Scorer(model, data.task(), data.token_budget))


def _load(folder: Path, args: argparse.Namespace, backbone: Backbone) -> RewardModel:
    if isinstance(backbone.model, PeftModel) and _is_on_base(folder, args.base, backbone):
        return add_reward_model(backbone, folder)
    return load_reward_model(folder, None, args.dtype, args.quantization, backbone.base.device).to(backbone.base.device)


def _is_on_base(folder: Path, base: str | None, backbone: Backbone) -> bool:
    """Whether a folder holds an adapter on the base of the policies, as far as names tell or the user says."""
    if not finished_run.is_adapter(folder):
        return False
    return base is not None or adapters.is_same_base(finished_run.base_of(folder), backbone.base)
