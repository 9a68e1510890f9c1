"""Forms of rows that hold two answers and say in another column which of them is better."""

from __future__ import annotations

from datamodules.forms.fields import Fields
from datamodules.forms.pairs import pair
from datamodules.forms.prompts import Draft
from datamodules.forms.values import read_number, read_verdict, wrong_type
from datamodules.records import Text

_WINNERS = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0, "both_bad": 0}


def read_shp(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``human_ref_A`` and ``human_ref_B``; ``labels`` is 1 if A is better."""
    scores = fields.number("score_A"), fields.number("score_B")
    is_first_better = read_verdict("'labels'", fields["labels"])
    return [_compared(fields, prompt, ("human_ref_A", "human_ref_B"), 1 if is_first_better else -1, scores)]


def read_numbered(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``response_0`` and ``response_1``; ``better_response_id`` is the number of the better one."""
    is_second_better = read_verdict("'better_response_id'", fields["better_response_id"])
    return [_compared(fields, prompt, ("response_0", "response_1"), -1 if is_second_better else 1)]


def read_preference_scale(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``response1`` and ``response2``; ``overall_preference`` is below 0 if the first is better, 0 if neither is."""
    preference = -read_number("'overall_preference'", fields["overall_preference"])
    return [_compared(fields, prompt, ("response1", "response2"), preference)]


def read_arena(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``conversation_a`` and ``conversation_b``, whole; ``winner`` names one of them or a tie."""
    winner = fields.text("winner")
    if winner not in _WINNERS:
        raise wrong_type("'winner'", winner, f"one of {', '.join(_WINNERS)}")
    return [_compared(fields, prompt, ("conversation_a", "conversation_b"), _WINNERS[winner])]


def _compared(
    fields: Fields,
    prompt: Text | None,
    names: tuple[str, str],
    preference: float,
    scores: tuple[float | None, float | None] = (None, None),
) -> Draft:
    """Make a draft of two columns: the first is better if ``preference`` is above 0, neither if it is 0."""
    ranks = (int(preference < 0), int(preference > 0))
    return pair(prompt, (repr(names[0]), repr(names[1])), list(map(fields.words, names)), scores, ranks)
