"""What follows a slash. A new command is one function and one line of the table."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.table import Table
from rich.text import Text

from lit_rlhf.commands.chatting.entries import Entry, nearest
from lit_rlhf.commands.chatting.feedback import append_row, pair_row, thumb_row
from lit_rlhf.commands.chatting.session import Reply, Session

_NUMBERS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_p": float,
    "max_new_tokens": int,
    "seed": int,
}


class Command(NamedTuple):
    """Something that can be asked for.

    Args:
        run: does it, with what follows its name.
        usage: what follows its name.
        what: it does, in a few words.
    """

    run: Callable[[Session, str], None]
    usage: str
    what: str


def handle(session: Session, entry: Entry) -> None:
    """Do what an entry asks for; what goes wrong is said, and the talk goes on."""
    try:
        if entry.command is None:
            session.ask(entry.text)
        elif entry.command in COMMANDS:
            COMMANDS[entry.command].run(session, entry.text)
        else:
            session.screen.problem(f"there is no /{entry.command}: {nearest(entry.command, list(COMMANDS))}")
    except (ValueError, OSError, FloatingPointError) as error:
        session.screen.problem(error)


def show_help(session: Session, _: str) -> None:
    """Show the commands."""
    table = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"/{name} {command.usage}", "bold"), command.what)
    session.screen.show(table)
    session.screen.note('A line that ends in \\ goes on; """ begins and ends text of several lines.')
    session.screen.note("Ctrl-C stops an answer, Ctrl-D leaves.")


def set_system(session: Session, text: str) -> None:
    """Set what the system says, and begin anew."""
    session.conversation.system = text
    session.begin()
    session.screen.note("a new conversation, " + ("with this before it" if text else "with nothing before it"))


def begin(session: Session, _: str) -> None:
    """Begin anew."""
    session.begin()
    session.screen.note("a new conversation")


def undo(session: Session, _: str) -> None:
    """Take the last question and its answer back."""
    if not session.conversation.undo():
        raise ValueError("nothing has been said yet")
    session.replies = []
    session.screen.note(f"taken back; {len(session.conversation.turns)} messages are left")


def retry(session: Session, _: str) -> None:
    """Answer the last question anew."""
    if not session.conversation.forget_answer():
        raise ValueError("nothing has been asked yet")
    session.answer()


def show_image(session: Session, text: str) -> None:
    """Show a picture with the next message; it is kept whole, so that feedback needs no file beside it."""
    for name in session.speaking:
        reader = session.voices.by_name[name].reader
        if not reader.sees or not reader.has_template:
            raise ValueError(f"{name} reads text alone: its run holds no processor of pictures, or no chat template")
    content = base64.b64encode(Path(text).expanduser().read_bytes()).decode()
    session.pictures.append(f"data:{mimetypes.guess_type(text)[0] or 'image/png'};base64,{content}")
    session.screen.note(f"the next message shows {len(session.pictures)} of them, {Path(text).name} the last")


def show_history(session: Session, _: str) -> None:
    """Show what was said."""
    session.screen.history(session.conversation.messages)


def save(session: Session, text: str) -> None:
    """Add the conversation to a file."""
    if not text or not session.conversation.turns:
        raise ValueError("/save needs the name of a file, and something that was said")
    append_row(Path(text), {"messages": session.conversation.messages})
    session.screen.note(f"added to {text}, a row for SFT")


def use(session: Session, text: str) -> None:
    """Change who speaks."""
    if text:
        session.speaking = (_voice(session, text),)
    verb = "speaks" if len(session.speaking) == 1 else "speak"
    session.screen.note(f"{' and '.join(session.speaking)} {verb}, of {', '.join(session.voices.by_name)}")


def compare(session: Session, text: str) -> None:
    """Let two speak side by side."""
    names = text.split()
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"/compare needs two of {', '.join(session.voices.by_name)}, such as {_two(session)}")
    session.speaking = _voice(session, names[0]), _voice(session, names[1])
    session.screen.note(
        "both answer from here on (/retry: the last question, too); /prefer 1 or /prefer 2 says who won"
    )


def set_number(session: Session, text: str) -> None:
    """Change how answers are drawn."""
    name, _, value = text.partition(" ")
    if name and name not in _NUMBERS:
        raise ValueError(f"there is no {name!r} to set: {nearest(name, list(_NUMBERS))}")
    if name:
        try:
            number = _NUMBERS[name](value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}; it must be a number, such as /set {name} 1") from None
        session.options = replace(session.options, **{name: cast(Any, number)})
        session.num_drawn = 0
    session.screen.note(", ".join(f"{name} {value:g}" for name, value in asdict(session.options).items()))


def judge(is_good: bool) -> Callable[[Session, str], None]:
    """A command that gives the last answer a thumb."""

    def run(session: Session, _: str) -> None:
        reply = _judgeable(session)[0]
        session.keep(thumb_row(reply.prompt, reply.text, is_good=is_good, voice=reply.voice))
        session.replies = []

    return run


def prefer(session: Session, text: str) -> None:
    """Say which of two answers is better, and go on with it."""
    if len(session.replies) != 2:
        raise ValueError(f"there are no two answers to choose from: /compare {_two(session)}, then ask")
    replies = _judgeable(session)
    if text not in ("1", "2"):
        raise ValueError(f"/prefer {text}: say 1 ({replies[0].voice}) or 2 ({replies[1].voice})")
    better, worse = replies if text == "1" else replies[::-1]
    if better.text.strip() == worse.text.strip():
        raise ValueError("both said the same, so there is nothing to learn from it")
    session.keep(pair_row(better.prompt, better.text, worse.text, voices=(better.voice, worse.voice)))
    session.conversation.answer(better.text)
    session.replies = []


def _judgeable(session: Session) -> list[Reply]:
    """The last answers, if a row can be made of them."""
    if not session.replies:
        raise ValueError("there is no answer that is not judged yet")
    for reply in session.replies:
        if not reply.is_whole or not reply.text.strip():
            raise ValueError("the answer was stopped or is empty, so nothing can be learnt from it: /retry")
    return session.replies


def _voice(session: Session, name: str) -> str:
    known = list(session.voices.by_name)
    if name not in known:
        raise ValueError(f"there is no {name!r}: {nearest(name, known)}")
    return name


def _two(session: Session) -> str:
    return " ".join(list(session.voices.by_name)[:2])


COMMANDS = {
    "help": Command(show_help, "", "this list"),
    "system": Command(set_system, "TEXT", "what the system says, in a new conversation; without TEXT nothing"),
    "new": Command(begin, "", "a new conversation"),
    "undo": Command(undo, "", "take the last question and its answer back"),
    "retry": Command(retry, "", "answer the last question anew"),
    "image": Command(show_image, "PATH", "show a picture with the next message, to a model that sees"),
    "history": Command(show_history, "", "what has been said"),
    "save": Command(save, "FILE", "add the conversation to a file of JSON lines, as a row for SFT"),
    "use": Command(use, "NAME", "who speaks; without NAME, who can"),
    "compare": Command(compare, "A B", "two speak, side by side"),
    "prefer": Command(prefer, "1|2", "the better of two answers: a row of preferences; the talk goes on with it"),
    "good": Command(judge(True), "", "a thumb up for the last answer: a row of feedback"),
    "bad": Command(judge(False), "", "a thumb down"),
    "set": Command(set_number, "NAME VALUE", f"{', '.join(_NUMBERS)}; without NAME, what they are"),
}
