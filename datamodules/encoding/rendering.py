"""Conversations to text, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jinja2 import TemplateError

from datamodules.encoding.tokenizers import TextTokenizer
from datamodules.records import BadRowError, Message, Record

Kind = Literal["text", "conversation", "tokens"]

# What a template may raise: its own exceptions, and those of the Python that it calls with values of the wrong type.
_REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def kind_of(record: Record) -> Kind:
    """Say whether a record holds text, messages or token ids.

    Raises:
        BadRowError: if it mixes them.
    """
    parts = (record.prompt, *(response.text for response in record.responses))
    kinds = sorted({kind for kind in map(_kind, parts) if kind})
    if len(kinds) > 1:
        raise BadRowError("wrong_type", f"prompt and responses mix {' and '.join(kinds)}; all must be of one kind")
    return kinds[0] if kinds else "text"


def _kind(part: Any) -> Kind | None:
    if not part:  # an empty prompt is of any kind
        return None
    if isinstance(part, str):
        return "text"
    return "tokens" if isinstance(part[0], int) else "conversation"


class ChatRenderer:
    """Renders messages by the chat template, with the special tokens that they spell out hidden.

    Args:
        tokenizer: knows the template and the special tokens.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def clean(self, messages: Sequence[Message]) -> list[Message]:
        """Messages ready for the template: special tokens hidden, keys that a column store filled with null left out.

        Weights are left out too: they are meant for us, not for the template.
        """
        kept = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        return [_map_text(self.tokenizer.hide, message) for message in kept]

    def render(self, record: Record, messages: list[Message], **options: Any) -> str:
        """Render cleaned messages.

        Args:
            record: gives tools and further variables of the template.
            messages: at least one, from :meth:`clean`.
            options: such as ``add_generation_prompt`` and ``continue_final_message``.

        Raises:
            BadRowError: if the template refuses the conversation.
            ValueError: if the tokenizer has no chat template.
        """
        tokenizer = self.tokenizer.tokenizer
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the row is a conversation, but tokenizer {tokenizer.name_or_path!r} has no chat template; set "
                "data.chat_template to a Jinja template or the path of one, or use an instruction-tuned tokenizer"
            )
        tools = _map_text(self.tokenizer.hide, record.tools)
        variables = {**_map_text(self.tokenizer.hide, record.template_kwargs), **options}
        try:
            return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **variables))
        except _REFUSALS as error:
            raise BadRowError("chat_template", f"the chat template refuses this conversation: {error}") from None

    def render_prompt(self, record: Record, messages: list[Message]) -> str:
        """Render cleaned messages so that an answer can follow; a last assistant turn is a turn begun."""
        if messages[-1]["role"] == "assistant":
            return self.render(record, messages, continue_final_message=True)
        return self.render(record, messages, add_generation_prompt=True)


def _map_text(change: Callable[[str], str], value: Any) -> Any:
    """Apply ``change`` to every text inside messages; drop keys that a column store filled with null."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(change, item) for item in value]
    if isinstance(value, Mapping):
        return {key: _map_text(change, item) for key, item in value.items() if item is not None or key == "content"}
    return value
