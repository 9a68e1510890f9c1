"""Rows to scores, the same way for files and for requests: read, tokenised and cut as in training, packed, scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch

from datamodules.encoding.responses import ResponseTokens
from datamodules.making import BatchMaker, Outcome, Task
from datamodules.packing import fill_bins
from datamodules.records import BadRowError, Record
from datamodules.sources import Row
from lit_rlhf.models.heads.reward_model import RewardModel
from lit_rlhf.types import Forest, Segment


class NotFiniteError(BadRowError):
    """A row that the model gives no number, which is a fault of the model."""


class Scored(NamedTuple):
    """What became of a row.

    Args:
        row: as it was read.
        record: what it says, its responses in the order of the row; None if it could not be read.
        scores: one per response, in that order; empty if the row is lost.
        objectives: name -> one number per response, which the scores are made of.
        truncated: what was cut to fit the length limit: ``prompt``, ``response``.
        error: why it is lost.
    """

    row: Row
    record: Record | None
    scores: list[float]
    objectives: dict[str, list[float]]
    truncated: tuple[str, ...] = ()
    error: BadRowError | None = None


@dataclass(frozen=True)
class Scorer:
    """Scores rows. What a row gets does not depend on those beside it.

    Args:
        model: frozen, on its device.
        task: what becomes of a row: the task of a data module of ``kind: graded``.
        token_budget: tokens of one forward pass, a shared prompt counted once; a longer row gets one to itself.
    """

    model: RewardModel
    task: Task[Any, ResponseTokens, Any]
    token_budget: int

    def __call__(self, rows: Sequence[Row]) -> list[Scored]:
        """Score every response of every row.

        Returns:
            What became of each row, in order; a row that holds several examples has as many.

        Raises:
            ValueError: for what no other row would mend, such as a missing chat template; with the row's address.
        """
        outcomes = [self._checked(outcome) for outcome in BatchMaker(self.task).outcomes(rows)]
        scored = [Scored(one.row, one.record, [], {}, error=one.error) for one in outcomes]
        sound = [index for index, outcome in enumerate(outcomes) if outcome.error is None]
        for members in fill_bins([_num_tokens(outcomes[index].tokens) for index in sound], self.token_budget):
            chosen = [sound[member] for member in members]
            numbers = iter(self._numbers([outcomes[index].tokens for index in chosen]))
            for index in chosen:
                own = list(islice(numbers, len(outcomes[index].tokens.responses)))
                scored[index] = self._scored(outcomes[index], own)
        return scored

    def normalise(self, scores: Sequence[float]) -> list[float]:
        """Scores in standard deviations from the mean of the model's validation data.

        Raises:
            ValueError: if the model does not know them.
        """
        head = self.model.score
        return head.normalise(torch.tensor(scores, device=head.weight.device)).tolist()

    def _checked(self, outcome: Outcome) -> Outcome:
        """Refuse tokens that the model lacks here, as on a GPU they would end the process."""
        limit = self.model.backbone.num_embeddings
        if outcome.error is not None:
            return outcome
        parts = (outcome.tokens.prompt, *(response.tokens for response in outcome.tokens.responses))
        if (largest := max(map(max, parts))) < limit:
            return outcome
        message = f"token id {largest} lies outside the model's embedding of {limit} rows: the tokenizer is another's"
        return outcome._replace(error=BadRowError("bad_token", message))

    @torch.no_grad()
    def _numbers(self, rows: Sequence[ResponseTokens]) -> list[list[float]]:
        """Score, and score by each objective, of every response of the rows."""
        head = self.model.score
        forest = Forest.pack(map(_tree, rows)).to(head.weight.device)
        by_objective = self.model.objective_scores(forest)
        return torch.cat([head.combine(by_objective)[:, None], by_objective], dim=1).tolist()

    def _scored(self, outcome: Outcome, numbers: Sequence[Sequence[float]]) -> Scored:
        """What became of a row whose responses got ``numbers``."""
        if not all(math.isfinite(number) for own in numbers for number in own):
            error = NotFiniteError("not_finite", f"the model gives it the score {[own[0] for own in numbers]}")
            return Scored(outcome.row, outcome.record, [], {}, error=error)
        assert outcome.record is not None
        responses = [outcome.record.responses[index] for index in outcome.tokens.kept]
        given = sorted(range(len(responses)), key=lambda number: responses[number].number)
        scores, *objectives = ([column[number] for number in given] for column in zip(*numbers, strict=True))
        record = outcome.record._replace(responses=tuple(responses[number] for number in given))
        named = dict(zip(self.model.score.objectives, objectives, strict=True))
        return Scored(outcome.row, record, scores, named, outcome.tokens.truncated)


def _num_tokens(tokens: ResponseTokens) -> int:
    return len(tokens.prompt) + sum(len(response.tokens) for response in tokens.responses)


def _tree(tokens: ResponseTokens) -> list[Segment]:
    """A prompt and its responses; no token is marked, as a score is read at the ends."""
    responses = [Segment(ids, [False] * len(ids), parent=0) for ids, _ in tokens.responses]
    pictures = tuple(seen.picture for seen in tokens.pictures)
    return [Segment(tokens.prompt, [False] * len(tokens.prompt), pictures=pictures), *responses]
