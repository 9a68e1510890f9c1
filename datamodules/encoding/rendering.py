"""Conversations to text, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from jinja2 import TemplateError

from datamodules.encoding.tokenizers import CLOSE, OPEN, TextTokenizer
from datamodules.forms.messages import IMAGE_MARK
from datamodules.pictures import PictureProcessor
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


PICTURE = f"{OPEN}i{CLOSE}"
"""What stands for a picture in the texts of messages, until they are rendered."""


class ChatRenderer:
    """Renders messages by the chat template, with the special tokens that they spell out hidden.

    A picture is given to the template as a block ``{"type": "image"}`` where it knows such blocks; else the mark of the
    processor is written in its place.

    Args:
        tokenizer: knows the template and the special tokens.
        processor: knows the mark of a picture; None = the model reads text alone.
    """

    def __init__(self, tokenizer: TextTokenizer, processor: PictureProcessor | None = None) -> None:
        self.tokenizer = tokenizer
        self.processor = processor

    def plain(self, text: str, shows_pictures: bool = False) -> str:
        """Plain text ready to be tokenised.

        Args:
            text: with one ``<image>`` for each picture, if it shows any.
            shows_pictures: whether it does.
        """
        pieces = map(self.tokenizer.hide_marks, text.split(IMAGE_MARK) if shows_pictures else [text])
        return (self.processor.spelled if self.processor else IMAGE_MARK).join(pieces)

    def clean(self, messages: Sequence[Message], shows_pictures: bool = False) -> list[Message]:
        """Messages ready for the template: special tokens hidden, keys that a column store filled with null left out.

        Weights are left out too: they are meant for us, not for the template.

        Args:
            messages: of which contents hold one ``<image>`` for each picture, if they show any.
            shows_pictures: whether they do.
        """
        kept = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        if not shows_pictures:
            return [_map_text(self.tokenizer.hide, message) for message in kept]
        contents = [PICTURE.join(map(self.tokenizer.hide, message["content"].split(IMAGE_MARK))) for message in kept]
        cleaned = [_map_text(self.tokenizer.hide, {**message, "content": ""}) for message in kept]
        return [{**message, "content": content} for message, content in zip(cleaned, contents, strict=True)]

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
        given = messages if self.processor is None else list(map(self._shown, messages))
        try:
            text = str(tokenizer.apply_chat_template(given, tools=tools, tokenize=False, **variables))
        except _REFUSALS as error:
            raise BadRowError("chat_template", f"the chat template refuses this conversation: {error}") from None
        if self.processor is not None:
            self._check_pictures(self.processor.mark, messages, text)
        return text

    def render_prompt(self, record: Record, messages: list[Message]) -> str:
        """Render cleaned messages so that an answer can follow; a last assistant turn is a turn begun."""
        if messages[-1]["role"] == "assistant":
            return self.render(record, messages, continue_final_message=True)
        return self.render(record, messages, add_generation_prompt=True)

    @cached_property
    def _knows_pictures(self) -> bool:
        """Whether the template writes the mark for a block of a picture."""
        return self.processor is not None and self._tried([{"type": "image"}]).count(self.processor.mark) == 1

    @cached_property
    def _knows_text(self) -> bool:
        """Whether the template writes a content that is text; some look for blocks alone, and write nothing of it."""
        return "a word" in self._tried("a word")

    def _tried(self, content: Any) -> str:
        """What the template writes of one message; nothing where it refuses."""
        try:
            asked = [{"role": "user", "content": content}]
            return str(self.tokenizer.tokenizer.apply_chat_template(asked, tokenize=False))
        except _REFUSALS:
            return ""

    def _shown(self, message: Message) -> Message:
        """A message as the template takes it."""
        content = message.get("content")
        if self.processor is None or not isinstance(content, str):
            return message
        if self._knows_pictures and (PICTURE in content or not self._knows_text):
            return {**message, "content": _blocks(content)}
        return {**message, "content": content.replace(PICTURE, self.processor.spelled)}

    @staticmethod
    def _check_pictures(mark: str, messages: Sequence[Message], text: str) -> None:
        num_pictures = sum(str(message.get("content")).count(PICTURE) for message in messages)
        if (num_marks := text.count(mark)) != num_pictures:
            message = f"the chat template writes {num_marks} marks {mark!r} for {num_pictures} pictures"
            raise BadRowError("chat_template", f"{message}; set data.chat_template to one that writes each once")


def _blocks(content: str) -> list[dict[str, str]]:
    """The blocks of a content, pictures between texts."""
    blocks: list[dict[str, str]] = []
    for number, piece in enumerate(content.split(PICTURE)):
        blocks += [{"type": "image"}] * (number > 0)
        blocks += [{"type": "text", "text": piece}] * bool(piece)
    return blocks


def _map_text(change: Callable[[str], str], value: Any) -> Any:
    """Apply ``change`` to every text inside messages; drop keys that a column store filled with null."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(change, item) for item in value]
    if isinstance(value, Mapping):
        return {key: _map_text(change, item) for key, item in value.items() if item is not None or key == "content"}
    return value
