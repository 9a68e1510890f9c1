"""What a data module sees of its rows, before a model is loaded: forms, lengths, what is cut or lost and why."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.truncation import TooLongError
from datamodules.making import BatchMaker, Outcome
from datamodules.sampling import Sample, take_sample
from datamodules.sources import OpenSource
from datamodules.streamed import StreamedDataModule
from lit_rlhf.types import (
    Cursor,
    Forest,
    GradedResponses,
    Instructions,
    JudgedSteps,
    PreferenceBatch,
    PreferencePairs,
    PromptBatch,
    UnpairedResponses,
)

_REPEATED = 3  # special tokens in a row that are written out


class Loss(NamedTuple):
    """Examples that are lost for one reason.

    Args:
        number: how many.
        address: of the first.
        message: what is wrong with it.
        is_length: whether they are only too long, and so are dropped whatever ``on_bad_row`` says.
    """

    number: int
    address: str
    message: str
    is_length: bool


@dataclass
class SourceReport:
    """What was seen of one source. A row may hold several examples, and an example several pairs.

    Args:
        source: which.
        sample: the rows that were read.
        num_found: examples in them.
        num_used: examples that can be used.
        num_counted: pairs, responses, texts or prompts in those.
        forms: examples by the name of the form they were read by.
        truncated: examples by what was cut of them.
        lost: examples by why they cannot be used.
        num_repeated: examples whose tokens and pictures are those of an earlier one.
        num_images: pictures that rows refer to.
        image_tokens: image tokens of each picture that the model sees.
        images: digests of those pictures.
        num_endless: used examples of which a whole response ends without a special token.
        num_pairs: pairs of a better and a worse response.
        num_chosen_longer: pairs of which the better response has more tokens, before anything is cut.
        lengths: tokens of each part of every example, before anything is cut, by name: ``prompt``, ``whole`` ...
        num_tokens: tokens of all used examples, cut to length, shared ones counted once.
        steps: tokens and micro-batches of a few optimizer steps.
        shown: examples to look at.
    """

    source: OpenSource
    sample: Sample
    num_found: int = 0
    num_used: int = 0
    num_counted: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    lost: dict[str, Loss] = field(default_factory=dict)
    num_repeated: int = 0
    num_images: int = 0
    image_tokens: list[int] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    num_endless: int = 0
    num_pairs: int = 0
    num_chosen_longer: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)
    num_tokens: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)
    shown: list[Outcome] = field(default_factory=list)

    @property
    def num_lost(self) -> int:
        """Examples that cannot be used."""
        return self.num_found - self.num_used


class Piece(NamedTuple):
    """A part of an example, as a model meets it.

    Args:
        title: what it is: ``prompt``, ``chosen``, ``rejected``, ``text`` ...
        tokens: token ids.
        trained: one bool per token; True = its log-probability counts, or a judged step ends there.
    """

    title: str
    tokens: list[int]
    trained: list[bool]


def inspect(data: StreamedDataModule, split: str, max_rows: int = 2000, num_shown: int = 3) -> Iterator[SourceReport]:
    """Look at the rows of every source of a split.

    A source of more than ``max_rows`` rows is sampled, without reading it whole.

    Args:
        data: knows the sources and what becomes of their rows.
        split: ``train``, ``validation``, ``test`` or ``predict``.
        max_rows: rows to read of each source.
        num_shown: examples to keep for a look.

    Raises:
        ValueError: if the split is not set or a source cannot be read.
    """
    maker = BatchMaker(data.task())
    for source in data.sources(split):
        report = SourceReport(source, take_sample(source, max_rows, data.seed))
        rows = report.sample.rows
        outcomes: list[Outcome] = []
        for start in range(0, len(rows), data.batch_size):
            outcomes += map(_without_pixels, maker.outcomes(rows[start : start + data.batch_size]))
        _add(report, outcomes, data)
        _add_steps(report, outcomes, data)
        report.shown = [outcome for outcome in outcomes if outcome.error is None][:num_shown]
        yield report


def pieces(outcome: Outcome, task: Any) -> list[Piece]:
    """The parts of an example, in the order in which a model meets them.

    Args:
        outcome: an example that is not lost.
        task: the ``Task`` that it was made for.
    """
    batch = task.pack([outcome], {}, Cursor())
    if isinstance(batch, PromptBatch):
        tokens = list(batch.prompts[0].tokens)
        return [Piece("prompt", tokens, [False] * len(tokens))]
    (part,) = batch.micro_batches
    forest: Forest = part.forest
    tokens, trained = forest.tokens.tolist(), [False] * forest.num_tokens
    for target in forest.targets.tolist():
        trained[target] = True
    titles = dict(zip(forest.leaves, _titles(part), strict=True))
    return [
        Piece(titles.get(number, "prompt"), tokens[start : start + length], trained[start : start + length])
        for number, (start, length) in enumerate(zip(forest.starts, forest.lengths, strict=True))
    ]


def visible(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[tuple[str, bool]]:
    """Decode tokens for a person, every special token by its name.

    Args:
        tokenizer: that made them.
        tokens: token ids.

    Returns:
        Pieces of text, and for each whether it is a special token; the tokens of a picture are one piece.
    """
    # Behind a letter, because some tokenizers leave out a space that a text begins with.
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    begun = str(tokenizer.decode(letter))
    found: list[tuple[str, bool]] = []
    for is_special, run in groupby(tokens, key=special_ids(tokenizer).__contains__):
        if is_special:
            found += [(_named(tokenizer, token, len(list(same))), True) for token, same in groupby(run)]
        else:
            text = str(tokenizer.decode([*letter, *run], clean_up_tokenization_spaces=False))
            found.append((text.removeprefix(begun), False))
    return found


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the special tokens of a tokenizer, those of chat templates included."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _named(tokenizer: PreTrainedTokenizerBase, token: int, number: int) -> str:
    """The name of a special token, so many times."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    return name * number if number <= _REPEATED else f"{name} x {number}"


def _without_pixels(outcome: Outcome) -> Outcome:
    """An outcome that may be held with thousands of others."""
    if outcome.whole is None or not outcome.whole.pictures:
        return outcome
    light = tuple(seen._replace(picture=seen.picture._replace(inputs={})) for seen in outcome.whole.pictures)
    tokens = None if outcome.tokens is None else outcome.tokens._replace(pictures=light)
    return outcome._replace(whole=outcome.whole._replace(pictures=light), tokens=tokens)


def _titles(part: Any) -> list[str]:
    """What each sequence of a micro-batch is called."""
    return _TITLES[type(part)](part)


def _preferred(part: PreferencePairs) -> list[str]:
    better, worse = set(part.chosen.tolist()), set(part.rejected.tolist())
    return [
        "in between" if number in better & worse else "chosen" if number in better else "rejected"
        for number in range(part.forest.num_sequences)
    ]


def _graded(part: GradedResponses) -> list[str]:
    """Rank and grades, in the order of the objectives."""
    said = zip(part.ranks.tolist(), part.grades.tolist(), strict=True)
    return [f"rank {rank}, graded {_numbers(grades)}" if grades else f"rank {rank}" for rank, grades in said]


def _judged(part: JudgedSteps) -> list[str]:
    labels = [part.labels[part.forest.sequences == number].tolist() for number in range(part.forest.num_sequences)]
    return [f"steps judged {_numbers(judged)}" for judged in labels]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join("unknown" if math.isnan(value) else f"{value:g}" for value in values)


_TITLES: dict[type, Callable[[Any], list[str]]] = {
    PreferencePairs: _preferred,
    UnpairedResponses: lambda part: ["thumb up" if label else "thumb down" for label in part.labels.tolist()],
    GradedResponses: _graded,
    JudgedSteps: _judged,
    Instructions: lambda part: ["text"] * part.forest.num_sequences,
}


def _add(report: SourceReport, outcomes: Sequence[Outcome], data: StreamedDataModule) -> None:
    """Add what becomes of each example."""
    task, stops = data.task(), special_ids(data.tokenizer)
    seen: set[str] = set()
    report.num_found = len(outcomes)
    for outcome in outcomes:
        images = outcome.record.images if outcome.record is not None else ()
        if outcome.record is not None:
            report.forms[outcome.record.form] += 1
            report.num_images += len(images)
        if outcome.whole is not None:
            for name, length in task.lengths(outcome.whole).items():
                report.lengths.setdefault(name, []).append(length)
        if outcome.error is not None:
            first = Loss(0, outcome.row.address, str(outcome.error), isinstance(outcome.error, TooLongError))
            loss = report.lost.get(outcome.error.reason, first)
            report.lost[outcome.error.reason] = loss._replace(number=loss.number + 1)
            continue
        report.num_used += 1
        report.truncated.update(outcome.tokens.truncated)
        pictures = outcome.tokens.pictures
        report.image_tokens += [one.picture.num_tokens for one in pictures]
        report.images.update(one.picture.digest for one in pictures)
        report.num_repeated += (key := str((outcome.whole, () if pictures else images))) in seen
        seen.add(key)
        parts = pieces(outcome, task)
        report.num_tokens += sum(len(part.tokens) for part in parts)
        is_whole = data.marked == "trained" and "response" not in outcome.tokens.truncated
        report.num_endless += is_whole and not all(_ends(part, stops, data.tokenizer) for part in parts)


def _ends(piece: Piece, stops: set[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what is trained of a piece ends with a special token, but for white space behind it."""
    trained = [token for token, is_trained in zip(piece.tokens, piece.trained, strict=True) if is_trained]
    while trained and trained[-1] not in stops and str(tokenizer.decode(trained[-1:])).isspace():
        trained.pop()
    return not trained or trained[-1] in stops


def _add_steps(report: SourceReport, outcomes: Sequence[Outcome], data: StreamedDataModule) -> None:
    """Add what optimizer steps would be like in random order; a last one that is not full is no measure."""
    task = data.task()
    mixed = [outcome for outcome in outcomes if outcome.error is None]
    random.Random(data.seed).shuffle(mixed)
    size = max(1, round(data.batch_size * len(mixed) / max(1, len(report.sample.rows))))  # examples of a step
    for start in range(0, len(mixed), size):
        batch = task.pack(mixed[start : start + size], {}, Cursor())
        report.num_counted += data.num_examples(batch)
        if isinstance(batch, PromptBatch):
            continue
        if len(mixed) < size or start + size <= len(mixed):
            report.steps.append((batch.notes["tokens"], len(batch.micro_batches)))
        if isinstance(batch, PreferenceBatch):
            uncut = [outcome._replace(tokens=outcome.whole) for outcome in mixed[start : start + size]]
            for part in task.pack(uncut, {}, Cursor()).micro_batches:
                _compare(report, part)


def _compare(report: SourceReport, part: PreferencePairs) -> None:
    """Count the pairs of which the better response is the longer one."""
    lengths = [part.forest.lengths[leaf] for leaf in part.forest.leaves]
    pairs = list(zip(part.chosen.tolist(), part.rejected.tolist(), strict=True))
    report.num_pairs += len(pairs)
    report.num_chosen_longer += sum(lengths[better] > lengths[worse] for better, worse in pairs)
