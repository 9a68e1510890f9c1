"""Who answers: the policies of several runs and their base, all on one backbone, each under its name.

Adapters cost megabytes and the base is there once, so changing from one to another costs nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from datamodules.pictures import TEXT_ALONE, PictureOptions, PictureReader, picture_reader
from lit_rlhf.commands import finished_run
from lit_rlhf.commands.speaking.pieces import TextPieces
from lit_rlhf.commands.speaking.prompts import FittedPrompt, PromptReader
from lit_rlhf.embedded import resolve
from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.models.tokenizers import stop_tokens
from lit_rlhf.rollout.sampling.token_stream import DrawnToken, StreamOptions, TokenStream

BASE = "base"
"""The voice of the model that the runs began from."""

Playing = Callable[[], AbstractContextManager[None]]


class Piece(NamedTuple):
    """A part of an answer.

    Args:
        text: may be empty, where the next token may still change it.
        drawn: the token; None for what was held back to the end.
    """

    text: str
    drawn: DrawnToken | None = None


class Answer:
    """One answer: iterate it to have it said. It may be left in the middle.

    Args:
        pieces: of its text.
        drawn: its tokens as they are drawn.
        prompt: that it answers.
        stop_tokens: ids that end it.

    Attributes:
        text: what has been said.
        num_tokens: that were drawn.
        end: why it ended: ``stop``: the model or a stop string ended it. ``length``: there was no room for more. None:
            it has not ended.
    """

    def __init__(
        self, pieces: TextPieces, drawn: Iterator[DrawnToken], prompt: FittedPrompt, stop_tokens: Sequence[int]
    ) -> None:
        self.prompt = prompt
        self.text = ""
        self.num_tokens = 0
        self.end: Literal["stop", "length"] | None = None
        self._pieces, self._drawn, self._stop_tokens = pieces, drawn, stop_tokens

    def __iter__(self) -> Iterator[Piece]:
        """Say it."""
        for one in self._drawn:
            self.num_tokens += 1
            if one.token in self._stop_tokens:
                self.end = "stop"
                yield self._said(self._pieces.rest(), one)
                return
            yield self._said(self._pieces.add(one.token), one)
            if self._pieces.is_stopped:
                self.end = "stop"
                return
        yield self._said(self._pieces.rest())
        self.end = "stop" if self._pieces.is_stopped else "length"

    def _said(self, text: str, drawn: DrawnToken | None = None) -> Piece:
        self.text += text
        return Piece(text, drawn)


class Voice:
    """One policy that answers.

    Args:
        backbone: carries it.
        playing: gives the context in which the backbone plays it.
        tokenizer: of the policy.
        pictures: reads those of messages; without it they are refused.
    """

    def __init__(
        self,
        backbone: Backbone,
        playing: Playing,
        tokenizer: PreTrainedTokenizerBase,
        pictures: PictureReader = TEXT_ALONE,
    ) -> None:
        self.backbone, self.tokenizer = backbone, tokenizer
        self.stop_tokens = stop_tokens(tokenizer, backbone)
        limit = backbone.base.config.get_text_config().to_dict().get("max_position_embeddings")
        self.reader = PromptReader(tokenizer, limit, pictures)
        self.stream = TokenStream(backbone, playing)

    def answer(self, prompt: FittedPrompt, options: StreamOptions, stop_strings: Sequence[str] = ()) -> Answer:
        """Answer a conversation, or go on with a text.

        Args:
            prompt: from ``reader``.
            options: how the answer is drawn; it is no longer than the model has room for.
            stop_strings: texts that end it.
        """
        room = self.reader.max_tokens - len(prompt.tokens)
        drawn = self.stream.draw(
            prompt.tokens,
            replace(options, max_new_tokens=min(options.max_new_tokens, room)),
            stop_tokens=self.stop_tokens,
            num_tokens=len(self.tokenizer),
            pictures=prompt.pictures,
        )
        return Answer(TextPieces(self.tokenizer, stop_strings), drawn, prompt, self.stop_tokens)


class Voices(NamedTuple):
    """All that answer.

    Args:
        backbone: of all of them.
        by_name: name -> voice, the first run first, the base last.
    """

    backbone: Backbone
    by_name: dict[str, Voice]


def open_voices(args: argparse.Namespace) -> Voices:
    """Load the runs of the command line.

    Raises:
        ValueError: if a run is not there, is no policy, two have one name or different bases, or one does not load.
    """
    runs = named_runs(args.runs)
    configs = {
        name: finished_run.backbone_config(run, args.base, args.dtype, args.quantization) for name, run in runs.items()
    }
    for run in runs.values():
        if finished_run.is_reward_model(run):
            raise ValueError(f"{run} holds a reward model, which scores and does not answer: name it with --reward")
    refuse_other_bases(configs, args.base)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first, *others = configs.values()
    backbone = build_backbone(first, reference="none", device=device).to(device).eval()
    backbone.prepare()
    if not isinstance(backbone.model, PeftModel):
        return Voices(backbone, {name: _voice(backbone, nullcontext, run) for name, run in runs.items()})
    names = [adapters.POLICY, *(f"{adapters.POLICY}_{number}" for number in range(2, len(others) + 2))]
    for adapter, config in zip(names[1:], others, strict=True):
        adapters.add_adapter(backbone.model, str(config.adapter), adapter)
    play = partial(adapters.active_adapter, backbone.model)
    both = zip(names, runs.items(), strict=True)
    found = {name: _voice(backbone, partial(play, adapter), run) for adapter, (name, run) in both}
    # A base alone may have no chat template; that of the first run is what its answers are compared under.
    found[BASE] = _voice(backbone, partial(play, None), next(iter(runs.values())))
    return Voices(backbone, found)


def named_runs(given: Sequence[str]) -> dict[str, Path]:
    """The names of runs, each that of its folder unless it is given before an equals sign.

    Raises:
        ValueError: if two have the same name, or one is called as the base is.

    Example:
        >>> named_runs(["runs/dpo", "before=runs/sft"])
        {'dpo': PosixPath('runs/dpo'), 'before': PosixPath('runs/sft')}
    """
    found: dict[str, Path] = {}
    for text in given:
        name, has_name, folder = text.partition("=")
        is_named = bool(has_name) and name.replace("-", "_").isidentifier() and not Path(text).exists()
        run = Path(resolve(folder if is_named else text))
        name = name if is_named else run.resolve().name
        if name in found or name == BASE:
            taken = "the model that all began from" if name == BASE else f"{found[name]}"
            raise ValueError(f"{run} would be called {name!r}, as is {taken}: give another name, as NAME={run}")
        found[name] = run
    return found


def refuse_other_bases(configs: Mapping[str, BackboneConfig], base: str | None) -> None:
    """Refuse runs that do not share one base, as far as the names of bases tell.

    Args:
        configs: of each run, by its name.
        base: that the user says they all have.

    Raises:
        ValueError: naming the run and both bases.
    """
    (first, ours), *others = configs.items()
    for name, theirs in others:
        for one, config in ((first, ours), (name, theirs)):
            if config.adapter is None:
                raise ValueError(f"{one!r} is a whole model, and only adapters on one base can be loaded side by side")
        if base is None and Path(ours.name_or_path).name != Path(theirs.name_or_path).name:
            raise ValueError(
                f"{name!r} was trained on {theirs.name_or_path}, and {first!r} on {ours.name_or_path}: only adapters "
                "on one base can be loaded side by side (where both are the same model, --base says where it is)"
            )


def _voice(backbone: Backbone, playing: Playing, run: Path) -> Voice:
    """A voice with the tokenizer of a run, and with its processor of pictures if there is one."""
    tokenizer = finished_run.load_tokenizer(run)
    return Voice(backbone, playing, tokenizer, picture_reader(PictureOptions(), tokenizer))
