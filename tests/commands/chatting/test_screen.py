"""What is shown at a terminal and away from one."""

from __future__ import annotations

import builtins
import io
import signal

import pytest
from rich.console import Console

from lit_rlhf.commands.chatting.screen import Screen, use_line_editing, written
from lit_rlhf.commands.speaking.judging import Verdict


@pytest.fixture
def terminal():
    """A screen of 60 columns, and what it was told to show."""
    screen, out = Screen(True), io.StringIO()
    screen._out = screen._aside = Console(
        file=out, force_terminal=True, width=60, color_system="standard", soft_wrap=True
    )
    return screen, out


def test_away_from_a_terminal_answers_alone_are_on_stdout(spoken_answer, capsys):
    screen = Screen(False)
    screen.note("a note")
    screen.problem("a problem")
    assert screen.say({"sft": spoken_answer(["He", "llo\n", "you"])})
    screen.verdicts({"sft": Verdict(1.0)})
    said = capsys.readouterr()
    assert said.out == "Hello\nyou\n"
    assert [line.strip() for line in said.err.splitlines()] == ["a note", "! a problem", "reward 1.00"]
    assert screen.has_problem


def test_no_answer_moves_the_cursor(terminal, spoken_answer, capsys):
    Screen(False).say({"sft": spoken_answer(["\x1b[2J[red]\x07"])})
    assert capsys.readouterr().out == "\x1b[2J[red]\x07\n"  # a script gets what was said
    screen, out = terminal
    screen.say({"sft": spoken_answer(["\x1b[2J"])})
    screen.say({"sft": spoken_answer(["\x1b]0;x\x07"]), "dpo": spoken_answer(["\x1b[2J"])})
    screen.history([{"role": "user", "content": "\x1b[2J"}])
    screen.problem("\x1b[2J")
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]0;" not in out.getvalue()


def test_at_a_terminal_the_speaker_is_named(terminal, spoken_answer):
    screen, out = terminal
    screen.say({"sft": spoken_answer(["Hello"])})
    assert "sft> " in out.getvalue()
    assert "Hello" in out.getvalue()


def test_lines_are_broken_between_words_for_a_person_alone(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    for is_terminal, lines in (
        (True, ["a word that", "cannotbebrokenas is", "here"]),
        (False, ["a word that cannotbebrokenas is here"]),
    ):
        Screen(is_terminal).note("a word that cannotbebrokenas is here")
        said = capsys.readouterr()
        assert [line.strip() for line in (said.out + said.err).splitlines()] == lines


def test_two_stand_side_by_side_to_the_longer_end(terminal, spoken_answer):
    screen, out = terminal
    assert screen.say({"sft": spoken_answer(["short"]), "dpo": spoken_answer(["long", "er ", "one"])})
    last = [line for line in out.getvalue().splitlines() if "short" in line][-1]
    assert last.index("short") < 30 <= last.index("longer one")
    assert "1 sft" in out.getvalue()
    assert "2 dpo" in out.getvalue()


@pytest.mark.parametrize("names", [("sft",), ("sft", "dpo")])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_ctrl_c_stops_the_answer_behind_its_token(names, is_terminal, terminal, spoken_answer):
    screen, out = terminal
    screen.is_terminal = is_terminal
    before = signal.getsignal(signal.SIGINT)
    first, *others = names
    answers = {first: spoken_answer(["begun", signal.SIGINT, " and", " never said"])}
    answers |= {name: spoken_answer(["too", " long", " never said"]) for name in others}
    assert not screen.say(answers)
    assert "begun and" in out.getvalue()
    assert "never" not in out.getvalue()
    assert signal.getsignal(signal.SIGINT) is before
    assert screen.say({"sft": spoken_answer(["next"])})


@pytest.mark.parametrize("names", [("sft",), ("sft", "dpo")])
def test_pressed_twice_it_stops_at_once(names, terminal, spoken_answer):
    screen, out = terminal
    said = ["begun", signal.SIGINT, signal.SIGINT, "never"]
    assert not screen.say({name: spoken_answer(said) for name in names})
    assert "never" not in out.getvalue()


def test_ctrl_c_at_the_prompt_forgets_the_line_and_ctrl_d_leaves(terminal, monkeypatch):
    screen, out = terminal
    events = iter([KeyboardInterrupt(), "hello", EOFError()])
    labels = []

    def typed(label):
        labels.append(label)
        event = next(events)
        if isinstance(event, BaseException):
            raise event
        return event

    monkeypatch.setattr(builtins, "input", typed)
    assert screen.read_line(True) == "hello"
    assert "Ctrl-D leaves" in out.getvalue()
    assert ["...> " in label for label in labels] == [True, False]
    with pytest.raises(EOFError):
        screen.read_line(False)


def test_colours_of_the_label_are_left_out_where_there_are_none(terminal, monkeypatch):
    screen, _ = terminal
    labels = []
    monkeypatch.setattr(builtins, "input", lambda label: labels.append(label) or "x")
    screen.read_line(False)
    screen._out = Console(no_color=True)
    screen.read_line(False)
    Screen(False).read_line(False)
    assert "\033" in labels[0]
    assert labels[1:] == ["you> ", ""]


def test_contents_for_a_person():
    assert written("plain") == "plain"
    assert written([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]) == "[image] What?"


def test_line_editing_is_asked_for_where_there_is_any(monkeypatch):
    use_line_editing()
    monkeypatch.setitem(__import__("sys").modules, "readline", None)
    use_line_editing()
