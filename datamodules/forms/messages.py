"""Turns of conversations, however they are written, as ``{"role": ..., "content": text}``.

A turn names its speaker under ``role`` or ``from`` and its words under ``content`` or ``value``; the tags of a source
add further names. Words are text or a list of blocks. Blocks of text are joined; a picture leaves the mark ``<image>``
and goes to ``pictures`` of its turn (see ``pictures.py``); calls of functions and thoughts go to the keys that chat
templates read. An assistant turn that is not to be trained on has ``weight`` 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from datamodules.forms.values import read_json, read_list, read_number, read_text, without_nulls, wrong_type
from datamodules.records import BadRowError, Message

IMAGE_MARK = "<image>"

# What speakers are called -> the role; "call" is an assistant that calls a function.
_SPEAKERS = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_TAGGED = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}
TAGS = ("role_tag", "content_tag", *_TAGGED)
_FROM = sorted({"system", "user", "assistant", "tool", *_SPEAKERS})
_WEIGHTS = ("weight", "loss_weight", "train")


def read_turns(where: str, value: object, tags: Mapping[str, str] = {}) -> list[Message]:
    """Normalise a list of turns.

    Args:
        where: name of the column.
        value: what it holds.
        tags: names inside turns, by the keys of LLaMA-Factory.

    Raises:
        BadRowError: if it holds anything but turns, or none.
    """
    turns = read_list(repr(where), value, "text or a list of messages")
    return [read_turn(f"{where}[{number}]", turn, tags) for number, turn in enumerate(turns)]


def read_turn(where: str, turn: object, tags: Mapping[str, str] = {}) -> Message:
    """Normalise one turn.

    Raises:
        BadRowError: if it has no speaker, or nothing that is said.

    Example:
        >>> read_turn("messages[0]", {"from": "human", "value": [{"type": "text", "text": "Hi"}]})
        {'role': 'user', 'content': 'Hi'}
    """
    if not isinstance(turn, Mapping):
        raise wrong_type(where, turn, "a message with a 'role' and a 'content'")
    rest = {key: value for key, value in turn.items() if value is not None and key != "pictures"}
    role = _read_role(where, rest, tags)
    content_key = _first(rest, tags.get("content_tag"), "content", "value") or "content"
    content = rest.pop(content_key, None)
    weight = _read_weight(where, rest)
    message: Message = {"role": role, "content": "", **without_nulls(where, rest)}
    _read_calls(where, message)
    _read_content(f"{where}[{content_key!r}]", content, message)
    if role == "call":
        calls = [_call(where, call) for call in _calls_in(f"{where}[{content_key!r}]", message["content"])]
        message.update(role="assistant", content="", tool_calls=calls)
    if weight == 0 and message["role"] == "assistant":
        message["weight"] = 0
    return message


def _first(turn: Mapping[str, Any], *names: str | None) -> str | None:
    return next((name for name in names if name in turn), None)


def _read_role(where: str, rest: dict[str, Any], tags: Mapping[str, str]) -> str:
    """Take the speaker out of a turn. A ``from`` has fixed values; a ``role`` may be any that a template knows."""
    key = _first(rest, tags.get("role_tag"), "role", "from")
    if key is None:
        raise wrong_type(where, rest, "a message with a 'role' and a 'content'")
    speaker = read_text(f"{where}[{key!r}]", rest.pop(key))
    for tag, role in _TAGGED.items():
        if tags.get(tag) == speaker:
            return role
    if key == "from" and speaker not in _FROM:
        message = (
            f"{where}['from'] is {speaker[:40]!r}; known speakers are {', '.join(_FROM)}, others are named by tags"
        )
        raise BadRowError("unknown_speaker", message)
    return _SPEAKERS.get(speaker, speaker)


def _read_weight(where: str, rest: dict[str, Any]) -> int:
    """Take the weight out of a turn: 1 unless given."""
    for key in _WEIGHTS:
        if key in rest:
            value = rest.pop(key)
            weight = float(value) if isinstance(value, bool) else read_number(f"{where}[{key!r}]", value)
            if weight not in (0, 1):
                raise wrong_type(f"{where}[{key!r}]", value, "0 or 1: a turn is trained on or not")
            return int(weight)
    return 1


def _read_calls(where: str, message: Message) -> None:
    """Give the calls of a turn the one shape that chat templates read; no calls leave no key."""
    calls = message.pop("tool_calls", None)
    if calls:
        calls = read_list(f"{where}['tool_calls']", calls, "a list of calls")
        message["tool_calls"] = [_call(where, call) for call in calls]


def _calls_in(where: str, text: str) -> list[Any]:
    calls = read_json(where, text, "a call: {name, arguments}, or a list of these")
    return calls if isinstance(calls, list) and calls else [calls]


def _call(where: str, call: object) -> dict[str, Any]:
    """Normalise ``{name, arguments}``, bare or under ``function``; arguments as JSON text become a mapping."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRowError("bad_tool_call", f"{where} calls a function without 'name' and 'arguments'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # where a model wrote what is not JSON, its words are kept
            arguments = json.loads(arguments or "{}")
    kept = {"type": "function", **call} if "function" in call else {"type": "function"}
    return kept | {"function": {"name": function["name"], "arguments": arguments}}


def _read_content(where: str, content: object, message: Message) -> None:
    """Fill ``content`` of a message, and what its blocks say beside text."""
    if content is None and ("tool_calls" in message or "reasoning_content" in message):
        return
    if isinstance(content, str):
        message["content"] = read_text(where, content)
        return
    blocks = [content] if isinstance(content, Mapping) else content
    for number, block in enumerate(read_list(where, blocks, "text")):
        _read_block(f"{where}[{number}]", block, message)


def _read_block(where: str, block: object, message: Message) -> None:
    if isinstance(block, str):
        block = {"type": "text", "text": block}
    if not isinstance(block, Mapping):
        raise wrong_type(where, block, "text or a block such as {'type': 'text', 'text': ...}")
    kind = block.get("type") or _first({key: value for key, value in block.items() if value is not None}, *_BLOCKS)
    if not isinstance(kind, str) or kind not in _BLOCKS:
        raise wrong_type(f"{where}['type']", kind, f"one of {', '.join(_BLOCKS)}")
    _BLOCKS[kind](where, block, message)


def _text_block(where: str, block: Mapping[str, Any], message: Message) -> None:
    message["content"] += _text_of(where, block)


def _thought_block(where: str, block: Mapping[str, Any], message: Message) -> None:
    before = read_text(f"{where}: 'reasoning_content'", message.get("reasoning_content", ""))
    message["reasoning_content"] = before + _text_of(where, block)


def _call_block(where: str, block: Mapping[str, Any], message: Message) -> None:
    calls = [_call(where, call) for call in _calls_in(where, _text_of(where, block))]
    message["tool_calls"] = message.get("tool_calls", []) + calls


def _text_of(where: str, block: Mapping[str, Any]) -> str:
    names = ("text", "value", "content", "reasoning", "thinking", "tool_call")
    key = next((name for name in names if block.get(name) is not None), "text")
    return read_text(f"{where}[{key!r}]", block.get(key))


def _picture_block(where: str, block: Mapping[str, Any], message: Message) -> None:
    """Note a picture; a block without a reference takes the next one of the row's ``images``."""
    names = ("image", "image_url", "url", "path", "value", "source", "data")
    reference = next((block[name] for name in names if block.get(name) is not None), None)
    if isinstance(reference, Mapping) and reference.get("url") is not None:
        reference = reference["url"]
    message["content"] += IMAGE_MARK
    message["pictures"] = [*message.get("pictures", []), reference]


def _refuse_block(where: str, block: Mapping[str, Any], message: Message) -> None:
    # A text that speaks of what the model is not shown would teach it to invent.
    raise BadRowError("unsupported_media", f"{where} is a film or a sound; only text and pictures can be trained on")


_BLOCKS: dict[str, Callable[[str, Mapping[str, Any], Message], None]] = {
    "text": _text_block,
    "image": _picture_block,
    "image_url": _picture_block,
    "reasoning": _thought_block,
    "thinking": _thought_block,
    "tool_call": _call_block,
    **dict.fromkeys(("video", "video_url", "audio", "audio_url", "input_audio"), _refuse_block),
}
