"""The data module for preferences: pairs, rankings and thumbs from any source, packed to a token budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.preferences import Pairing, preferences_of
from datamodules.encoding.responses import ResponseEncoder, ResponseTexts, ResponseTokens
from datamodules.encoding.truncation import Truncation
from datamodules.making import OnBadRow, Outcome
from datamodules.options import SourceLike
from datamodules.packing import TokenTree, pack_trees, pack_unpaired
from datamodules.records import BadRowError, Record, Response
from datamodules.streamed import StreamedDataModule, at_least
from lit_rlhf.types import Cursor, PreferenceBatch, UnpairedBatch

Kind = Literal["pairs", "unpaired"]
Trained = Literal["response", "assistant"]


class PreferenceDataModule(StreamedDataModule):
    """Responses of which one is better than another, or is good or bad by itself, as one batch per optimizer step.

    Args:
        train: rows to train on: a file (.jsonl, .json, .csv, any of them with .gz, .parquet, .arrow), a glob, a folder,
            a hub name, or a list of these (with weights, as Source); in Python also a list of rows or a data set.
        validation: rows to validate on, in file order.
        test: rows to test on, in file order.
        predict: rows to predict for, in file order.
        tokenizer: folder, hub name, or a tokenizer.
        chat_template: Jinja template or the path of one, for conversations; the tokenizer's own unless given.
        batch_size: rows per optimizer step, over all ranks.
        token_budget: tokens per micro-batch, a shared prompt counted once. Changes memory and speed, never the loss.
        max_length: most tokens of prompt and response together.
        truncation: what happens to longer rows. prompt_left: cut the beginning of the prompt, but keep half of
            max_length of it, then the end of the responses. response_right: cut the end, and drop the row if the
            prompt fills max_length. drop: drop the row.
        kind: pairs: a better and a worse response, for DPO and reward models. unpaired: each response with a thumb up
            or down; of pairs, the chosen is up and the rejected down.
        pairing: which pairs a row of more than two ranked responses gives. all: every two of different rank.
            best_worst: the first best against the last worst.
        trained: which tokens of a response count. response: all. assistant: in responses of several turns, those of the
            assistant alone.
        on_bad_row: raise: stop at a row that cannot be used, with its address. drop: drop and count it.
        shuffle_buffer: rows held in memory to draw the training order from; 0 for file order.
        seed: seed of the training order.
        num_workers: processes that read and tokenise; 0 does it in the training process. Does not change the order.
    """

    def __init__(
        self,
        train: SourceLike | None = None,
        validation: SourceLike | None = None,
        test: SourceLike | None = None,
        predict: SourceLike | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        batch_size: int = 16,
        token_budget: int = 4096,
        max_length: int = 1024,
        truncation: Truncation = "prompt_left",
        kind: Kind = "pairs",
        pairing: Pairing = "all",
        trained: Trained = "response",
        on_bad_row: OnBadRow = "raise",
        shuffle_buffer: int = 10_000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        splits = {"train": train, "validation": validation, "test": test, "predict": predict}
        super().__init__(splits, tokenizer, chat_template, batch_size, on_bad_row, shuffle_buffer, seed, num_workers)
        at_least(1, token_budget=token_budget)
        if kind not in get_args(Kind):
            raise ValueError(f"data.kind is {kind!r}; it must be {' or '.join(get_args(Kind))}")
        self.token_budget = token_budget
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.kind: Kind = kind
        self.pairing: Pairing = pairing
        self.trained: Trained = trained
        self.examples = "pairs" if kind == "pairs" else "responses"

    def task(self) -> PairTask | ThumbTask:
        """Tell better from worse, or good from bad."""
        settings = self.tokenizer, self.max_length, self.truncation, self.trained, self.token_budget
        return PairTask(*settings, self.pairing) if self.kind == "pairs" else ThumbTask(*settings)

    def num_examples(self, batch: PreferenceBatch | UnpairedBatch) -> int:
        """Count the pairs or judged responses of a batch."""
        return sum(len(part.rows) for part in batch.micro_batches)


class ResponseTask(ResponseEncoder):
    """Records to responses of limited length, in batches of micro-batches.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of prompt and response together.
        truncation: what happens to longer rows.
        trained: which tokens of a response count.
        token_budget: tokens per micro-batch.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: Truncation,
        trained: Trained,
        token_budget: int,
    ) -> None:
        super().__init__(tokenizer, max_length, truncation, trained)
        self.token_budget = token_budget

    def lengths(self, tokens: ResponseTokens) -> dict[str, int]:
        """Tokens of the prompt, of the longest response, and of both."""
        longest = max(len(response.tokens) for response in tokens.responses)
        return {"prompt": len(tokens.prompt), "response": longest, "whole": len(tokens.prompt) + longest}


class PairTask(ResponseTask):
    """Records to pairs of a better and a worse response.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of prompt and response together.
        truncation: what happens to longer rows.
        trained: which tokens of a response count.
        token_budget: tokens per micro-batch.
        pairing: which pairs a row of more than two ranked responses gives.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: Truncation,
        trained: Trained,
        token_budget: int,
        pairing: Pairing,
    ) -> None:
        super().__init__(tokenizer, max_length, truncation, trained, token_budget)
        self.pairing: Pairing = pairing

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write the texts of a record, if it prefers one response to another."""
        if preferences_of(record, self.pairing):
            return super().render(record)
        if len(record.responses) > 1:
            raise BadRowError("no_pair", "all responses are of one rank, so none is better than another")
        if record.responses and record.responses[0].label is not None:
            message = "one response with a thumb is no pair; set data.kind=unpaired, or give 'chosen' and 'rejected'"
            raise BadRowError("no_pair", message)
        found, reader = "a prompt without responses", "PromptDataModule"
        if record.responses:
            found, reader = "one response, and nothing to compare it with", "SFTDataModule"
        message = f"read as {record.form}: {found}; a preference has 'chosen' and 'rejected' ({reader} takes such rows)"
        raise BadRowError("no_pair", message)

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> PreferenceBatch:
        """Make the batch of a step."""
        trees = []
        for row, record, _, tokens, _ in examples:
            assert record is not None
            pairs = preferences_of(record, self.pairing, tokens.kept)
            trees.append(TokenTree(tokens.prompt, tokens.responses, pairs, (), row.address, row.source))
        return pack_trees(trees, self.token_budget, notes, cursor)


class ThumbTask(ResponseTask):
    """Records to responses with a thumb up or down each; of a ranking the best is up, and the worst down."""

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write the texts of a record, if its responses were judged."""
        return super().render(record._replace(responses=_judged(record)))

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> UnpairedBatch:
        """Make the batch of a step."""
        trees = []
        for row, record, _, tokens, _ in examples:
            assert record is not None
            labels = [bool(response.label) for response in _judged(record)]
            trees.append(TokenTree(tokens.prompt, tokens.responses, (), labels, row.address, row.source))
        return pack_unpaired(trees, self.token_budget, notes, cursor)


def _judged(record: Record) -> tuple[Response, ...]:
    """The responses that have a label, or the two that a ranking tells apart."""
    judged = tuple(response for response in record.responses if response.label is not None)
    if judged:
        return judged
    if len({response.rank for response in record.responses}) < 2:
        message = f"read as {record.form}: nobody judged its response; give 'label', or 'chosen' and 'rejected'"
        raise BadRowError("no_label", message)
    best_first = sorted(record.responses, key=lambda response: response.rank)
    return best_first[0]._replace(label=True), best_first[-1]._replace(label=False)
