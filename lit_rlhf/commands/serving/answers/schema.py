"""What a request for answers may say, in the words of OpenAI's API, and what is said back.

What would change the answer and is not there is refused by name; what changes nothing is taken and left aside.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lit_rlhf.commands.serving.requests import kind_of, read_json, refuse, refuse_key
from lit_rlhf.commands.speaking.prompts import Messages
from lit_rlhf.rollout.sampling.token_stream import StreamOptions

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MAX_STOPS = 16
_MAX_TOP = 20
_COMPLETION_TOKENS = 16
"""Tokens of a completion that does not say how many; OpenAI's number."""


@dataclass(frozen=True)
class AnswerRequest:
    """What is asked.

    Args:
        model: name of the voice; None = the first.
        prompts: each a conversation or a text.
        options: how answers are drawn.
        num_answers: to each prompt.
        stop_strings: texts that end an answer.
        is_streamed: whether it is sent as it is drawn.
        has_usage: whether a stream ends with the numbers of tokens.
        num_top: likeliest tokens to name beside each token with its log-probability; None = no log-probabilities.
        is_chat: whether messages are asked for, and not texts.
    """

    model: str | None
    prompts: list[Messages] | list[str]
    options: StreamOptions
    num_answers: int
    stop_strings: tuple[str, ...]
    is_streamed: bool
    has_usage: bool
    num_top: int | None
    is_chat: bool


class _Key(NamedTuple):
    """A key of a request: whether a value is right, and in words."""

    is_right: Callable[[Any], bool]
    wanted: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _are_stops(value: object) -> bool:
    values = [value] if isinstance(value, str) else value
    return isinstance(values, list) and len(values) <= _MAX_STOPS and all(isinstance(x, str) and x for x in values)


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(map(_is_text, value)))


_SHARED = {
    "model": _Key(_is_text, "the name of a model, which GET /v1/models tells"),
    "temperature": _Key(lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "top_p": _Key(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "max_tokens": _Key(_is_count(1), "a number of tokens, at least 1"),
    "n": _Key(_is_count(1), "a number of answers, at least 1"),
    "seed": _Key(_is_count(-(2**63), 2**63 - 1), "a whole number of 64 bits"),
    "stop": _Key(_are_stops, f"a text or at most {_MAX_STOPS} texts, none of them empty"),
    "stream": _Key(_is_bool, "true or false"),
    "stream_options": _Key(lambda value: isinstance(value, dict), "an object such as {'include_usage': true}"),
}
_CHAT = {
    **_SHARED,
    "messages": _Key(lambda value: isinstance(value, list) and bool(value), "a list of messages, at least one"),
    "max_completion_tokens": _SHARED["max_tokens"],
    "logprobs": _Key(_is_bool, "true or false"),
    "top_logprobs": _Key(_is_count(0, _MAX_TOP), f"a number from 0 to {_MAX_TOP}"),
}
_TEXT = {
    **_SHARED,
    "prompt": _Key(_are_texts, "a text, or a list of texts"),
    "logprobs": _Key(_is_count(0, _MAX_TOP), f"a number from 0 to {_MAX_TOP}"),
}
_LEFT_ASIDE = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier")
"""Keys that say nothing about the answer."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
"""Keys that are refused unless they ask for nothing."""


def read_chat(body: bytes, max_answers: int) -> AnswerRequest:
    """Read a request of ``/v1/chat/completions``.

    Args:
        body: as it came.
        max_answers: most answers that it may want.

    Raises:
        RequestError: with status 400.
    """
    asked = _read(body, _CHAT, "messages")
    if "max_completion_tokens" in asked:
        asked["max_tokens"] = asked["max_completion_tokens"]
    if asked.get("top_logprobs") is not None and not asked.get("logprobs"):
        refuse("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    num_top = asked.get("top_logprobs", 0) if asked.get("logprobs") else None
    messages = [_message(number, message) for number, message in enumerate(asked["messages"])]
    return _request(asked, [messages], num_top, max_answers, usual_tokens=2**31, is_chat=True)


def read_completion(body: bytes, max_answers: int) -> AnswerRequest:
    """Read a request of ``/v1/completions``.

    Args:
        body: as it came.
        max_answers: most answers that it may want.

    Raises:
        RequestError: with status 400.
    """
    asked = _read(body, _TEXT, "prompt")
    prompts = [asked["prompt"]] if isinstance(asked["prompt"], str) else asked["prompt"]
    return _request(asked, prompts, asked.get("logprobs"), max_answers, usual_tokens=_COMPLETION_TOKENS, is_chat=False)


def _read(body: bytes, keys: Mapping[str, _Key], needed: str) -> dict[str, Any]:
    """The values that are given, each of them right; null is not given."""
    asked = read_json(body)
    if not isinstance(asked, dict):
        refuse(f"the request is {kind_of(asked)}; it must be an object with {needed!r}")
    given = {key: value for key, value in asked.items() if value is not None and key not in _LEFT_ASIDE}
    for key, value in given.items():
        if key in _NEUTRAL:
            if value not in _NEUTRAL[key]:
                refuse(f"{key!r} is not there in this server; leave it out", param=key)
        elif key not in keys:
            refuse_key("the request", key, [*keys], param=key[:60])
        elif not keys[key].is_right(value):
            refuse(f"{key!r} is {kind_of(value)}; it must be {keys[key].wanted}", param=key)
    if needed not in given:
        refuse(f"the request has no {needed!r}; it must have {keys[needed].wanted}", param=needed)
    return given


def _request(
    asked: Mapping[str, Any],
    prompts: list[Messages] | list[str],
    num_top: int | None,
    max_answers: int,
    *,
    usual_tokens: int,
    is_chat: bool,
) -> AnswerRequest:
    num_answers, stop = asked.get("n", 1), asked.get("stop", [])
    if num_answers * len(prompts) > max_answers:
        refuse(
            f"{num_answers * len(prompts)} answers are asked for; at most {max_answers} are given at once", param="n"
        )
    return AnswerRequest(
        model=asked.get("model"),
        prompts=prompts,
        options=StreamOptions(
            temperature=float(asked.get("temperature", 1.0)),
            top_p=float(asked.get("top_p", 1.0)),
            max_new_tokens=asked.get("max_tokens", usual_tokens),
            seed=asked.get("seed", secrets.randbits(62)),
        ),
        num_answers=num_answers,
        stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
        is_streamed=asked.get("stream", False),
        has_usage=asked.get("stream_options", {}).get("include_usage") is True,
        num_top=num_top,
        is_chat=is_chat,
    )


def _message(number: int, message: object) -> dict[str, Any]:
    """A message with its words and pictures. Nothing else of it is passed on: a path in it would open a file here."""
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        refuse(f"{where} is {kind_of(message)}; it must be an object with 'role' and 'content'", param="messages")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        refuse(f"'role' of {where} is {kind_of(role)}; it must be one of {', '.join(_ROLES)}", param="messages")
    if message.get("tool_calls"):
        refuse(f"'tool_calls' of {where} are not there in this server; leave them out", param="messages")
    if isinstance(content, list):
        content = [_block(f"content[{at}] of {where}", block) for at, block in enumerate(content)]
        if all(block["type"] == "text" for block in content):
            content = "".join(block["text"] for block in content)
    elif not isinstance(content, str):
        refuse(f"'content' of {where} is {kind_of(content)}; it must be a text, or a list of blocks", param="messages")
    return {"role": "system" if role == "developer" else role, "content": content}


def _block(where: str, block: object) -> dict[str, str]:
    """A text, or a picture that came with the request."""
    kind = block.get("type") if isinstance(block, dict) else None
    value = block.get(kind) if isinstance(block, dict) and isinstance(kind, str) else None
    if kind == "image_url" and isinstance(value, dict):
        value = value.get("url")
    if kind == "image_url" and isinstance(value, str) and value.startswith("data:"):
        return {"type": "image", "image": value}
    if kind != "text" or not isinstance(value, str):
        refuse(
            f"{where} must be {{'type': 'text', 'text': ...}}, or an 'image_url' whose 'url' is a data: URL; nothing "
            "is fetched for a request, and no file opened",
            param="messages",
        )
    return {"type": "text", "text": value}
