"""Rows to records: one adapter per row form.

The form of a row is decided by the row alone, from the kinds of its ``prompt``, ``chosen`` and ``rejected``:

==============  ====================  ==============================================================================
prompt          chosen, rejected      form
==============  ====================  ==============================================================================
text            text                  explicit: the responses follow the prompt as they are
absent          text                  dialogue in Anthropic's HH strings if both hold ``Human:`` and ``Assistant:``
                                      turns, else implicit: the prompt is the common beginning of the two strings
messages        messages              explicit conversation
absent          messages              implicit conversation: the prompt is the common beginning of the two lists
text            messages              the prompt is a user turn, or repeats the beginning of two whole conversations
messages        text                  the responses are assistant turns
==============  ====================  ==============================================================================

*Messages* are lists of ``{"role": ..., "content": ...}``. Any row may also carry ``margin`` (a number), ``tools`` (a
list, or that list as JSON) and ``chat_template_kwargs`` (a mapping).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]
Text = str | list[Message] | list[int]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
# Arguments of `apply_chat_template` that decide what a rendering means; a row may not set them.
_RESERVED = {"add_generation_prompt", "chat_template", "continue_final_message", "tokenize", "tools"}


class BadRowError(ValueError):
    """A row that cannot be used.

    Args:
        reason: one word for counting, such as ``empty_response``.
        message: what is wrong and what would be right.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Layout(NamedTuple):
    """How a source departs from the usual names.

    Args:
        columns: the names that forms are read by -> the names of this source: ``{"prompt": "question"}``.
        tags: names inside turns and their values, by the keys of LLaMA-Factory: ``role_tag``, ``content_tag``,
            ``user_tag``, ``assistant_tag``, ``observation_tag``, ``function_tag``, ``system_tag``.
    """

    columns: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}


class Response(NamedTuple):
    """One answer to a prompt.

    Args:
        text: what follows the prompt: text, messages or token ids, of the prompt's kind.
        rank: place among the responses of its row, 0 the best; responses of equal rank are not preferred to each other.
            A thumb up is rank 0, a thumb down rank 1.
        score: how good it is in the unit of the data, higher better; None where only the order is known.
        label: True = thumb up, False = thumb down, None = not judged alone.
    """

    text: Text
    rank: int = 0
    score: float | None = None
    label: bool | None = None


class Record(NamedTuple):
    """What a row says, whatever form it had.

    Args:
        form: name of the form that the row was read by.
        prompt: text, messages, or token ids; may be empty.
        responses: none for a prompt alone, one for an instruction or a thumb, two or more for a preference.
        margin: by how much the first of two responses is better, in the unit of the data; 0 where unknown.
        tools: JSON schemas of functions, for the chat template.
        template_kwargs: further variables for the chat template.
        columns: all columns that the form did not read; they reach the reward function.
        images: references to pictures as the row gives them, in the order of their marks.
    """

    form: str
    prompt: Text
    responses: tuple[Response, ...] = ()
    margin: float = 0.0
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = {}
    columns: Mapping[str, Any] = {}
    images: tuple[Any, ...] = ()


class PreferenceRecord(NamedTuple):
    """A preference, whatever form its row had.

    Args:
        prompt: text, or the messages of a conversation; may be empty.
        chosen: what follows the prompt in the preferred answer: text or messages, of the prompt's kind.
        rejected: what follows the prompt in the other answer.
        margin: by how much chosen is better, in the unit of the data; 0 where unknown.
        tools: JSON schemas of functions, for the chat template.
        template_kwargs: further variables for the chat template.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float = 0.0
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = {}

    @property
    def is_conversation(self) -> bool:
        """Whether the prompt is a list of messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


def read_preference(row: object) -> PreferenceRecord:
    r"""Read a preference from a row of any of the forms above.

    Args:
        row: one decoded row, such as a JSON object.

    Raises:
        BadRowError: if a key is missing, a value is null or of the wrong type, a response is empty, or the two are
            identical.

    Example:
        >>> read_preference({"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"})[:3]
        ('1 + 1 =', ' 2', ' 3')
        >>> dialogue = "\n\nHuman: 1 + 1?\n\nAssistant:"
        >>> read_preference({"chosen": dialogue + " 2", "rejected": dialogue + " 3"})[:3]
        ('\n\nHuman: 1 + 1?\n\nAssistant:', ' 2', ' 3')
    """
    if not isinstance(row, Mapping):
        raise BadRowError("wrong_type", f"a row is a mapping of keys to values, not {_describe(row)}")
    kinds = tuple(_kind(row, key) for key in ("prompt", "chosen", "rejected"))
    if kinds[1] != kinds[2]:
        raise BadRowError(
            "wrong_type", f"'chosen' is {kinds[1]} but 'rejected' is {kinds[2]}; both must be of one kind"
        )
    prompt, chosen, rejected = _ADAPTERS[kinds[0], kinds[1]](row.get("prompt"), row["chosen"], row["rejected"])
    for key, response in (("chosen", chosen), ("rejected", rejected)):
        if _is_empty(response):
            raise BadRowError("empty_response", f"{key!r} has an empty response")
    if chosen == rejected:
        raise BadRowError("identical_responses", "'chosen' and 'rejected' are identical, so nothing is preferred")
    return PreferenceRecord(prompt, chosen, rejected, _margin(row), _tools(row), _template_kwargs(row))


def _explicit(prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    return prompt, chosen, rejected


def _whole_texts(prompt: None, chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    shared = chosen[: common_prefix_length(chosen, rejected)]
    turn = shared.rfind(ASSISTANT)
    if HUMAN in shared and turn >= 0:
        end = turn + len(ASSISTANT)
    else:
        end = max(0, min(len(shared), len(chosen) - 1, len(rejected) - 1))
        end -= shared[:end].endswith(" ")  # a space belongs to the word that follows it
    return chosen[:end], chosen[end:], rejected[end:]


def _whole_conversations(prompt: None, chosen: list[Message], rejected: list[Message]) -> tuple[Text, Text, Text]:
    end = min(common_prefix_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    return chosen[:end], chosen[end:], rejected[end:]


def _text_then_messages(prompt: str, chosen: list[Message], rejected: list[Message]) -> tuple[Text, Text, Text]:
    if chosen[0]["role"] == "assistant":
        return [{"role": "user", "content": prompt}], chosen, rejected
    return _whole_conversations(None, chosen, rejected)


def _messages_then_text(prompt: list[Message], chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return prompt, turns[0], turns[1]


def common_prefix_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the leading items, such as characters, messages or tokens, that two sequences share."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)


_ADAPTERS: dict[tuple[str, str], Callable[[Any, Any, Any], tuple[Text, Text, Text]]] = {
    ("text", "text"): _explicit,
    ("absent", "text"): _whole_texts,
    ("messages", "messages"): _explicit,
    ("absent", "messages"): _whole_conversations,
    ("text", "messages"): _text_then_messages,
    ("messages", "text"): _messages_then_text,
}


def _kind(row: Mapping[str, Any], key: str) -> str:
    """Return ``text``, ``messages`` or, for a prompt only, ``absent``."""
    value = row.get(key)
    if value is None and key == "prompt":
        return "absent"
    if key not in row:
        found = ", ".join(map(repr, row)) or "none"
        raise BadRowError("missing_key", f"row has no {key!r} (keys found: {found}){_nearest(row, key)}")
    if isinstance(value, str):
        _check_encodable(repr(key), value)
        return "text"
    if isinstance(value, list) and (value or key == "prompt"):
        for number, message in enumerate(value):
            _check_message(f"{key}[{number}]", message)
        return "messages"
    raise BadRowError("wrong_type", f"{key!r} is {_describe(value)}; it must be text or a list of messages")


def _nearest(row: Mapping[str, Any], key: str) -> str:
    """Say what a row without ``key`` may have meant."""
    if near := difflib.get_close_matches(key, [name for name in row if isinstance(name, str)], n=1):
        return f"; did you mean {key!r} by {near[0]!r}?"
    if "label" in row or "completion" in row:
        return "; a response with a thumb (prompt, completion, label) is not a pair: give 'chosen' and 'rejected'"
    if "messages" in row or "conversations" in row:
        return "; give the turns before the answers as 'prompt', and the answers as 'chosen' and 'rejected'"
    return "; a preference is 'chosen' and 'rejected', with 'prompt' or beginning alike"


def _check_message(where: str, message: object) -> None:
    if isinstance(message, Mapping) and "from" in message and "value" in message:
        raise BadRowError("wrong_type", f"{where} uses 'from' and 'value'; rename them to 'role' and 'content'")
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRowError("wrong_type", f"{where} is {_describe(message)}; a message has a 'role' and a 'content'")
    content = message.get("content")
    if isinstance(content, str):
        _check_encodable(f"{where}['content']", content)
    elif not isinstance(content, list) and not (content is None and message.get("tool_calls")):
        raise BadRowError("wrong_type", f"{where}['content'] is {_describe(content)}; it must be text")


def _check_encodable(where: str, text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{where} has a lone surrogate at character {error.start}, which is not text"
            raise BadRowError("bad_encoding", message) from None


def _is_empty(response: Text) -> bool:
    if isinstance(response, str):
        return not response.strip()
    return not any(_has_content(message) for message in response)


def _has_content(message: Message) -> bool:
    content = message.get("content")
    return bool((content.strip() if isinstance(content, str) else content) or message.get("tool_calls"))


def _margin(row: Mapping[str, Any]) -> float:
    margin = row.get("margin")
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise BadRowError("wrong_type", f"'margin' is {_describe(margin)}; it must be a finite number")
    return float(margin)


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise BadRowError("wrong_type", f"'tools' is text but not JSON: {error}") from None
    if tools and not isinstance(tools, list):
        raise BadRowError(
            "wrong_type", f"'tools' is {_describe(tools)}; it must be a list of functions, or that as JSON"
        )
    return tools or None


def _template_kwargs(row: Mapping[str, Any]) -> Mapping[str, Any]:
    kwargs = row.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise BadRowError("wrong_type", f"'chat_template_kwargs' is {_describe(kwargs)}; it must be a mapping")
    if reserved := _RESERVED & set(kwargs):
        raise BadRowError("wrong_type", f"'chat_template_kwargs' may not set {', '.join(sorted(reserved))}")
    return kwargs


def _describe(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Sequence | Mapping) and not value:
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {str(value)[:40]!r}"
