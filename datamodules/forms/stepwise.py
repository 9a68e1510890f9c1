"""The form of rows whose answer was judged step by step: what a process reward model learns from."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.forms.fields import Fields
from datamodules.forms.prompts import Draft
from datamodules.forms.splitting import part
from datamodules.forms.values import is_verdict, read_list, read_number, read_text, read_verdict, wrong_type
from datamodules.records import BadRowError, Response, Step, Text


def has_steps(fields: Fields) -> bool:
    """Whether ``completions`` are the steps of one answer, not answers with something said of each."""
    listed = fields["completions"]
    return isinstance(listed, list) and not any(isinstance(item, Mapping) for item in listed)


def read_steps(fields: Fields, prompt: Text | None) -> list[Draft]:
    """``completions``, the steps in words, and ``labels``, one for each; null where nobody judged the step."""
    texts = [
        read_text(f"completions[{number}]", step)
        for number, step in enumerate(read_list("'completions'", fields["completions"], "a list of steps in words"))
    ]
    given = read_list("'labels'", fields["labels"], "a list of one label for each step")
    if len(texts) != len(given):
        message = f"'completions' has {len(texts)} steps but 'labels' has {len(given)} labels; give one for each step, "
        raise BadRowError("wrong_type", f"{message}null where nobody judged it")
    labels = [_read_label(f"labels[{number}]", label) for number, label in enumerate(given)]
    for number, (step, label) in enumerate(zip(texts, labels, strict=True)):
        if label is not None and not step.strip():
            raise BadRowError("empty_step", f"completions[{number}] is empty, but labels[{number}] judges it")
    prompt, (text,) = part(prompt, ("'completions'",), ["\n".join(texts)])
    return [Draft(prompt, [Response(text, steps=tuple(map(Step, texts, labels)))])]


def _read_label(where: str, value: object) -> float | None:
    if value is None:
        return None
    label = float(read_verdict(where, value)) if is_verdict(value) else read_number(where, value)
    if not 0 <= label <= 1:
        raise wrong_type(where, value, "from 0 (wrong) to 1 (right), true or false, or null")
    return label
