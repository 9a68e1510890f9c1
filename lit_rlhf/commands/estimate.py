"""Say what memory and time a run will take, before anything is loaded, and what to change if it does not fit.

  lit-rlhf estimate --config configs/llama3_8b/ppo_qlora.yaml --gpu rtx4090
  lit-rlhf estimate --config my.yaml --vram 16 --model.backbone.quantization nf4
  lit-rlhf estimate --config my.yaml --gpu h100 a100-40 l40s --json
  lit-rlhf estimate --config my.yaml --model_config folder/config.json --prompt_tokens 300

Whatever `fit` takes may follow. The model's config.json is read, and some rows of the data where they are here; no
weights are, and nothing is downloaded. Every number is an estimate; docs/estimate.md derives them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_rlhf.commands.quiet import quieten
from lit_rlhf.estimating.gpus import DEVICES, Device, device


def main(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: after ``lit-rlhf estimate``.

    Raises:
        ValueError: if a device is not known, or the configuration cannot be read.
    """
    given, rest = _parser().parse_known_args(words)
    if not given.config:
        raise ValueError("nothing to estimate; give a configuration, as in --config configs/dpo.yaml")
    devices = [device(name) for name in given.gpu or []]
    if given.vram is not None:
        devices = [each._replace(gigabytes=given.vram) for each in devices] or [_any_card(given.vram)]
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported: what is not here is not asked for
    quieten()
    from lit_rlhf.commands.estimate_config import Said, read
    from lit_rlhf.commands.estimate_screen import show
    from lit_rlhf.estimating.findings import findings

    kinds: set[Any] = {"cpu" if each.name == "cpu" else "cuda" for each in devices}
    if len(kinds) > 1:
        raise ValueError("--gpu cpu stands alone: attention and the head take other amounts of memory there")
    said = Said(given.model_config, given.prompt_tokens, given.response_tokens, given.rows, *kinds)
    run, assumed = read([*(word for file in given.config for word in ("--config", file)), *rest], said)
    found = findings(run, devices or [DEVICES["cpu" if run.device == "cpu" else "h100"]], assumed)
    if given.json:
        print(json.dumps(found, indent=2))  # noqa: T201
    else:
        show(found)


def _any_card(gigabytes: float) -> Device:
    """A card of which no more is known than its size; its speed is that of an RTX 3090."""
    return DEVICES["rtx3090"]._replace(name=f"{gigabytes:g} GB", gigabytes=gigabytes)


class _Parser(argparse.ArgumentParser):
    """Refuses a word in one line, without repeating how the command is used."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lit-rlhf estimate",
        usage="lit-rlhf estimate --config FILE [KEYS OF FIT ...] [OPTION ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="configuration of a run, as `fit` takes it")
    parser.add_argument("--gpu", nargs="+", metavar="NAME", help=f"devices: {', '.join(DEVICES)} (h100)")
    parser.add_argument("--vram", type=_positive(float), metavar="GB", help="memory of the device, 10^9 bytes")
    parser.add_argument("--model_config", type=Path, metavar="FILE", help="config.json in place of the model's own")
    parser.add_argument("--prompt_tokens", type=_positive(int), metavar="N", help="tokens of a prompt (as in the data)")
    parser.add_argument("--response_tokens", type=_positive(int), metavar="N", help="tokens of a response")
    parser.add_argument(
        "--rows", type=_positive(int), metavar="N", help="rows of the data (counted where they are here)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, all in bytes and seconds")
    return parser


def _positive(kind: type) -> Any:
    def number(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            value = 0
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0")
        return value

    return number
