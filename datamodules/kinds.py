"""What the rows of a :class:`~datamodules.preference.PreferenceDataModule` are for: one task for each kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datamodules.encoding.grades import grades_of
from datamodules.encoding.preferences import Margins, Pairing, preferences_of
from datamodules.encoding.responses import ResponseEncoder, ResponseTexts, ResponseTokens
from datamodules.forms.values import wrong_type
from datamodules.making import Outcome
from datamodules.packing import TokenResponse, TokenTree, pack_graded, pack_steps, pack_trees, pack_unpaired
from datamodules.records import BadRowError, Record, Response
from datamodules.sources import Row
from lit_rlhf.types import Cursor, GradedBatch, JudgedStepsBatch, PreferenceBatch, UnpairedBatch

Said = dict[str, Any]


class ResponseTask:
    """Records to responses of limited length, in batches of micro-batches.

    Args:
        encoder: turns records into tokens.
        token_budget: tokens per micro-batch.
        group_by: column whose value names the source of a row in metrics; None = the source itself.
    """

    def __init__(self, encoder: ResponseEncoder, token_budget: int, group_by: str | None = None) -> None:
        self.encoder = encoder
        self.token_budget = token_budget
        self.group_by = group_by
        self._has_warned = False

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write the texts of a record."""
        self._group(record)  # refused here, where a row can be lost
        return self.encoder.render(record)

    def encode(self, rendered: Sequence[ResponseTexts | ResponseTokens]) -> list[ResponseTokens]:
        """Tokenise, all at once. Nothing is cut."""
        return self.encoder.encode(rendered)

    def fit(self, tokens: ResponseTokens) -> ResponseTokens:
        """Cut to length."""
        return self.encoder.fit(tokens)

    def lengths(self, tokens: ResponseTokens) -> dict[str, int]:
        """Tokens of the prompt, of the longest response, and of both."""
        longest = max(len(response.tokens) for response in tokens.responses)
        return {"prompt": len(tokens.prompt), "response": longest, "whole": len(tokens.prompt) + longest}

    def trees(self, examples: Sequence[Outcome], said: Callable[[Record, ResponseTokens], Said]) -> list[TokenTree]:
        """Make the trees of a step.

        Args:
            examples: that are left.
            said: what is said of the responses of a record that are kept, as fields of a ``TokenTree``.
        """
        trees = []
        for row, record, _, tokens, _ in examples:
            assert record is not None
            source = self._source(record, row)
            pictures = tuple(seen.picture for seen in tokens.pictures)
            tree = TokenTree(tokens.prompt, tokens.responses, row=row.address, source=source, pictures=pictures)
            trees.append(tree._replace(**said(record, tokens)))
        return trees

    def _group(self, record: Record) -> str | None:
        """The name that the row itself gives its metrics; None if it gives none."""
        value = record.columns.get(self.group_by) if self.group_by else None
        if value is not None and not isinstance(value, str | int | float):
            raise wrong_type(repr(self.group_by), value, "text or a number, for data.group_by names groups by it")
        return None if value is None else str(value)

    def _source(self, record: Record, row: Row) -> str:
        """The name that metrics of a record are kept under."""
        group = self._group(record)
        if group is None and self.group_by is not None and not self._has_warned:
            warnings.warn(f"{row.address} has no column {self.group_by!r}, so its source names it", stacklevel=2)
            self._has_warned = True
        return row.source if group is None else group


class PairTask(ResponseTask):
    """Records to pairs of a better and a worse response.

    Args:
        encoder: turns records into tokens.
        token_budget: tokens per micro-batch.
        group_by: column whose value names the source of a row in metrics; None = the source itself.
        pairing: which pairs a row of more than two ranked responses gives.
        margins: where margins come from.
    """

    def __init__(
        self,
        encoder: ResponseEncoder,
        token_budget: int,
        group_by: str | None = None,
        pairing: Pairing = "all",
        margins: Margins = "column",
    ) -> None:
        super().__init__(encoder, token_budget, group_by)
        self.pairing: Pairing = pairing
        self.margins: Margins = margins

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write the texts of a record, if it prefers one response to another."""
        if preferences_of(record, self.pairing):
            return super().render(record)
        _refuse_steps(record)
        raise BadRowError("no_pair", _why_no_pair(record))

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> PreferenceBatch:
        """Make the batch of a step."""

        def said(record: Record, tokens: ResponseTokens) -> Said:
            return {"preferences": preferences_of(record, self.pairing, tokens.kept, self.margins)}

        return pack_trees(self.trees(examples, said), self.token_budget, notes, cursor)


class ThumbTask(ResponseTask):
    """Records to responses with a thumb up or down each; of a ranking the best is up, and the worst down."""

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write the texts of a record, if its responses were judged."""
        _refuse_steps(record)
        return super().render(record._replace(responses=_judged(record)))

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> UnpairedBatch:
        """Make the batch of a step."""

        def said(record: Record, tokens: ResponseTokens) -> Said:
            return {"labels": [bool(response.label) for response in _judged(record)]}

        return pack_unpaired(self.trees(examples, said), self.token_budget, notes, cursor)


class GradedTask(ResponseTask):
    """Records to responses with their ranks and grades, all of them, whatever is known; also to such to be scored.

    Args:
        encoder: turns records into tokens.
        token_budget: tokens per micro-batch.
        group_by: column whose value names the source of a row in metrics; None = the source itself.
        objectives: names of what responses are graded by; none where they are only to be scored.
    """

    def __init__(
        self,
        encoder: ResponseEncoder,
        token_budget: int,
        group_by: str | None = None,
        objectives: Sequence[str] = ("score",),
    ) -> None:
        super().__init__(encoder, token_budget, group_by)
        self.objectives = tuple(objectives)

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write the texts of a record. It forgets the ranks, so that of responses that are alike none is left out."""
        _refuse_steps(record)
        grades_of(record, self.objectives)  # refused here, where a row can be lost
        return super().render(record)._replace(ranks=None)

    def fit(self, tokens: ResponseTokens) -> ResponseTokens:
        """Cut to length; what has no prompt is scored as well, after its own first token."""
        return super().fit(tokens if tokens.prompt else _rooted(tokens))

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> GradedBatch:
        """Make the batch of a step."""

        def said(record: Record, tokens: ResponseTokens) -> Said:
            return {
                "ranks": [response.rank for response in record.responses],
                "grades": grades_of(record, self.objectives),
            }

        return pack_graded(self.trees(examples, said), self.token_budget, notes, cursor)


class StepTask(ResponseTask):
    """Records to responses whose judged steps are marked; made with a ``StepEncoder``."""

    def pack(self, examples: Sequence[Outcome], notes: Mapping[str, int], cursor: Cursor) -> JudgedStepsBatch:
        """Make the batch of a step."""

        def said(record: Record, tokens: ResponseTokens) -> Said:
            labels = [step.label for step in record.responses[0].steps if step.label is not None]
            return {"step_labels": labels[: sum(tokens.responses[0].scored)]}  # what is cut is cut at the end

        return pack_steps(self.trees(examples, said), self.token_budget, notes, cursor)


def _refuse_steps(record: Record) -> None:
    if any(response.steps for response in record.responses):
        message = f"read as {record.form}: the steps of its response are judged; data.kind=steps takes such rows"
        raise BadRowError("judged_steps", message)


def _why_no_pair(record: Record) -> str:
    """Why no response of a record is better than another, and what takes such rows."""
    if len(record.responses) > 1:
        ties = "data.kind=graded takes such rows, and a loss of ties learns from them"
        return f"all responses are of one rank, so none is better than another; {ties}"
    if record.responses and record.responses[0].label is not None:
        return "one response with a thumb is no pair; set data.kind=unpaired, or give 'chosen' and 'rejected'"
    found, reader = "a prompt without responses", "PromptDataModule"
    if record.responses:
        found, reader = "one response, and nothing to compare it with", "SFTDataModule"
    return f"read as {record.form}: {found}; a preference has 'chosen' and 'rejected' ({reader} takes such rows)"


def _judged(record: Record) -> tuple[Response, ...]:
    """The responses that have a label, or the two that a ranking tells apart."""
    judged = tuple(response for response in record.responses if response.label is not None)
    if judged:
        return judged
    if len({response.rank for response in record.responses}) < 2:
        message = f"read as {record.form}: nobody judged its response; give 'label', or 'chosen' and 'rejected'"
        raise BadRowError("no_label", message)
    best_first = sorted(record.responses, key=lambda response: response.rank)
    best, worst = best_first[0], best_first[-1]
    if best.text == worst.text:
        raise BadRowError("identical_responses", "the best and the worst response are identical: neither is up or down")
    return best._replace(label=True), worst._replace(label=False)


def _rooted(tokens: ResponseTokens) -> ResponseTokens:
    """Responses without a prompt, after the token that all begin with, where more than that follows."""
    firsts = {tuple(response.tokens[:1]) for response in tokens.responses}
    if len(firsts) > 1 or any(len(response.tokens) < 2 for response in tokens.responses):
        return tokens
    rest = tuple(TokenResponse(ids[1:], scored[1:]) for ids, scored in tokens.responses)
    return tokens._replace(prompt=list(*firsts), responses=rest)
