"""Show what training would see of the data: forms, counts, lengths, what is cut or dropped and why, and a few rows.

  lit-rlhf preview --config configs/dpo.yaml
  lit-rlhf preview pairs.jsonl --tokenizer meta-llama/Llama-3.2-1B-Instruct
  lit-rlhf preview --config my.yaml --row pairs.jsonl:17

With --config, whatever `fit` takes may follow, such as --data.init_args.max_length 512. With files instead, what they
are for follows from their rows unless --kind says it. No model is loaded. Of a large source a sample is read, all over
it; nothing is read whole.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from datamodules.forms import read_row
from datamodules.inspection import Piece, SourceReport, inspect, pieces, visible
from datamodules.making import BatchMaker, Outcome
from datamodules.order import RowOrder
from datamodules.preference import PreferenceDataModule
from datamodules.prompt import PromptDataModule
from datamodules.records import BadRowError, Record
from datamodules.sft import SFTDataModule
from datamodules.sources import find_row, open_sources
from datamodules.streamed import StreamedDataModule
from lit_rlhf.commands.quiet import quieten
from lit_rlhf.embedded import resolve

EMBEDDED = "embedded:tiny_llama"
_STYLES = {"prompt": "dim", "trained": "green", "untrained": "yellow"}
_PERCENTILES = (0, 50, 90, 99, 100)


def main(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: after ``lit-rlhf preview``.

    Raises:
        ValueError: if nothing is named to look at, or it cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="lit-rlhf preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_arguments(parser)
    arguments, rest = parser.parse_known_args(words)
    quieten()
    console = Console(highlight=False)
    data = _from_config(arguments.config, rest) if arguments.config else _from_files(parser, arguments, rest, console)
    if arguments.row:
        _show_row(console, data, arguments)
        return
    split = arguments.split
    for report in inspect(data, split, arguments.rows, arguments.show):
        console.print(_panel(report, data))
        for outcome in report.shown:
            console.print(_example(outcome, data))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="files, globs, folders or hub names to look at")
    parser.add_argument("--config", action="append", help="configuration of a run, as `fit` takes it")
    parser.add_argument("--tokenizer", help="folder or hub name; with --config, the run's own")
    parser.add_argument(
        "--kind", choices=("pairs", "unpaired", "sft", "prompts"), help="what the files are for; told by their rows"
    )
    parser.add_argument("--max_length", type=int, default=1024, help="of files: tokens of an example (1024)")
    splits = ("train", "validation", "test", "predict")
    parser.add_argument("--split", choices=splits, default="train", help="of a configuration (train)")
    parser.add_argument("--rows", type=_positive, default=2000, help="rows to read of each source (2000)")
    parser.add_argument("--show", type=int, default=3, help="examples to show of each source (3)")
    parser.add_argument("--row", metavar="ADDRESS", help="show this row alone, such as pairs.jsonl:17")


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0")
    return int(word)


def _from_config(files: Sequence[str], rest: Sequence[str]) -> StreamedDataModule:
    """The data module of a configuration, with nothing else built."""
    from lit_rlhf.commands.training import read_data

    data = read_data([*(word for file in files for word in ("--config", file)), *rest])
    if not isinstance(data, StreamedDataModule):
        raise ValueError(f"data.class_path is {type(data).__name__}, of which preview knows nothing")
    return data


def _from_files(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: Sequence[str], console: Console
) -> StreamedDataModule:
    """A data module for files, of the kind that their first rows call for."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)} (keys of a configuration need --config)")
    if not arguments.files:
        raise ValueError("nothing to look at: give --config, or files")
    files: Any = [resolve(file) for file in arguments.files]
    if not arguments.tokenizer:
        console.print(f"lengths are those of the tokenizer {EMBEDDED}; --tokenizer names yours", style="yellow")
    kind = arguments.kind or _kind(files)
    common: dict[str, Any] = {arguments.split: files, "tokenizer": resolve(arguments.tokenizer or EMBEDDED)}
    if kind == "prompts":
        return PromptDataModule(**common, max_prompt_length=arguments.max_length)
    if kind == "sft":
        return SFTDataModule(**common, max_length=arguments.max_length)
    return PreferenceDataModule(**common, max_length=arguments.max_length, kind=cast(Any, kind))


def _kind(files: list[Any]) -> str:
    """What most of the first readable rows are for."""
    votes: Counter[str] = Counter()
    for source in open_sources(files, "train"):
        for row in islice(RowOrder([source]).rows(0), 20):
            try:
                votes.update(_use(record) for record in read_row(row.decode(), row.layout))
            except BadRowError:
                votes["pairs"] += 0
    return max(votes, key=lambda kind: votes[kind]) if votes else "pairs"


def _use(record: Record) -> str:
    if len({response.rank for response in record.responses}) > 1:
        return "pairs"
    if any(response.label is not None for response in record.responses):
        return "unpaired"
    return "sft" if record.responses else "prompts"


def _show_row(console: Console, data: StreamedDataModule, arguments: argparse.Namespace) -> None:
    row = find_row(arguments.row, data.sources(arguments.split))
    console.print_json(json.dumps(row.decode(), default=str))
    for outcome in BatchMaker(data.task()).outcomes([row]):
        if outcome.error is not None:
            console.print(f"lost ({outcome.error.reason}): {outcome.error}", style="red")
        else:
            console.print(_example(outcome, data))


def _panel(report: SourceReport, data: StreamedDataModule) -> Panel:
    """Everything about one source but its examples."""
    lost = sum(loss.num_rows for loss in report.lost.values())
    read = f"all {report.num_rows:,} rows" if report.is_whole else f"a sample of {report.num_rows:,} rows, all over it"
    parts: list[Any] = [Text(f"read            {read}")]
    forms = [f"{form} ({count:,})" for form, count in report.forms.most_common()]
    parts.append(Text("form            " + ("; ".join(forms) or "none")))
    parts.append(Text(f"examples        {report.num_used:,} of use, {lost:,} lost"))
    for name, count in sorted(report.truncated.items()):
        parts.append(Text(f"cut             {count:,} examples lose tokens of the {name}", style="yellow"))
    if report.num_images:
        text = f"pictures        {report.num_images:,}, which a model of text alone does not see"
        parts.append(Text(text, style="yellow"))
    if report.room:
        fill = f"{report.num_tokens / report.room:.0%} of the token budget, at {data.batch_size} rows a step"
        parts.append(Text(f"fill            {fill}"))
    parts.append("")
    parts.append(_lengths(report))
    if report.lost:
        parts += ["", _losses(report)]
    return Panel(Group(*parts), title=report.source.name, title_align="left", box=box.ROUNDED, padding=(1, 2))


def _lengths(report: SourceReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tokens", header_style="bold")
    for percent in _PERCENTILES:
        name = {0: "least", 50: "median", 100: "most"}.get(percent, f"{percent} %")
        table.add_column(name, justify="right", header_style="bold")
    for name, lengths in report.lengths.items():
        ordered = sorted(lengths)
        found = (ordered[round(percent / 100 * (len(ordered) - 1))] for percent in _PERCENTILES)
        table.add_row(name, *(f"{length:,}" for length in found))
    return table


def _losses(report: SourceReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("lost", "rows", "the first"):
        side: Any = "right" if name == "rows" else "left"
        table.add_column(name, header_style="bold red", justify=side, overflow="fold")
    for reason, loss in sorted(report.lost.items(), key=lambda item: -item[1].num_rows):
        table.add_row(reason, f"{loss.num_rows:,}", Text(f"{loss.address}: {loss.message}"))
    return table


def _example(outcome: Outcome, data: StreamedDataModule) -> Group:
    """One example as the model meets it: what is trained on in brackets and green, special tokens visible."""
    form = cast(Record, outcome.record).form
    cut = f", cut: {' and '.join(outcome.tokens.truncated)}" if outcome.tokens.truncated else ""
    lines = [Text.assemble((outcome.row.address, "bold"), f"  {form}{cut}")]
    for piece in pieces(outcome, data):
        trained = sum(piece.trained)
        count = f"{len(piece.tokens)} tokens" + (f", {trained} trained" if trained else "")
        lines.append(Text.assemble((piece.title, "bold cyan"), (f"  {count}", "dim")))
        lines.append(_piece(piece, data))
    return Group(*lines, Text(""))


def _piece(piece: Piece, data: StreamedDataModule) -> Text:
    text = Text()
    start = 0
    for end in range(1, len(piece.tokens) + 1):
        is_trained = piece.trained[start]
        if end < len(piece.tokens) and piece.trained[end] == is_trained:
            continue
        run = visible(data.tokenizer, piece.tokens[start:end])
        style = "trained" if is_trained else "prompt" if piece.title == "prompt" else "untrained"
        brackets = ("\N{LEFT WHITE SQUARE BRACKET}", "\N{RIGHT WHITE SQUARE BRACKET}") if is_trained else ("", "")
        text.append(brackets[0], "bold green")
        for part, is_special in run:
            text.append(part, "bold magenta" if is_special else _STYLES[style])
        text.append(brackets[1], "bold green")
        start = end
    return text
