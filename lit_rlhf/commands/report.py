"""Write the report of a run again, or compare runs on one page.

One run: its curves, spreads, samples, settings and files, in report.html in its folder. Several: their curves over one
another, final numbers, the settings that differ, and their answers to the same prompts, in comparison.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_rlhf.reports.comparison import write_comparison
from lit_rlhf.reports.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; report.html in RUN, or comparison.html")
    parser.add_argument(
        "--tables", type=Path, metavar="FILE", help="JSON with tables that a comparison begins with (docs/report.md)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the page and say where it is.

    Raises:
        ValueError: for a folder without a run, or tables that are none.
    """
    if len(args.runs) == 1 and args.tables is None:
        page = write_report(args.runs[0], args.out)
    else:
        page = write_comparison(args.runs, args.out or Path("comparison.html"), args.tables)
    print(page)  # noqa: T201
