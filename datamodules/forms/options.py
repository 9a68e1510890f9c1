"""Columns that any row may carry beside its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamodules.forms.fields import Fields
from datamodules.forms.values import read_json, read_number, without_nulls, wrong_type
from datamodules.records import BadRowError

# Arguments of `apply_chat_template` that decide what a rendering means; a row may not set them.
_RESERVED = {"add_generation_prompt", "chat_template", "continue_final_message", "tokenize", "tools"}


def read_margin(fields: Fields) -> float:
    """``margin``: by how much the better answer is better; 0 where unknown."""
    name = fields.ask("margin")
    return read_number("'margin'", fields[name]) if name else 0.0


def read_tools(fields: Fields) -> list[Any] | None:
    """``tools``: JSON schemas of functions, as a list or as JSON text."""
    name = fields.ask("tools")
    given = fields[name] if name else None
    wanted = "a list of functions, or that as JSON"
    tools = read_json("'tools'", given, wanted) if given else None
    if tools and not isinstance(tools, list):
        raise wrong_type("'tools'", tools, wanted)
    return without_nulls("'tools'", tools) or None


def read_template_kwargs(fields: Fields) -> Mapping[str, Any]:
    """``chat_template_kwargs``: further variables for the chat template."""
    name = fields.ask("chat_template_kwargs")
    kwargs = fields[name] if name else {}
    if not isinstance(kwargs, Mapping):
        raise wrong_type("'chat_template_kwargs'", kwargs, "a mapping")
    if reserved := _RESERVED & set(kwargs):
        raise BadRowError("wrong_type", f"'chat_template_kwargs' may not set {', '.join(sorted(reserved))}")
    kept: Mapping[str, Any] = without_nulls("'chat_template_kwargs'", kwargs)
    return kept
