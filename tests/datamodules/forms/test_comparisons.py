"""Two answers, and a column that says which is better."""

from __future__ import annotations

import pytest

from datamodules.forms.table import read_row
from datamodules.records import BadRowError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SHP = {"history": "h", "human_ref_A": "a", "human_ref_B": "b"}
PKU = {"prompt": "p", "response_0": "a", "response_1": "b"}
HELP = {"context": [user("p")], "response1": "a", "response2": "b"}
ARENA = {"conversation_a": [user("p"), assistant("a")], "conversation_b": [user("p"), assistant("b")]}


def answers(row):
    (record,) = read_row(row)
    texts = [one.text if isinstance(one.text, str) else one.text[0]["content"] for one in record.responses]
    return "".join(texts), [one.rank for one in record.responses]


@pytest.mark.parametrize(
    ("row", "order", "ranks"),
    [
        ({**SHP, "labels": 1}, "ab", [0, 1]),
        ({**SHP, "labels": 0}, "ba", [0, 1]),
        ({**PKU, "better_response_id": 0}, "ab", [0, 1]),
        ({**PKU, "better_response_id": 1}, "ba", [0, 1]),
        ({**HELP, "overall_preference": -3}, "ab", [0, 1]),
        ({**HELP, "overall_preference": 1}, "ba", [0, 1]),
        ({**HELP, "overall_preference": 0}, "ab", [0, 0]),
        ({**ARENA, "winner": "model_a"}, "ab", [0, 1]),
        ({**ARENA, "winner": "model_b"}, "ba", [0, 1]),
        ({**ARENA, "winner": "tie (bothbad)"}, "ab", [0, 0]),
    ],
)
def test_either_may_be_better(row, order, ranks):
    assert answers(row) == (order, ranks)


def test_scores_go_with_their_answers():
    (record,) = read_row({**SHP, "labels": 0, "score_A": 1, "score_B": 7})
    assert [one.score for one in record.responses] == [7.0, 1.0]


BAD = [
    ({**SHP, "labels": 2}, "wrong_type", "'labels' is int '2'; it must be true or false"),
    ({**SHP, "human_ref_A": 1, "labels": 1}, "wrong_type", "'human_ref_A' is int '1'"),
    ({**PKU, "better_response_id": 2}, "wrong_type", "'better_response_id' is int '2'"),
    ({**HELP, "overall_preference": "x"}, "wrong_type", "'overall_preference' is str 'x'"),
    ({**ARENA, "winner": "gpt"}, "wrong_type", "'winner' is str 'gpt'; it must be one of model_a, model_b, tie"),
]


def test_the_better_answer_comes_first_and_knows_where_it_stood():
    (record,) = read_row({**PKU, "better_response_id": 1})
    assert [(one.rank, one.number) for one in record.responses] == [(0, 1), (1, 0)]
    (tie,) = read_row({**HELP, "overall_preference": 0})
    assert [(one.rank, one.number) for one in tie.responses] == [(0, 0), (0, 1)]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_comparison(row, reason, message):
    with pytest.raises(BadRowError) as caught:
        read_row(row)
    assert caught.value.reason == reason
    assert message in str(caught.value)
