"""Signatures: what a loss asks for, told by its parameters. Tensors come first, by name; settings are keyword-only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Signature(NamedTuple):
    """The parameters of a loss. Make one with :meth:`read`.

    Args:
        name: of the function without ``_loss``: what the part is called in logs.
        inputs: names of its tensors, in their order.
        settings: its keyword-only scalars and their defaults.
    """

    name: str
    inputs: tuple[str, ...]
    settings: dict[str, Any]

    @classmethod
    def read(
        cls, function: Callable[..., Tensor], options: Mapping[str, float], known: Iterable[str], what: str
    ) -> Signature:
        """Read a function's parameters and refuse what its caller cannot give.

        Args:
            function: the loss.
            options: settings that it will be given, by name.
            known: names of the tensors that there are.
            what: what the loss is, for messages: ``preference`` or ``reward``.

        Raises:
            ValueError: if the function asks for other tensors, or for none, or lacks one of the options.

        Example:
            >>> Signature.read(lambda scores, *, power=2.0: scores**power, {}, ["scores"], "reward")[1:]
            (('scores',), {'power': 2.0})
        """
        parameters = inspect.signature(function).parameters.values()
        settings = {x.name: x.default for x in parameters if x.kind is inspect.Parameter.KEYWORD_ONLY}
        inputs = tuple(x.name for x in parameters if x.name not in settings)
        name = function.__name__.removesuffix("_loss")
        unknown = [asked for asked in inputs if asked not in known]
        if unknown or not inputs:
            raise ValueError(
                f"losses: {name} asks for {', '.join(unknown) or 'no tensors'}; "
                f"a {what} loss may ask for {', '.join(known)}"
            )
        wrong = sorted(set(options) - set(settings))
        if wrong:
            accepted = ", ".join(settings) or "none"
            raise ValueError(f"losses: {name} has no option '{wrong[0]}'; its options are: {accepted}")
        return cls(name, inputs, settings)
