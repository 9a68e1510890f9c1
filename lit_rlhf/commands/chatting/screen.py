"""What is shown: colours and two columns at a terminal, plain lines elsewhere.

Away from a terminal the answers alone go to stdout, so that a script can read them; everything else goes to stderr.
What a model says never reaches the terminal as a control sequence.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import zip_longest
from threading import Event

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_rlhf.commands.chatting.lines import Lines
from lit_rlhf.commands.preview_screen import printable
from lit_rlhf.commands.speaking.judging import Verdict
from lit_rlhf.commands.speaking.prompts import Messages
from lit_rlhf.commands.speaking.voices import Answer, Piece

_YOU = "you"


class Screen:
    """Where a talk is shown.

    Args:
        is_terminal: whether a person reads along and types.

    Attributes:
        has_problem: whether something went wrong, which a script may want to know.
    """

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.has_problem = False
        # Lines are broken between words for a person, and not at all for a script.
        self._out = Console(highlight=False, soft_wrap=not is_terminal)
        self._aside = self._out if is_terminal else Console(highlight=False, soft_wrap=True, stderr=True)

    def read_line(self, goes_on: bool) -> str:
        """The next line that is typed.

        Args:
            goes_on: whether it belongs to the line before.

        Raises:
            EOFError: when there are no more.
        """
        while True:
            try:
                return input(self._label(goes_on) if self.is_terminal else "")
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                self.note("\n(Ctrl-D leaves)")
                goes_on = False

    def note(self, text: str) -> None:
        """Something beside the talk."""
        self._aside.print(Text(text, "dim"))

    def show(self, what: RenderableType) -> None:
        """What was asked for, such as a table."""
        self._out.print(what)

    def problem(self, error: Exception | str) -> None:
        """Something that went wrong, and can be mended."""
        self.has_problem = True
        self._aside.print(Text(f"! {printable(str(error))}", "red"))

    def history(self, messages: Messages) -> None:
        """A conversation."""
        for message in messages:
            role = _YOU if message["role"] == "user" else message["role"]
            self._out.print(Text.assemble((f"{role}> ", "bold"), self._shown(written(message["content"]))))

    def say(self, answers: Mapping[str, Answer]) -> bool:
        """Have answers said while they are shown; Ctrl-C stops them after the token that is being drawn.

        Pressed twice, it stops them at once, as it does everywhere else.

        Args:
            answers: by the name of who says them; one, or two to be shown side by side.

        Returns:
            Whether they were said to their ends.
        """
        with _asked_to_stop() as stop:
            try:
                if self.is_terminal and len(answers) == 2:
                    self._side_by_side(answers, stop)
                else:
                    for number, (name, answer) in enumerate(answers.items(), start=1):
                        if stop.is_set():
                            break
                        is_alone = len(answers) == 1
                        self._one(name if is_alone else f"{number} {name}", answer, is_alone, stop)
            except KeyboardInterrupt:
                self._out.print()
                return False
        return not stop.is_set()

    def verdicts(self, verdicts: Mapping[str, Verdict]) -> None:
        """What the reward model says of answers, by the name of who said them."""
        if len(verdicts) == 1:
            ((name, verdict),) = verdicts.items()
            self.note(f"{' ' * len(name)}  reward {verdict}")
        elif verdicts:
            self.note("reward: " + ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items()))

    def _label(self, goes_on: bool) -> str:
        label = "...> " if goes_on else f"{_YOU}> "
        if self._out.no_color or self._out.color_system is None:
            return label
        return f"\001\033[1;32m\002{label}\001\033[0m\002"  # readline must know what takes no room

    def _shown(self, text: str) -> str:
        """What a model said, as it is where a script reads it."""
        return harmless(text) if self._out.is_terminal else text

    def _one(self, name: str, answer: Answer, is_alone: bool, stop: Event) -> None:
        label = f"{name}> " if self.is_terminal or not is_alone else ""
        self._out.print(Text(label, "bold cyan"), end="")
        lines = Lines(self._out.width, cell_len(label))
        for piece in answer:
            text = self._shown(piece.text)
            self._out.file.write(lines.add(text) if self.is_terminal else text)
            self._out.file.flush()
            if stop.is_set():
                break
        self._out.print()

    def _side_by_side(self, answers: Mapping[str, Answer], stop: Event) -> None:
        """One token of each in turn, so that both can be read as they grow."""
        with Live(_columns(answers), console=self._out, vertical_overflow="visible") as live:
            for _ in zip_longest(*answers.values(), fillvalue=Piece("")):
                live.update(_columns(answers))
                if stop.is_set():
                    break


@contextmanager
def _asked_to_stop() -> Iterator[Event]:
    """An event that Ctrl-C sets, once: an exception might come in the middle of a layer, or be lost in a library."""
    asked = Event()

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def written(content: object) -> str:
    """The content of a message for a person: blocks that are no text by their kind."""
    if isinstance(content, list):
        return " ".join(str(block.get("text") or f"[{block.get('type')}]") for block in content)
    return str(content)


def harmless(text: str) -> str:
    r"""Replace what would move the cursor by its escape; tabs and ends of lines stay.

    Example:
        >>> harmless("a\tb\x1b[31m")
        'a\tb\\x1b[31m'
    """
    return "\t".join(map(printable, text.split("\t")))


def use_line_editing() -> None:
    """Let arrows move within a line and back to earlier ones, where the system can."""
    with suppress(ImportError):
        import readline  # noqa: F401


def _columns(answers: Mapping[str, Answer]) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    for number, name in enumerate(answers, start=1):
        table.add_column(Text(f"{number} {name}", "bold cyan"), ratio=1)
    table.show_header = True
    table.add_row(*(Text(harmless(answer.text)) for answer in answers.values()))
    return table
