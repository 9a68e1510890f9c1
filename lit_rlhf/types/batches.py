"""The batches that algorithms read, each in micro-batches that are forests.

Shape letters: T tokens in a row, L sequences (leaves), N scored tokens, B preference pairs, K objectives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from lit_rlhf.types.forest import Forest
from lit_rlhf.types.pictures import Picture


class Cursor(NamedTuple):
    """Where a stream of rows goes on after a batch. Plain values, so that a checkpoint holds it as it is.

    Rows come in *windows* that are shuffled as a whole; a place in the data is the window that the next row lies in,
    the rows of it that are consumed, and where the readers stood when it was begun.

    Args:
        epoch: passes over the data that are complete.
        batch: batches of this epoch that are consumed.
        window: number of the window that the next row lies in.
        taken: rows of that window that are consumed.
        places: where each reader stood when the window was begun; empty at the beginning of an epoch.
    """

    epoch: int = 0
    batch: int = 0
    window: int = 0
    taken: int = 0
    places: tuple[Any, ...] = ()


class PreferencePairs(NamedTuple):
    """One micro-batch of preference pairs: what one forward pass sees.

    Pairs of one row share their prompt, and where a row ranks more than two responses they share responses too.

    Args:
        forest: the packed prompts and responses.
        chosen: (B,) int64, sequence number of the preferred response of each pair.
        rejected: (B,) int64, sequence number of the other one.
        margins: (B,) float32, by how much the chosen response is better, in the unit of the data; 0 where unknown.
        rows: B addresses, one per pair, such as ``train.jsonl:17``: used in messages and as the key of caches.
        sources: B names of the data sources.
    """

    forest: Forest
    chosen: Tensor
    rejected: Tensor
    margins: Tensor
    rows: tuple[str, ...]
    sources: tuple[str, ...]


class PreferenceBatch(NamedTuple):
    """What one optimizer step sees: its pairs, cut into micro-batches that fit a token budget.

    The cut changes memory and speed, never the loss.

    Args:
        micro_batches: the pairs of this rank. May be empty if every row was dropped.
        notes: what happened to rows on the way, counted: ``{"dropped/empty_response": 1, "truncated/prompt": 3}``; and
            ``tokens`` in the micro-batches beside the ``room`` for tokens that their budget gives.
        cursor: where the stream goes on once this batch is consumed.
    """

    micro_batches: tuple[PreferencePairs, ...]
    notes: dict[str, int]
    cursor: Cursor = Cursor()

    @property
    def num_pairs(self) -> int:
        """Pairs over all micro-batches."""
        return sum(len(pairs.rows) for pairs in self.micro_batches)


class UnpairedResponses(NamedTuple):
    """One micro-batch of responses that were judged alone, with a thumb up or down.

    Args:
        forest: the packed prompts and responses; responses of one row share their prompt.
        labels: (L,) bool, one per sequence; True = desirable.
        rows: L addresses, one per sequence.
        sources: L names of the data sources.
    """

    forest: Forest
    labels: Tensor
    rows: tuple[str, ...]
    sources: tuple[str, ...]


class UnpairedBatch(NamedTuple):
    """What one optimizer step sees of judged responses, cut into micro-batches that fit a token budget.

    Args:
        micro_batches: the responses of this rank. May be empty if every row was dropped.
        notes: what happened to rows on the way, counted.
        cursor: where the stream goes on once this batch is consumed.
    """

    micro_batches: tuple[UnpairedResponses, ...]
    notes: dict[str, int]
    cursor: Cursor = Cursor()


class GradedResponses(NamedTuple):
    """One micro-batch of responses, each with what was said of it alone or among others.

    Args:
        forest: the packed prompts and responses; responses of one row share their prompt.
        groups: (L,) int64, number of the row of each sequence within the micro-batch, from 0, ascending.
        ranks: (L,) int64, place of each response among those of its row, 0 the best; equal ranks are a tie.
        grades: (L, K) float32, how good each response is by each of K objectives, higher better; NaN where unknown.
        rows: L addresses, one per sequence.
        sources: L names of the data sources.
    """

    forest: Forest
    groups: Tensor
    ranks: Tensor
    grades: Tensor
    rows: tuple[str, ...]
    sources: tuple[str, ...]


class GradedBatch(NamedTuple):
    """What one optimizer step sees of graded responses, cut into micro-batches that fit a token budget.

    Args:
        micro_batches: the responses of this rank. May be empty if every row was dropped.
        notes: what happened to rows on the way, counted.
        cursor: where the stream goes on once this batch is consumed.
    """

    micro_batches: tuple[GradedResponses, ...]
    notes: dict[str, int]
    cursor: Cursor = Cursor()


class JudgedSteps(NamedTuple):
    """One micro-batch of responses whose steps were judged one by one.

    Args:
        forest: the packed prompts and responses; its scored tokens are the last tokens of the judged steps.
        labels: (N,) float32, one per judged step, from 0 (wrong) to 1 (right).
        rows: L addresses, one per sequence.
        sources: L names of the data sources.
    """

    forest: Forest
    labels: Tensor
    rows: tuple[str, ...]
    sources: tuple[str, ...]


class JudgedStepsBatch(NamedTuple):
    """What one optimizer step sees of responses with judged steps, cut into micro-batches that fit a token budget.

    Args:
        micro_batches: the responses of this rank. May be empty if every row was dropped.
        notes: what happened to rows on the way, counted.
        cursor: where the stream goes on once this batch is consumed.
    """

    micro_batches: tuple[JudgedSteps, ...]
    notes: dict[str, int]
    cursor: Cursor = Cursor()


class Instructions(NamedTuple):
    """One micro-batch of texts to imitate.

    Args:
        forest: the packed texts, each a root alone; its targets are the trained tokens.
        rows: L addresses, one per sequence.
        sources: L names of the data sources.
    """

    forest: Forest
    rows: tuple[str, ...]
    sources: tuple[str, ...]


class InstructionBatch(NamedTuple):
    """What one optimizer step sees of texts to imitate, cut into micro-batches that fit a token budget.

    Args:
        micro_batches: the texts of this rank. May be empty if every row was dropped.
        notes: what happened to rows on the way, counted.
        cursor: where the stream goes on once this batch is consumed.
    """

    micro_batches: tuple[Instructions, ...]
    notes: dict[str, int]
    cursor: Cursor = Cursor()


class Prompt(NamedTuple):
    """One prompt to answer.

    Args:
        tokens: token ids, at least one, ready for the first token of a response to follow.
        text: the prompt as it was tokenised, special tokens of a chat template included.
        messages: the conversation, where the row held one.
        columns: all other columns of the row, for the reward function.
        row: address.
        source: name of the data source.
        pictures: those that the image tokens stand for, in the order of their runs.
    """

    tokens: tuple[int, ...]
    text: str
    messages: tuple[dict[str, Any], ...]
    columns: dict[str, Any]
    row: str
    source: str
    pictures: tuple[Picture, ...] = ()


class PromptBatch(NamedTuple):
    """The prompts of one step.

    Args:
        prompts: those of this rank. May be empty if every row was dropped.
        notes: what happened to rows on the way, counted.
        cursor: where the stream goes on once this batch is consumed.
    """

    prompts: tuple[Prompt, ...]
    notes: dict[str, int]
    cursor: Cursor = Cursor()


class PromptAndTextBatch(NamedTuple):
    """The prompts of one step, and texts to imitate beside them (the pretraining mix of InstructGPT).

    Args:
        prompts: to answer.
        texts: to imitate.
    """

    prompts: PromptBatch
    texts: InstructionBatch
