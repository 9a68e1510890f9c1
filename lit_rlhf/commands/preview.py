"""Show what training would see of the data: forms, counts, lengths, what is cut or lost and why, and a few examples.

  lit-rlhf preview --config configs/dpo.yaml
  lit-rlhf preview --config my.yaml --data.init_args.max_length 512
  lit-rlhf preview pairs.jsonl --tokenizer meta-llama/Llama-3.2-1B-Instruct
  lit-rlhf preview pairs.jsonl --row pairs.jsonl:17

With --config, whatever `fit` takes may follow. With files instead, what they are for follows from their rows unless
--kind says it. No model is loaded, and of a large source only a sample is read.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from itertools import islice
from typing import Any, NoReturn, cast

from rich.console import Console
from rich.text import Text

from datamodules.forms import read_row
from datamodules.inspection import SourceReport, inspect
from datamodules.making import BatchMaker
from datamodules.preference import PreferenceDataModule
from datamodules.prompt import PromptDataModule
from datamodules.prompts_and_texts import PromptAndTextDataModule
from datamodules.records import BadRowError, Record
from datamodules.sft import SFTDataModule
from datamodules.sources import Row, find_row, open_sources
from datamodules.streamed import StreamedDataModule
from lit_rlhf.commands.preview_screen import CLOSE, OPEN, epoch_table, example, printable, source_panel
from lit_rlhf.commands.quiet import quieten
from lit_rlhf.embedded import resolve

EMBEDDED = "embedded:tiny_llama"
_OF_FILES = ("tokenizer", "kind", "max_length")
"""Options that a configuration has its own keys for."""
_VOTERS = 20  # rows of each source that are asked what they are for


def main(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: after ``lit-rlhf preview``.

    Raises:
        ValueError: if nothing is named to look at, it cannot be read, or it has no rows.
    """
    # Words that are not ours belong to a configuration and keep their order, so files are not for argparse to find.
    arguments, rest = _parser().parse_known_args(words)
    quieten()
    if isinstance(sys.stdout, TextIOWrapper):  # what the terminal cannot write is shown by its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False)
    with warnings.catch_warnings(record=True) as caught:
        parts = _from_config(arguments, rest) if arguments.config else [_from_files(arguments, rest, console)]
        for data in parts:
            _check_tokenizer(data, arguments.tokenizer)
        if arguments.row:
            for data, row in _find(parts, arguments.row, arguments.split):
                _show_row(console, data, row)
        else:
            for data in parts:
                if len(parts) > 1:
                    console.rule(data.examples)
                _show_sources(console, data, arguments)
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        console.print(Text(printable(f"warning: {message}"), "yellow"))


class _Parser(argparse.ArgumentParser):
    """Refuses a word in one line, without repeating how the command is used."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lit-rlhf preview",
        usage="lit-rlhf preview (--config FILE [KEYS OF FIT ...] | FILE ...) [OPTION ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="configuration of a run, as `fit` takes it")
    parser.add_argument("--tokenizer", help=f"of files: folder or hub name ({EMBEDDED})")
    parser.add_argument(
        "--kind",
        choices=("pairs", "unpaired", "graded", "steps", "sft", "prompts"),
        help="of files: what they are for (told by their rows)",
    )
    parser.add_argument("--max_length", type=_at_least(1), help="of files: tokens of an example (1024)")
    splits = ("train", "validation", "test", "predict")
    parser.add_argument("--split", choices=splits, default="train", help="which part of the data (train)")
    parser.add_argument("--rows", type=_at_least(1), default=2000, help="most rows to read of each source (2000)")
    parser.add_argument("--show", type=_at_least(0), default=3, help="examples to show of each source (3)")
    parser.add_argument("--row", metavar="ADDRESS", help="show this row alone and whole, such as pairs.jsonl:17")
    return parser


def _at_least(bound: int) -> Callable[[str], int]:
    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < bound:
            raise argparse.ArgumentTypeError(f"{word!r} is not a number of at least {bound}")
        return int(word)

    return number


def _from_config(arguments: argparse.Namespace, rest: Sequence[str]) -> Sequence[StreamedDataModule]:
    """The data module of a configuration, or those that it is made of, with nothing else built."""
    from lit_rlhf.commands.training import read_data

    for name in _OF_FILES:
        if vars(arguments)[name] is not None:
            raise ValueError(f"--{name} goes with files; a configuration takes --data.init_args.{name}")
    if stray := _values_of_nothing(rest):
        raise ValueError(f"{stray[0]!r} belongs to no option; give --config or files, not both")
    data = read_data([*(word for file in arguments.config for word in ("--config", file)), *rest])
    if isinstance(data, PromptAndTextDataModule):
        return data.parts(arguments.split)
    if not isinstance(data, StreamedDataModule):
        raise ValueError(f"data.class_path is {type(data).__name__}, of which preview knows nothing")
    return [data]


def _values_of_nothing(words: Sequence[str]) -> list[str]:
    """Words that are neither an option nor the value of one."""
    is_value = [False, *(word.startswith("--") and "=" not in word for word in words)]
    return [word for word, is_said in zip(words, is_value, strict=False) if not (is_said or word.startswith("--"))]


def _from_files(arguments: argparse.Namespace, files: Sequence[str], console: Console) -> StreamedDataModule:
    """A data module for files, of the kind that their first rows call for."""
    if unknown := [word for word in files if word.startswith("-")]:
        raise ValueError(f"unknown option {unknown[0]}; keys of a configuration need --config")
    if not files:
        raise ValueError("nothing to look at; give --config configs/dpo.yaml, or files")
    if configs := [file for file in files if file.endswith((".yaml", ".yml"))]:
        raise ValueError(f"{configs[0]} is a configuration; give it as --config {configs[0]}")
    sources: Any = [resolve(file) for file in files]
    if not arguments.tokenizer:
        console.print(f"tokens are those of {EMBEDDED}; --tokenizer names another", style="yellow")
    kind = arguments.kind or _kind(sources, arguments.split)
    if not arguments.kind:
        console.print(f"read as --kind {kind}", style="yellow")
    max_length = arguments.max_length or 1024
    common: dict[str, Any] = {arguments.split: sources, "tokenizer": resolve(arguments.tokenizer or EMBEDDED)}
    if not arguments.tokenizer:
        common["images"] = "ignore"  # the embedded model has no eyes, and nobody asked for it
    if kind == "prompts":
        return PromptDataModule(**common, max_prompt_length=max_length)
    if kind == "sft":
        return SFTDataModule(**common, max_length=max_length)
    return PreferenceDataModule(**common, max_length=max_length, kind=cast(Any, kind))


def _kind(sources: Any, split: str) -> str:
    """What most of the first readable rows are for."""
    votes: Counter[str] = Counter()
    for source in open_sources(sources, split):
        for row in islice(source.read(), _VOTERS):
            with suppress(BadRowError):
                votes.update(_use(record) for record in read_row(row.decode(), row.layout))
    return votes.most_common(1)[0][0] if votes else "pairs"


def _use(record: Record) -> str:
    if any(response.steps for response in record.responses):
        return "steps"
    if len({response.rank for response in record.responses}) > 1:
        return "pairs"
    if any(response.label is not None for response in record.responses):
        return "unpaired"
    return ("prompts", "sft", "graded")[min(len(record.responses), 2)]


def _check_tokenizer(data: StreamedDataModule, name: str | None) -> None:
    """Load the tokenizer; libraries tell in several lines what is wrong with one."""
    try:
        assert data.tokenizer is not None
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(" :")
        raise ValueError(f"tokenizer {name!r} cannot be loaded: {reason}" if name else reason) from None


def _show_sources(console: Console, data: StreamedDataModule, arguments: argparse.Namespace) -> None:
    """Print what is seen of each source as soon as it is known."""
    reports: list[SourceReport] = []
    for report in inspect(data, arguments.split, arguments.rows, arguments.show):
        console.print(source_panel(report, data))
        if report.shown and not reports:
            console.print(f"{data.marked} tokens stand in {OPEN} {CLOSE}\n", style="dim")
        for outcome in report.shown:
            console.print(example(outcome, data))
        reports.append(report)
    if not any(report.sample.rows for report in reports):
        raise ValueError(f"no rows in {', '.join(report.source.name for report in reports)}")
    console.print(epoch_table(reports, data, arguments.split))


def _find(parts: Sequence[StreamedDataModule], address: str, split: str) -> list[tuple[StreamedDataModule, Row]]:
    """The row of an address, with every data module that reads it."""
    found: list[tuple[StreamedDataModule, Row]] = []
    missed: list[ValueError] = []
    for data in parts:
        try:
            found.append((data, find_row(address, data.sources(split))))
        except ValueError as error:
            missed.append(error)
    if not found:
        raise missed[0]
    return found


def _show_row(console: Console, data: StreamedDataModule, row: Row) -> None:
    """Print a row as it was read, and what becomes of it."""
    try:
        written = json.dumps(row.decode(), indent=2, ensure_ascii=False, default=_as_text)
    except BadRowError:  # said below
        written = row.data.decode(errors="backslashreplace") if isinstance(row.data, bytes) else ""
    console.print(Text(printable(written)))
    for outcome in BatchMaker(data.task()).outcomes([row]):
        if outcome.error is not None:
            console.print(Text(printable(f"lost ({outcome.error.reason}): {row.address}: {outcome.error}"), "red"))
        else:
            console.print(example(outcome, data, is_whole=True))


def _as_text(value: object) -> str:
    """What JSON has no word for."""
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)
