"""The embedded default: a small Llama, its tokenizer and data sets with a known true preference, inside the package.

Configs name its parts independently of where the package lies: ``embedded:tiny_llama``, ``embedded:dpo_train.jsonl``.
:func:`resolve` is the one place that turns such a name into a path. ``docs/embedded_default.md`` says how all is made.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "embedded:"
ASSETS = Path(__file__).parent / "assets"


def resolve(text: str) -> str:
    """Turn ``embedded:<name>`` into the path of that file or folder; any other text is returned as it is.

    Args:
        text: a path, a hub name or an embedded name.

    Raises:
        ValueError: if there is nothing of that name in the package; the message lists what there is.

    Example:
        >>> resolve("my/own/model")
        'my/own/model'
    """
    if not text.startswith(PREFIX):
        return text
    name = text.removeprefix(PREFIX)
    names = sorted(path.name for path in ASSETS.iterdir())
    if name not in names:
        raise ValueError(f"{text!r}: the package has no {name!r}; embedded are: {', '.join(names)}")
    return str(ASSETS / name)
