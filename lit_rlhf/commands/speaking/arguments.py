"""What the commands that speak take from the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lit_rlhf.commands import finished_run

if TYPE_CHECKING:
    from lit_rlhf.rollout.sampling.token_stream import StreamOptions


def add_voices(parser: argparse.ArgumentParser) -> None:
    """Add who speaks, and how it is loaded."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder of a run, or NAME=FOLDER; several on one base are loaded side by side",
    )
    finished_run.add_loading_arguments(parser)
    parser.add_argument("--quantization", default="none", choices=("none", "nf4", "int8"), help="of the base")


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Add how answers are drawn."""
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default 1)")
    parser.add_argument("--top_p", type=float, default=1.0, help="probability mass to draw from (default 1)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the answers (default 0)")


def read_drawing(args: argparse.Namespace) -> StreamOptions:
    """How answers are drawn.

    Raises:
        ValueError: if a number is out of range.
    """
    from lit_rlhf.rollout.sampling.token_stream import StreamOptions

    return StreamOptions(args.temperature, args.top_p, args.max_new_tokens, args.seed)
