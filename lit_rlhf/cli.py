"""The command line: ``python -m lit_rlhf COMMAND``, also installed as ``lit-rlhf``.

``fit``, ``validate``, ``test`` and ``predict`` belong to the LightningCLI of :mod:`lit_rlhf.commands.training`; every
other command is a file of :mod:`lit_rlhf.commands`. What a command needs is imported when it is chosen, so that help
comes at once. What a user can mend is told in one line; ``--debug`` or ``LIT_RLHF_DEBUG=1`` shows the whole traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

TRAINING = {
    "fit": "train, and leave a run folder with the adapter, its metrics and its plots",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
    "predict": "write the implicit rewards or the scores of every row",
}
USING = {
    "chat": "talk to finished runs and their base, side by side, and keep what you think of the answers",
    "serve": "answer other programs over HTTP, as OpenAI's API does",
    "generate": "let a finished run answer prompts",
    "score": "score responses with a reward model: files, one text, or as a server",
    "export": "turn a finished run into an adapter folder or a merged Hugging Face model",
}
LOOKING = {
    "preview": "show what training would see of the data, before anything is trained",
    "estimate": "say what memory and time a run will take, before anything is loaded",
    "report": "write the report of a run again, or compare runs on one page",
    "completion": "let bash, zsh or fish complete commands, keys and files",
}
GROUPS = {"to train": TRAINING, "to use what was learnt": USING, "to look": LOOKING}
BESIDE = USING | LOOKING
READING = ("estimate", "preview")
"""Commands that read their words themselves, because most of them may belong to a configuration."""
_HELP = """\
usage: lit-rlhf COMMAND ...

Align a language model with human preferences: from rows to a model that one can talk to.

{}

begin
  lit-rlhf fit --config configs/dpo.yaml            train the embedded default, offline, in minutes
  lit-rlhf chat runs/dpo                            talk to it
  lit-rlhf fit --config configs/dpo.yaml --model.backbone.name_or_path=MODEL --data.train=my_pairs.jsonl

`lit-rlhf COMMAND --help` says more. With every command: --debug shows the traceback of an error; with those that read
configurations: --trust PACKAGE lets them name classes and functions of yours."""
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: the words after ``lit-rlhf``; those of the process where None.

    Raises:
        SystemExit: with status 2 after an error that the user can mend has been printed.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words or os.environ.get("LIT_RLHF_DEBUG", "0") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    if os.getcwd() not in sys.path:  # own rewards and modules, which `python -m` finds and a console script does not
        sys.path.append(os.getcwd())
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns on every import that a CPU has no CUDA kernels
    command, rest = _choose(words)
    try:
        if command in TRAINING and {"-h", "--help"} & {*rest}:
            print(import_module("lit_rlhf.commands.training_help").text(command))  # noqa: T201
            return
        if command in TRAINING or command in READING:
            rest = import_module("lit_rlhf.commands.trust").limit_names(rest)
        if command in TRAINING:
            rest = ["--help" if word == "--help=all" else word for word in rest]
            import_module("lit_rlhf.commands.training").run(command, rest)
        elif command in READING:
            import_module(f"lit_rlhf.commands.{command}").main(rest)
        else:
            _run_beside(command, rest)
    except USER_ERRORS as error:
        if debug:
            raise
        _stop(error)


class _Parser(argparse.ArgumentParser):
    """Refuses a word in one line, without repeating how the command is used."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} ({self.prog} --help says what there is)")


def _choose(words: list[str]) -> tuple[str, list[str]]:
    """Split off the command, or print the help."""
    commands = TRAINING | BESIDE
    if not words or words[0] in ("-h", "--help"):
        groups = (
            "\n".join([title, *(f"  {name:<12}{does}" for name, does in group.items())])
            for title, group in GROUPS.items()
        )
        print(_HELP.format("\n\n".join(groups)))  # noqa: T201
        raise SystemExit(0 if words else 2)
    if words[0] not in commands:
        _stop(ValueError(_unknown(words[0], [*commands])))
    return words[0], words[1:]


def _unknown(word: str, commands: list[str]) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"a configuration follows a command, as in: lit-rlhf fit --config {word}"
    near = get_close_matches(word, commands, n=1)
    advice = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown command '{word}'; {advice}There are: {', '.join(commands)}"


def _run_beside(command: str, words: list[str]) -> None:
    module = import_module(f"lit_rlhf.commands.{command}")
    parser = _Parser(
        prog=f"lit-rlhf {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    module.run(parser.parse_intermixed_args(words))


def _stop(error: Exception) -> NoReturn:
    """Print what is wrong, and the notes that were added to it on the way up."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Caught ") and "\n" in text:  # raised in a worker of a data loader: keep its last line
        text = text.splitlines()[-1].partition(": ")[2]
    notes = vars(error).get("__notes__", [])
    print("\n".join([f"error: {text}", *notes]), file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
