r"""Prompt and answers, each as a row gives them, brought to one kind and parted.

==============  ==============  ====================================================================================
prompt          answers         what follows
==============  ==============  ====================================================================================
text            text            the answers follow the prompt as they are
absent          text            the prompt is the common beginning; in dialogues with ``\n\nHuman:`` and
                                ``\n\nAssistant:`` turns it ends at the last shared ``Assistant:``
messages        messages        the answers follow the prompt; or they repeat it, and the prompt is the common beginning
absent          messages        the prompt is the common beginning of the conversations
text            messages        the prompt is a user turn; or whole conversations repeat it
messages        text            the answers are assistant turns
==============  ==============  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datamodules.records import ASSISTANT, HUMAN, BadRowError, Message, Text, common_prefix_length

Answers = list[Any]  # all texts, or all lists of messages
Parted = tuple[Text, Answers]


def part(prompt: Text | None, places: Sequence[str], answers: Answers) -> Parted:
    """Part the prompt from the answers to it.

    Args:
        prompt: text or messages; None if the answers repeat it.
        places: what each answer is called in messages, such as ``'chosen'``.
        answers: the answers, texts or lists of messages.

    Returns:
        The prompt, and what follows it in each answer: all text, or all messages.

    Raises:
        BadRowError: if the answers are not of one kind, or one is empty.
    """
    kinds = [_kind(answer) for answer in answers]
    for place, kind in zip(places, kinds, strict=True):
        if kind != kinds[0]:
            message = f"{places[0]} is {kinds[0]} but {place} is {kind}; both must be of one kind"
            raise BadRowError("wrong_type", message)
    prompt, responses = _WAYS[_kind(prompt), kinds[0]](prompt, answers)
    for place, response in zip(places, responses, strict=True):
        if is_empty(response):
            raise BadRowError("empty_response", f"{place} has an empty response")
    return prompt, responses


def is_empty(response: Text) -> bool:
    """Whether a response says nothing: no text but blanks, and no call of a function."""
    if isinstance(response, str):
        return not response.strip()
    return not any(turn["content"].strip() or turn.get("tool_calls") for turn in turns_of(response))


def turns_of(words: Text) -> list[Message]:
    """The messages of a conversation; none of a text or of tokens."""
    return [turn for turn in words if isinstance(turn, dict)] if isinstance(words, list) else []


def user(text: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> list[Message]:
    """An assistant turn as an answer."""
    return [{"role": "assistant", "content": text}]


def _kind(words: Text | None) -> str:
    if words is None:
        return "absent"
    return "text" if isinstance(words, str) else "messages"


def _as_given(prompt: str, answers: Answers) -> Parted:
    return prompt, answers


def _whole_texts(prompt: None, answers: Answers) -> Parted:
    shared = answers[0][: _num_shared(answers)]
    turn = shared.rfind(ASSISTANT)
    if HUMAN in shared and turn >= 0:
        end = turn + len(ASSISTANT)
    else:
        end = max(0, min(len(shared), *(len(answer) - 1 for answer in answers)))
        end -= shared[:end].endswith(" ")  # a space belongs to the word that follows it
    return shared[:end], [answer[end:] for answer in answers]


def _whole_conversations(prompt: object, answers: Answers) -> Parted:
    end = min(_num_shared(answers), *(len(answer) - 1 for answer in answers))
    return answers[0][:end], [answer[end:] for answer in answers]


def _messages_then_messages(prompt: list[Message], answers: Answers) -> Parted:
    if prompt and all(answer[0] == prompt[0] for answer in answers):
        return _whole_conversations(None, answers)
    return prompt, answers


def _text_then_messages(prompt: str, answers: Answers) -> Parted:
    if any(answer[0]["role"] == "assistant" for answer in answers):
        return [user(prompt)], answers
    return _whole_conversations(None, answers)


def _messages_then_text(prompt: list[Message], answers: Answers) -> Parted:
    return prompt, [assistant(answer) for answer in answers]


def _num_shared(answers: Answers) -> int:
    return min(common_prefix_length(answers[0], answer) for answer in answers)


_WAYS: dict[tuple[str, str], Callable[[Any, Answers], Parted]] = {
    ("text", "text"): _as_given,
    ("absent", "text"): _whole_texts,
    ("messages", "messages"): _messages_then_messages,
    ("absent", "messages"): _whole_conversations,
    ("text", "messages"): _text_then_messages,
    ("messages", "text"): _messages_then_text,
}
