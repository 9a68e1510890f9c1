"""Talk to what was trained: base, SFT, DPO and PPO side by side on one backbone.

  lit-rlhf chat runs/dpo
  lit-rlhf chat runs/sft runs/dpo runs/ppo --reward runs/reward --feedback mine.jsonl
  lit-rlhf chat runs/dpo < questions.txt

A run is called by the name of its folder; base is the model that they all began from. /help lists what can be asked
for: /use changes who speaks, /compare lets two speak side by side, and /good, /bad and /prefer write rows that training
reads. Away from a terminal each line of stdin is a message, and the answers go to stdout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lit_rlhf.commands.quiet import quieten
from lit_rlhf.commands.speaking import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    arguments.add_voices(parser)
    parser.add_argument("--reward", metavar="RUN", help="reward model that scores every answer")
    parser.add_argument(
        "--feedback",
        metavar="FILE",
        type=Path,
        default=Path("feedback.jsonl"),
        help="JSON lines that /good, /bad and /prefer add to (default feedback.jsonl)",
    )
    parser.add_argument("--system", metavar="TEXT", default="", help="what the system says first")
    arguments.add_drawing(parser)


def run(args: argparse.Namespace) -> None:
    """Talk until the lines end.

    Raises:
        ValueError: if a run does not load, or a number is out of range.
        SystemExit: with status 1 if something went wrong away from a terminal.
    """
    quieten()
    from lit_rlhf.commands.chatting import slash
    from lit_rlhf.commands.chatting.entries import read_entries
    from lit_rlhf.commands.chatting.screen import Screen, use_line_editing
    from lit_rlhf.commands.chatting.session import Session
    from lit_rlhf.commands.speaking.judging import open_judge
    from lit_rlhf.commands.speaking.voices import open_voices

    options = arguments.read_drawing(args)
    voices = open_voices(args)
    judge = open_judge(args.reward, args, voices.backbone) if args.reward else None
    screen = Screen(sys.stdin.isatty() and sys.stdout.isatty())
    session = Session(voices, (next(iter(voices.by_name)),), judge, screen, args.feedback, options)
    session.conversation.system = args.system
    if screen.is_terminal:
        use_line_editing()
        screen.note(f"{', '.join(voices.by_name)}: {session.speaking[0]} speaks. /help lists what can be asked for.")
    if not voices.by_name[session.speaking[0]].reader.has_template:
        screen.note("there is no chat template: the model goes on with each text by itself, and knows of no turns")
    for entry in read_entries(screen.read_line):
        slash.handle(session, entry)
    if screen.has_problem and not screen.is_terminal:
        raise SystemExit(1)
