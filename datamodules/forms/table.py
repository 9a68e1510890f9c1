"""The table of forms, and the way from a row to records.

The first form whose columns are all there, and whose condition holds, reads the row; so forms with more columns stand
above those that share some of them. A new form is one entry here and one function in the file of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from datamodules.forms import comparisons, instructions, pairs, ranked, stepwise, tokenised, unpaired
from datamodules.forms.fields import USUAL, Fields
from datamodules.forms.options import read_margin, read_template_kwargs, read_tools
from datamodules.forms.pictures import with_pictures
from datamodules.forms.prompts import CONVERSATIONS, QUESTIONS, Draft, read_prompt, with_system
from datamodules.forms.refusals import Shape, refusal
from datamodules.records import BadRowError, Layout, Record, Response, Text

Names = tuple[str, ...]


def always(fields: Fields) -> bool:
    """The condition of a form that is known by its columns alone."""
    return True


class Form(NamedTuple):
    """One way to write a row.

    Args:
        name: what it is called in previews and messages.
        asks: names of the column that holds the prompt, of which a row has one; empty if there is no such column.
        has: the other columns, each by its names, of which a row has one.
        read: makes drafts of the row and of its prompt, which is None without a column for it.
        holds: what must be true of the values.
        wants: that condition in words, for the message about a row that fails it.
    """

    name: str
    asks: Names
    has: tuple[Names, ...]
    read: Callable[[Fields, Text | None], list[Draft]]
    holds: Callable[[Fields], bool] = always
    wants: str = ""

    @property
    def needs(self) -> tuple[Names, ...]:
        """Every column that a row of this form has, each by its names."""
        return ((self.asks,) if self.asks else ()) + self.has


_PAIR = (("chosen",), ("rejected",))
_SINGLE = ("prompt", "instruction", *QUESTIONS)
_ANY = ("prompt", "context", *CONVERSATIONS, "instruction", *QUESTIONS)
_LISTED = "answers {completion, rank} or {response, score}, or a list 'scores' beside them"
_SAMPLED = "a list of answers without ranks or scores"
_STEPS = "a list of steps in words, and one label for each"
_WORDED = "an answer in words"
_JUDGED = "a label that is true or false"

FORMS: tuple[Form, ...] = (
    Form("tokenised pair", (), (tokenised.CHOSEN_IDS, tokenised.REJECTED_IDS), tokenised.read_token_pair),
    Form("tokenised sequence", (), (("input_ids",),), tokenised.read_token_sequence),
    Form("TRL preference, explicit", ("prompt",), _PAIR, pairs.read_chosen_rejected),
    Form("ShareGPT ranking", ("conversations",), _PAIR, pairs.read_chosen_rejected),
    Form("OpenAI ranking", ("messages", "conversation"), _PAIR, pairs.read_chosen_rejected),
    Form("Alpaca ranking", ("instruction",), _PAIR, pairs.read_chosen_rejected),
    Form("Axolotl preference", QUESTIONS, _PAIR, pairs.read_chosen_rejected),
    Form("Anthropic HH dialogue", (), _PAIR, pairs.read_chosen_rejected, pairs.are_dialogues),
    Form("TRL preference, implicit", (), _PAIR, pairs.read_chosen_rejected),
    Form("LLaMA-Factory v1 pair", (), (("chosen_messages",), ("rejected_messages",)), pairs.read_typed_pair),
    Form("ms-swift, rejected messages", CONVERSATIONS, (("rejected_messages",),), pairs.read_other_messages),
    Form("ms-swift, rejected response", CONVERSATIONS, (("rejected_response",),), pairs.read_other_response),
    Form("SHP comparison", ("history",), (("human_ref_A",), ("human_ref_B",), ("labels",)), comparisons.read_shp),
    Form(
        "PKU comparison",
        ("prompt",),
        (("response_0",), ("response_1",), ("better_response_id",)),
        comparisons.read_numbered,
    ),
    Form(
        "HelpSteer comparison",
        ("context", "prompt"),
        (("response1",), ("response2",), ("overall_preference",)),
        comparisons.read_preference_scale,
    ),
    Form("arena comparison", (), (("conversation_a",), ("conversation_b",), ("winner",)), comparisons.read_arena),
    Form("ranked answers", _ANY, (ranked.LISTS,), ranked.read_ranks, ranked.has_ranks, _LISTED),
    Form("scored answers", _ANY, (ranked.LISTS,), ranked.read_scores, ranked.has_scores, _LISTED),
    Form(
        "answers beside scores",
        _ANY,
        (ranked.LISTS, ranked.SCORES),
        ranked.read_parallel_lists,
        ranked.has_parallel_lists,
        _LISTED,
    ),
    Form(
        "stepwise supervision",
        _ANY,
        (("completions",), ("labels",)),
        stepwise.read_steps,
        stepwise.has_steps,
        _STEPS,
    ),
    Form(
        "graded answers",
        _SINGLE,
        (),
        unpaired.read_graded_answers,
        unpaired.has_graded_answers,
        "columns {is_correct, solution}",
    ),
    Form("judged statement", ("sentence",), (unpaired.THUMBS,), unpaired.read_statement, unpaired.has_thumb, _JUDGED),
    Form(
        "answer with a thumb",
        _SINGLE,
        (instructions.ANSWERS, unpaired.THUMBS),
        unpaired.read_judged_answer,
        unpaired.has_judged_answer,
        f"{_WORDED}, and {_JUDGED}",
    ),
    Form(
        "conversation with a thumb",
        CONVERSATIONS,
        (unpaired.THUMBS,),
        unpaired.read_judged_conversation,
        unpaired.has_thumb,
        _JUDGED,
    ),
    Form(
        "sampled answers", ("context", *_SINGLE), (ranked.SAMPLES,), ranked.read_samples, ranked.has_samples, _SAMPLED
    ),
    Form("ShareGPT conversation", ("conversations",), (), instructions.read_conversation),
    Form("OpenAI conversation", ("messages", "conversation"), (), instructions.read_conversation),
    Form(
        "prompt and completion",
        ("prompt",),
        (instructions.ANSWERS,),
        instructions.read_answer,
        instructions.has_answer,
        _WORDED,
    ),
    Form("Self-Instruct instances", ("instruction",), (("instances",),), instructions.read_instances),
    Form(
        "Alpaca instruction",
        ("instruction",),
        (instructions.ANSWERS,),
        instructions.read_answer,
        instructions.has_answer,
        _WORDED,
    ),
    Form(
        "question and answer",
        QUESTIONS,
        (instructions.ANSWERS,),
        instructions.read_answer,
        instructions.has_answer,
        _WORDED,
    ),
    Form("tokenised prompt", (), (tokenised.PROMPT_IDS,), tokenised.read_token_prompt),
    Form("prompt alone", ("prompt",), (), instructions.read_prompt_alone),
    Form("instruction alone", ("instruction",), (), instructions.read_prompt_alone),
    Form("question alone", QUESTIONS, (), instructions.read_prompt_alone),
    Form("text", (), (("text",),), instructions.read_whole_text),
)

# Columns that say that a row compares answers: no form may overlook them, as a slip in the name of the other column
# would otherwise make half of a pair an instruction or a prompt.
_TELLING = {
    *("chosen", "rejected", "chosen_messages", "rejected_messages", "rejected_response", "completions"),
    *(*tokenised.CHOSEN_IDS, *tokenised.REJECTED_IDS),
}


def read_row(row: object, layout: Layout = USUAL) -> list[Record]:
    """Read a row of any form.

    Args:
        row: one decoded row, such as a JSON object.
        layout: how its source departs from the usual names.

    Returns:
        Its records: one, except for a row that holds several examples.

    Raises:
        BadRowError: if the row is of no known form, or a value in it cannot be used.
        ValueError: if the layout has an unknown tag.

    Example:
        >>> (record,) = read_row({"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"})
        >>> record.form, record.prompt, [response.text for response in record.responses]
        ('TRL preference, explicit', '1 + 1 =', [' 2', ' 3'])
    """
    try:
        fields = Fields(row, layout)
        form = find_form(fields)
        asked = fields.ask(*form.asks)
        prompt = None if asked is None else read_prompt(fields, asked)
        return [_record(form, fields, draft) for draft in form.read(fields, prompt)]
    except RecursionError:
        raise BadRowError("too_deep", "values are nested too deeply to be read") from None


def find_form(fields: Fields) -> Form:
    """Find the form of a row.

    Raises:
        BadRowError: naming the keys that were found and the form that is nearest.
    """
    for form in _candidates(frozenset(fields.values)):
        if form.holds(fields):
            return form
    raise refusal(
        fields, tuple(Shape(form.name, form.needs, form.wants) for form in _in_question(frozenset(fields.values)))
    )


@lru_cache(maxsize=1024)
def _candidates(keys: frozenset[str]) -> tuple[Form, ...]:
    """The forms whose columns are all among ``keys``."""
    return tuple(form for form in _in_question(keys) if all(map(keys.intersection, form.needs)))


def _in_question(keys: frozenset[str]) -> list[Form]:
    """All forms; only those that compare answers, if the row does."""
    if not keys & _TELLING:
        return list(FORMS)
    return [form for form in FORMS if any(map(_TELLING.intersection, form.has))]


def _record(form: Form, fields: Fields, draft: Draft) -> Record:
    prompt, images = with_pictures(fields, with_system(fields, draft.prompt), draft.responses)
    margin, tools, kwargs = read_margin(fields), read_tools(fields), read_template_kwargs(fields)
    rest = {name: value for name, value in fields.values.items() if name not in fields.used}
    responses = tuple(_best_first(draft.responses))
    columns = {**rest, **draft.columns}
    return Record(form.name, prompt, responses, margin, tools, kwargs, columns, images, fields.folder)


def _best_first(responses: Sequence[Response]) -> list[Response]:
    """The responses by rank, each knowing where it stood in the row."""
    if len(responses) < 2:
        return list(responses)
    placed = [response._replace(number=number) for number, response in enumerate(responses)]
    return sorted(placed, key=lambda response: response.rank)
