"""What is wrong with a configuration, in one line: the full path of the key, and the nearest key that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.commands.trust import ALLOWED

_UNKNOWN = re.compile(
    r"Option '(?P<option>[^']+)' is not accepted"
    r"|(?:Group '(?P<group>[^']+)' )?does not accept option '(?P<nested>[^']+)'"
    r"|(?:unrecognized arguments|ambiguous option): --(?P<argument>[^=\s]+)"
)
_NO_FLAG = re.compile(r"^unrecognized arguments: (?P<word>[^-\s]\S*)")
_WRONG_VALUE = re.compile(r"Parser key \"(?P<key>[^\"]+)\":\s*(?P<reason>.*)", re.DOTALL)
_MISSING = re.compile(r"^the following arguments are required: (?:\w+\.)?(?P<key>\w+)$")
_BROKEN = object()
_FOREIGN = re.compile(r"Importing '(?P<name>[^']+)' is not allowed")
_WRONG_CLASS = re.compile(r"Problem with given class_path '(?P<name>[^']+)':\s*(?P<reason>[^\n]+)")
_NO_ATTRIBUTE = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")
_NOT_INSTALLED = re.compile(r"Requirement '(?P<package>[\w-]+)[^']*' not met")
_NO_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\w+)")
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors:\s*\n(?P<errors>.*?)\s*"
    r"Given value type:[^\n]*\s*Given value: (?P<value>.*)",
    re.DOTALL,
)
_BULLET = re.compile(r"^\s*- (.*?)(?=^\s*- |\Z)", re.DOTALL | re.MULTILINE)
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "dict": "a mapping",
}
"""Python's types as a configuration calls them."""
_PARTS = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.profilers")
"""Where a class is looked for that is given by its name alone."""


def explain(message: str, known: Sequence[str], words: Sequence[str]) -> str:
    """Turn a message of jsonargparse into one line.

    Args:
        message: what jsonargparse says.
        known: keys that the part of the configuration in question has.
        words: the command line, where the full path of the key is looked up.

    Example:
        >>> explain("Option 'betta' is not accepted", ["beta", "lr"], ["fit", "--model.init_args.betta=1"])
        "model.init_args.betta: unknown key; did you mean 'beta'?"
    """
    paths = list(_keys_in(words))
    if match := _NO_FLAG.search(message):
        return f"'{match['word']}' stands alone: is it a --config? lit-rlhf {words[0]} --help shows the keys"
    if match := _UNKNOWN.search(message):
        key = match["option"] or match["argument"] or ".".join(filter(None, (match["group"], match["nested"])))
        near = _nearest(key, known)
        return f"{_full(key, paths)}: unknown key" + (f"; did you mean '{near}'?" if near else "")
    if match := _FOREIGN.search(message):
        package = match["name"].partition(".")[0]
        return (
            f"'{match['name']}' is not of the packages that a configuration may name ({', '.join(_roots())}); "
            f"if you trust it, add --trust {package}"
        )
    if match := _WRONG_CLASS.search(message):
        return f"class_path '{match['name']}': {plain(message[match.start('reason') :])}"
    if match := _WRONG_VALUE.search(message):
        return f"{_full(match['key'], paths)}: {plain(match['reason'])}"
    if _UNION.search(message):
        return plain(message)
    if message.startswith("the following arguments are required") and not any(_config_files(words)):
        return "nothing says what to train: give a configuration, as in --config configs/dpo.yaml"
    if match := _MISSING.search(message):
        return f"the configuration has no `{match['key']}`"
    if message.startswith("Problems parsing config"):
        broken = [str(file) for file in _config_files(words) if file.is_file() and _read(file) is _BROKEN]
        message = message.replace("Problems parsing config", " ".join(["broken YAML", *broken]), 1)
        message = message.replace('in "<unicode string>", ', "")
    return " ".join(message.split())


def plain(reason: str) -> str:
    """What is wrong with a value, without the list of all types that were tried.

    Args:
        reason: what jsonargparse, or a class that it made, says.

    Example:
        >>> plain("Expected a int. Got value: abc")
        'expected a whole number, not abc'
    """
    if match := _NOT_INSTALLED.search(reason):
        package = match["package"]
        return f"it needs {package}, which is not installed: pip install {package}"
    if match := _NO_ATTRIBUTE.search(reason):
        near = get_close_matches(match["name"], dir(import_module(match["module"])), n=1)
        return match[0] + (f"; did you mean '{near[0]}'?" if near else "")
    if match := _NO_CLASS.search(reason):
        near = get_close_matches(match["name"], [name for part in _PARTS for name in dir(import_module(part))], n=1)
        return f"there is no class '{match['name']}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if match := _UNION.search(reason):
        told = [" ".join(error.split()) for error in _BULLET.findall(match["errors"])]
        others = [error for error in told if not error.startswith("Expected a ")]
        if others:
            return "; ".join(dict.fromkeys(map(plain, others)))
        kinds = " or ".join(_kind(error.removeprefix("Expected a ")) for error in told)
        return f"expected {kinds}, not {match['value'].strip()}"
    if match := re.fullmatch(r"Expected a (.*?)\. Got value: (.*)", reason.strip(), re.DOTALL):
        return f"expected {_kind(match[1])}, not {match[2]}"
    return " ".join(reason.split())


def _kind(name: str) -> str:
    """A type as a configuration calls it: the words of a Literal, ``null`` for None."""
    name = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", name)
    if name.startswith("typing.Literal["):
        return ", ".join(re.findall(r"[\w.+-]+", name.removeprefix("typing.Literal")))
    return _KINDS.get(name, f"a {name}")


def _roots() -> list[str]:
    """First names of the packages that a configuration may name."""
    return list(dict.fromkeys(name.partition(".")[0] for name in ALLOWED))


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key most like ``key``: under the same parent if that exists, else as a whole."""
    parent, _, leaf = key.rpartition(".")
    parents = {name: f".{name.rpartition('.')[0]}" for name in known}
    siblings = {name.rpartition(".")[2] for name in known if parents[name].endswith(f".{parent}")}
    if match := get_close_matches(leaf, siblings, n=1):
        return match[0]
    match = get_close_matches(key, known, n=1)
    return match[0] if match else None


def _full(key: str, paths: Sequence[str]) -> str:
    """The path given by the user that ends with ``key``."""
    return next((path for path in paths if path == key or path.endswith(f".{key}")), key)


def _keys_in(words: Sequence[str]) -> Iterator[str]:
    """Every key that the command line or one of its configuration files sets, as a dotted path."""
    for word in words:
        if word.startswith("--"):
            yield word[2:].partition("=")[0].removesuffix("+")
    for file in _config_files(words):
        if file.is_file():
            yield from _keys_of(_read(file), "")


def _config_files(words: Sequence[str]) -> Iterator[Path]:
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--config", "-c"):
            yield Path(value or "".join(words[number + 1 : number + 2]))


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return _BROKEN


def _keys_of(node: Any, path: str) -> Iterator[str]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        here = f"{path}.{key}" if path else str(key)
        yield here
        yield from _keys_of(child, here)
