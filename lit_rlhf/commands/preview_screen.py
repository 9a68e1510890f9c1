"""What ``preview`` prints: one panel per source, a few examples, and what an epoch will be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count, groupby
from typing import cast

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from datamodules.inspection import Piece, SourceReport, pieces, visible
from datamodules.making import Outcome
from datamodules.pictures import SeenPicture
from datamodules.prompt import PromptDataModule
from datamodules.records import Record
from datamodules.streamed import StreamedDataModule

OPEN, CLOSE = "\N{LEFT WHITE SQUARE BRACKET}", "\N{RIGHT WHITE SQUARE BRACKET}"
"""What stands around trained tokens, so that they show without colours."""

_PERCENTILES = {0: "least", 50: "median", 90: "90 %", 99: "99 %", 100: "most"}
_ENDS = 150  # tokens shown of each end of a long piece
_DIGEST = 8  # letters of a picture's digest
_GOOD_FILL = 0.8
_SHOWN_AS_THEY_ARE = (
    "\n\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # the latter two are part of how words are spelt
)


def source_panel(report: SourceReport, data: StreamedDataModule) -> Panel:
    """Everything about one source but its examples.

    Args:
        report: what was seen of it.
        data: the data module that would train on it.
    """
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold", no_wrap=True)
    for label, style, say in _FACTS:
        if text := say(report, data):
            lines.add_row(label, Text(text, style))
    parts: list[RenderableType] = [lines]
    if report.lengths:
        parts += ["", _lengths(report)]
    if report.lost:
        parts += ["", _losses(report, data)]
    title = Text(printable(report.source.name))
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1))


def epoch_table(reports: Sequence[SourceReport], data: StreamedDataModule, split: str) -> RenderableType:
    """How many rows and steps an epoch has, and what share of it each source has.

    Args:
        reports: of all sources.
        data: the data module that would train on them.
        split: which part of the data they are.
    """
    is_weighted = split == "train" and data.shuffle_buffer > 0
    weights = [report.source.weight if is_weighted else 1.0 for report in reports]
    if any(report.sample.num_rows is None for report in reports):
        return Text("an epoch: nobody knows how many rows, until it is over")
    rows = [weight * (report.sample.num_rows or 0) for weight, report in zip(weights, reports, strict=True)]
    is_estimate = not all(report.sample.is_exact for report in reports)
    steps = math.ceil(round(sum(rows)) / data.batch_size)
    line = Text(
        f"an epoch: {_number(steps, is_estimate)} step{'s' * (steps != 1)} of {_counted(data.batch_size, 'row')}"
    )
    if len(reports) == 1 and weights == [1.0]:
        return line
    per_row = [report.num_tokens / max(1, len(report.sample.rows)) for report in reports]
    tokens = [number * length for number, length in zip(rows, per_row, strict=True)]
    table = Table(box=None, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("weight", "rows in an epoch", "share", "share of tokens"):
        table.add_column(name, justify="right")
    for report, weight, number, length in zip(reports, weights, rows, tokens, strict=True):
        shares = _share(number, sum(rows)), _share(length, sum(tokens))
        shown = Text(printable(report.source.name))
        table.add_row(shown, f"{weight:g}", _number(round(number), not report.sample.is_exact), *shares)
    return Group(table, "", line)


def example(outcome: Outcome, data: StreamedDataModule, is_whole: bool = False) -> Group:
    """One example as a model meets it: what is trained on (or judged) in brackets and green, special tokens visible.

    Args:
        outcome: an example that is not lost.
        data: the data module that would train on it.
        is_whole: whether to show all of it; else the middle of long parts is left out.
    """
    form = cast(Record, outcome.record).form
    cut = f", cut: {' and '.join(outcome.tokens.truncated)}" if outcome.tokens.truncated else ""
    parts = [Text.assemble((printable(outcome.row.address), "bold"), f"  {form}{cut}")]
    parts += map(_picture, count(1), outcome.tokens.pictures)
    for piece in pieces(outcome, data.task()):
        num_marked, number = sum(piece.trained), len(piece.tokens)
        marked = f", {'all' if num_marked == number else f'{num_marked:,}'} {data.marked}" if num_marked else ""
        parts.append(Text.assemble((piece.title, "bold cyan"), (f"  {_counted(number, 'token')}{marked}", "dim")))
        parts.append(_shortened(piece, data, number if is_whole else _ENDS))
    return Group(*parts, "")


def printable(text: str) -> str:
    r"""Replace what would move the cursor, turn the direction of writing or not show at all, by its escape.

    Args:
        text: anything that a file may hold.

    Example:
        >>> printable("a\tb\x1b[31m")
        'a\\tb\\x1b[31m'
    """
    if text.isprintable():
        return text
    escaped = (char.encode("unicode_escape").decode() for char in text)
    shown = zip(text, escaped, strict=True)
    return "".join(char if char.isprintable() or char in _SHOWN_AS_THEY_ARE else escape for char, escape in shown)


def _rows(report: SourceReport, data: StreamedDataModule) -> str:
    number, sample = len(report.sample.rows), report.sample
    if sample.is_whole:
        return f"{number:,}, all read" if number else "none"
    of = "an unknown number" if sample.num_rows is None else _number(sample.num_rows, not sample.is_exact)
    return f"the first {number:,} of {of}" if sample.is_beginning else f"{number:,} of {of}, from all over it"


def _form(report: SourceReport, data: StreamedDataModule) -> str:
    return "; ".join(f"{form} ({count:,})" for form, count in report.forms.most_common())


def _use(report: SourceReport, data: StreamedDataModule) -> str:
    counted = f", as {report.num_counted:,} {data.examples}" if report.num_counted != report.num_used else ""
    found = f"{_counted(report.num_found, 'example')} ({_share(report.num_used, report.num_found)})"
    return f"{report.num_used:,} of {found}{counted}" if report.num_found else ""


def _lost(report: SourceReport, data: StreamedDataModule) -> str:
    share = _share(report.num_lost, report.num_found)
    return f"{_counted(report.num_lost, 'example')} ({share}), listed below" if report.lost else ""


def _too_long(report: SourceReport, data: StreamedDataModule) -> str:
    """How many examples exceed the limit, and what limit would do."""
    name, part = ("max_prompt_length", "prompt") if isinstance(data, PromptDataModule) else ("max_length", "whole")
    lengths, limit = sorted(report.lengths.get(part, [])), vars(data).get(name, math.inf)
    number = sum(length > limit for length in lengths)
    if not number:
        return ""
    nearly_all, most = _percentile(lengths, 99), lengths[-1]
    would_do = f"{nearly_all:,} would do for 99 %, {most:,}" if limit < nearly_all < most else f"{most:,} would do"
    said = f"{_counted(number, 'example')} ({_share(number, len(lengths))})"
    return f"{said} for {name} {limit:,}; {would_do} for all"


def _cut(report: SourceReport, data: StreamedDataModule) -> str:
    return " and ".join(f"the {part} of {count:,}" for part, count in sorted(report.truncated.items()))


def _repeated(report: SourceReport, data: StreamedDataModule) -> str:
    number = report.num_repeated
    return (
        f"{_counted(number, 'example')} ({_share(number, report.num_used)}) with the tokens of an earlier one"
        if number
        else ""
    )


def _endless(report: SourceReport, data: StreamedDataModule) -> str:
    number = report.num_endless
    said = f"{_counted(number, 'example')} ({_share(number, report.num_used)}) without a stop token at the end"
    return f"{said}: who learns from them does not learn to stop" if number else ""


def _pictures(report: SourceReport, data: StreamedDataModule) -> str:
    """How many there are, and how many tokens each takes."""
    if not report.num_images:
        return ""
    if not report.image_tokens:
        return f"{report.num_images:,}, none of which the model sees"
    least, most = min(report.image_tokens), max(report.image_tokens)
    each = _counted(least, "token") if least == most else f"{least:,} to {most:,} tokens"
    seen = f"{len(report.image_tokens):,} seen, {len(report.images):,} different"
    return f"{report.num_images:,}, {seen}; {each} each"


def _chosen(report: SourceReport, data: StreamedDataModule) -> str:
    share = _share(report.num_chosen_longer, report.num_pairs)
    return f"longer than rejected in {share} of pairs" if report.num_pairs else ""


def _step(report: SourceReport, data: StreamedDataModule) -> str:
    """What an optimizer step computes, and whether its micro-batches leave much room."""
    if not report.steps:
        return ""
    tokens, micro_batches = (sum(column) / len(report.steps) for column in zip(*report.steps, strict=True))
    budget = vars(data)["token_budget"]
    num_rows = min(data.batch_size, len(report.sample.rows))
    said = f"{_counted(num_rows, 'row')}, {_counted(round(tokens), 'token')}"
    if micro_batches == 1:
        return f"{said}: one micro-batch, as token_budget {budget:,} allows"
    fill = tokens / micro_batches / budget
    advice = "; a larger token_budget or batch_size fills them better" if fill < _GOOD_FILL else ""
    return f"{said}: {micro_batches:.1f} micro-batches, {_share(fill, 1)} of token_budget {budget:,}{advice}"


# What is said of a source, in order: label, style, and a function that gives the text, empty where all is well.
_FACTS: tuple[tuple[str, str, Callable[[SourceReport, StreamedDataModule], str]], ...] = (
    ("rows", "", _rows),
    ("form", "", _form),
    ("of use", "", _use),
    ("lost", "red", _lost),
    ("too long", "yellow", _too_long),
    ("cut", "yellow", _cut),
    ("repeated", "yellow", _repeated),
    ("endless", "yellow", _endless),
    ("pictures", "yellow", _pictures),
    ("chosen", "", _chosen),
    ("a step", "", _step),
)


def _lengths(report: SourceReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tokens", header_style="bold")
    for name in _PERCENTILES.values():
        table.add_column(name, justify="right", header_style="bold")
    for part, lengths in report.lengths.items():
        table.add_row(part, *(f"{_percentile(sorted(lengths), percent):,}" for percent in _PERCENTILES))
    return table


def _losses(report: SourceReport, data: StreamedDataModule) -> Group:
    """Why examples are lost, and what that would mean for training."""
    table = Table(box=None, pad_edge=False)
    table.add_column("lost", header_style="bold red", no_wrap=True)
    table.add_column("number", header_style="bold red", justify="right")
    table.add_column("the first", header_style="bold red", overflow="fold")
    losses = sorted(report.lost.items(), key=lambda item: -item[1].number)
    for reason, loss in losses:
        table.add_row(reason, f"{loss.number:,}", Text(printable(f"{loss.address}: {loss.message}")))
    if data.on_bad_row == "drop" or all(loss.is_length for _, loss in losses):
        return Group(table)
    stops = ", ".join(reason for reason, loss in losses if not loss.is_length)
    return Group(table, "", Text(f"training would stop at {stops}; on_bad_row drop leaves such rows out", "red"))


def _picture(number: int, seen: SeenPicture) -> Text:
    """A picture in a line: its size, what it takes, and by what to tell it from others."""
    width, height = seen.size
    digest = seen.picture.digest[:_DIGEST]
    said = f"  {width:,} x {height:,} pixels, {_counted(seen.picture.num_tokens, 'token')}, {digest}"
    frames = ", of which only the first frame is seen" if seen.is_moving else ""
    return Text.assemble((f"picture {number}", "bold cyan"), (said + frames, "dim"))


def _shortened(piece: Piece, data: StreamedDataModule, num_ends: int) -> Text:
    """A piece, or both of its ends if the middle is long."""
    left_out = len(piece.tokens) - 2 * num_ends
    if left_out <= 0:
        return _piece(piece, data)
    start, end = (
        _piece(Piece(piece.title, piece.tokens[side], piece.trained[side]), data)
        for side in (slice(num_ends), slice(-num_ends, None))
    )
    return Text.assemble(start, (f"\n... {left_out:,} tokens, which --row shows ...\n", "dim"), end)


def _piece(piece: Piece, data: StreamedDataModule) -> Text:
    text = Text()
    start = 0
    for is_trained, run in groupby(piece.trained):
        end = start + len(list(run))
        style = "green" if is_trained else "dim" if piece.title == "prompt" else "yellow"
        text.append(OPEN if is_trained else "", "bold green")
        for part, is_special in visible(data.tokenizer, piece.tokens[start:end]):
            text.append(printable(part), "bold magenta" if is_special else style)
        text.append(CLOSE if is_trained else "", "bold green")
        start = end
    return text


def _percentile(ordered: Sequence[int], percent: int) -> int:
    """The least number that at least ``percent`` of all do not exceed."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _share(part: float, whole: float) -> str:
    """A percentage that is never rounded to all or nothing."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1 %"
    if 99.9 < percent < 100:
        return "over 99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.1f} %"


def _number(number: int, is_estimate: bool) -> str:
    """A number, to two digits if it is an estimate."""
    return f"about {round(number, 2 - len(str(number))):,}" if is_estimate else f"{number:,}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
