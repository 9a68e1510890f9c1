"""What is watched of a reward model: the right sequences, lengths and sources reach the metrics, whatever the kind."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.metrics.data import DATA_METRICS
from lit_rlhf.metrics.reward import Evaluation, compared, response_lengths, score_rows, watched
from lit_rlhf.types import Forest, GradedResponses, JudgedSteps, PreferencePairs, Segment

PROMPT = Segment([1, 2, 3], [False] * 3)


def response(length, scored=()):
    return Segment([9] * length, [at in scored for at in range(length)], 0)


FOREST = Forest.pack([[PROMPT, response(2), response(5)], [PROMPT, response(4), response(1), response(3)]])
PAIRS = PreferencePairs(
    FOREST,
    torch.tensor([1, 2, 4]),
    torch.tensor([0, 3, 3]),
    torch.zeros(3),
    ("x:1", "x:2", "y:1"),
    ("x", "x", "y"),
)
GRADED = GradedResponses(
    FOREST,
    torch.tensor([0, 0, 1, 1, 1]),
    torch.tensor([1, 0, 0, 1, 1]),
    torch.tensor([[1.0], [3.0], [math.nan], [2.0], [2.0]]),
    ("x:1", "x:1", "y:1", "y:1", "y:1"),
    ("x", "x", "y", "y", "y"),
)
STEPS = JudgedSteps(
    Forest.pack([[PROMPT, response(4, (1, 3))], [PROMPT, response(2, (1,))]]),
    torch.tensor([1.0, 0.0, 1.0]),
    ("x:1", "y:1"),
    ("x", "y"),
)
SCORES = torch.tensor([0.0, 1.0, 4.0, 2.0, -2.0])


def evaluated(*micro_batches, scores=SCORES):
    evaluation = Evaluation(["loss/part"])
    for micro_batch in micro_batches:
        evaluation.add(micro_batch, scores, watched(micro_batch, scores, scores[:, None]))
    return evaluation


def found(evaluation):
    return {name: float(value) for name, value in evaluation.compute().items()}


def test_lengths_are_those_of_responses():
    assert response_lengths(FOREST).tolist() == [2, 5, 4, 1, 3]


def test_pairs_of_a_ranking_leave_ties_out():
    pairs = compared(GRADED)
    assert list(zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.sources, strict=True)) == [
        (1, 0, "x"),
        (2, 3, "y"),
        (2, 4, "y"),
    ]


def test_pairs_by_hand():
    """Margins 1, 2 and -4; lengths 5 - 2, 4 - 1 and 3 - 1; five responses, each once."""
    evaluation = evaluated(PAIRS)
    assert found(evaluation) == pytest.approx(
        found(evaluation)
        | {
            "scores/accuracy": 2 / 3,
            "scores/accuracy/x": 1.0,
            "scores/accuracy/y": 0.0,
            "scores/margin": -1 / 3,
            "scores/accuracy_longer": 2 / 3,
            "length/chosen": 4.0,
            "length/rejected": 4 / 3,
            "scores/num_responses": 5.0,
            "scores/mean": 1.0,
            "scores/std": math.sqrt(20 / 4),
            "scores/chosen_std": torch.tensor([1.0, 4.0, -2.0]).std().item(),
            "scores/length_correlation": torch.corrcoef(torch.stack([SCORES, torch.tensor([2.0, 5, 4, 1, 3])]))[
                0, 1
            ].item(),
        }
    )
    assert sum(row.num_pairs for row in evaluation.bins()) == 3
    assert {name: int(count) for name, count in evaluation.num_pairs().items()} == {"x": 2, "y": 1}


def test_graded_responses_have_errors_too():
    sums = watched(GRADED, SCORES, SCORES[:, None])
    assert "scores/squared_error" not in watched(GRADED, SCORES)
    error, known = sums["scores/squared_error"]
    assert (float(error), int(known)) == (1.0 + 4.0 + 0.0 + 16.0, 4)
    assert found(evaluated(GRADED))["scores/margin"] == pytest.approx((1.0 + 2.0 + 6.0) / 3)


def test_steps_by_hand():
    evaluation = evaluated(STEPS, scores=torch.tensor([1.0, 2.0, 3.0]))
    expected = {"steps/accuracy": 2 / 3, "steps/accuracy/x": 0.5, "steps/accuracy/y": 1.0, "steps/wrong": 2.0}
    assert found(evaluation) == pytest.approx({**expected, "steps/right": 2.0, "scores/num_responses": 0.0})


def test_begins_anew():
    evaluation = evaluated(PAIRS)
    evaluation.count({"dropped/empty_response": 1}, 3)
    assert found(evaluation)[DATA_METRICS[0]] == pytest.approx(1 / 4)
    evaluation.reset()
    assert found(evaluation) == {"scores/num_responses": 0.0}
    assert evaluation.bins() == []


def test_rows_for_a_file():
    assert score_rows(PAIRS, SCORES)[2] == {
        "row": "y:1",
        "source": "y",
        "chosen_score": -2.0,
        "rejected_score": 2.0,
        "margin": -4.0,
        "chosen_length": 3,
        "rejected_length": 1,
    }
    assert score_rows(GRADED, SCORES)[3] == {"row": "y:1", "source": "y", "score": 2.0, "length": 1}
    assert score_rows(STEPS, torch.tensor([1.0, 2.0, 3.0])) == [
        {"row": "x:1", "source": "x", "step_scores": [1.0, 2.0]},
        {"row": "y:1", "source": "y", "step_scores": [3.0]},
    ]
