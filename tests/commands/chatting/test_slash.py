"""Commands: each does what its line says, and says what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_rlhf.commands.chatting.entries import Entry
from lit_rlhf.commands.chatting.slash import COMMANDS, handle


@pytest.fixture
def typed(capsys):
    """``typed(session, "one", "/undo")``: what is said beside the talk."""

    def type_lines(session, *lines):
        capsys.readouterr()
        for line in lines:
            name, _, rest = line[1:].partition(" ")
            handle(session, Entry(rest, name) if line.startswith("/") else Entry(line))
        said = capsys.readouterr()
        return said.err + said.out

    return type_lines


def rows(session):
    return [json.loads(line) for line in session.feedback.read_text().splitlines()]


def contents(session):
    return [message["content"] for message in session.conversation.messages]


def test_help_names_every_command(talk, typed):
    shown = typed(talk(), "/help")
    for name, command in COMMANDS.items():
        assert f"/{name} {command.usage}".strip() in shown
        assert command.what in " ".join(shown.split())


def test_what_is_taken_back_and_tried_again(talk, typed):
    session = talk()
    typed(session, "one", "two", "/undo")
    assert contents(session) == ["one", "sft 1 10"]
    typed(session, "/retry")
    assert contents(session) == ["one", "sft 1 12"]
    assert "a new conversation" in typed(session, "/new")
    assert contents(session) == []
    assert "nothing has been said yet" in typed(session, "/undo")
    assert "nothing has been asked yet" in typed(session, "/retry")


def test_the_system_speaks_before_a_new_conversation(talk, typed):
    session = talk()
    typed(session, "one", "/system Be brief.", "two")
    assert contents(session) == ["Be brief.", "two", "sft 2 11"]
    shown = typed(session, "/history")
    assert shown.splitlines() == ["system> Be brief.", "you> two", "assistant> sft 2 11"]
    typed(session, "/system")
    assert contents(session) == []


def test_a_saved_conversation_is_a_row_for_sft(talk, typed, tmp_path):
    session = talk()
    assert "something that was said" in typed(session, f"/save {tmp_path / 'a.jsonl'}")
    typed(session, "one", f"/save {tmp_path / 'a.jsonl'}")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"messages": session.conversation.messages}


def test_a_picture_is_shown_with_the_next_message_alone_and_kept_whole(talk, typed, tmp_path):
    session, file = talk(), tmp_path / "a.png"
    file.write_bytes(b"picture")
    assert "sft reads text alone" in typed(session, f"/image {file}")
    session.voices.by_name["sft"].sees = True
    assert "shows 1 of them, a.png the last" in typed(session, f"/image {file}")
    typed(session, "What is this?", "And why?", "/good")
    assert contents(session)[0] == [
        {"type": "image", "image": "data:image/png;base64,cGljdHVyZQ=="},
        {"type": "text", "text": "What is this?"},
    ]
    assert contents(session)[2] == "And why?"
    assert rows(session)[0]["prompt"][0]["content"] == contents(session)[0]
    assert "No such file" in typed(session, "/image nowhere.png")
    typed(session, f"/image {file}", "/new", "Hi")
    assert contents(session)[0] == "Hi"


def test_who_speaks(talk, typed):
    session = talk()
    assert "sft speaks, of sft, dpo, base" in typed(session, "/use")
    assert "dpo and base speak, of" in typed(session, "/compare dpo base", "/use")
    typed(session, "/use dpo", "one")
    assert contents(session)[-1] == "dpo 1 10"
    assert "there is no 'dop': did you mean dpo?" in typed(session, "/use dop")
    assert session.speaking == ("dpo",)


@pytest.mark.parametrize("text", ["", "sft", "sft sft", "sft dpo base"])
def test_a_comparison_needs_two(text, talk, typed):
    session = talk()
    assert "/compare needs two of sft, dpo, base" in typed(session, f"/compare {text}")
    assert session.speaking == ("sft",)


@pytest.mark.parametrize(("choice", "better", "worse"), [("1", "dpo", "base"), ("2", "base", "dpo")])
def test_the_better_of_two_becomes_a_row_and_goes_on(choice, better, worse, talk, typed):
    session = talk()
    typed(session, "zero", "/compare dpo base", "one", f"/prefer {choice}")
    (row,) = rows(session)
    assert row["prompt"] == session.conversation.messages[:-1]
    assert row["chosen"] == [{"role": "assistant", "content": f"{better} 3 11"}]
    assert row["rejected"] == [{"role": "assistant", "content": f"{worse} 3 11"}]
    assert (row["chosen_by"], row["rejected_by"]) == (better, worse)
    assert contents(session)[-1] == f"{better} 3 11"
    assert "no two answers" in typed(session, f"/prefer {choice}")
    assert len(rows(session)) == 1


def test_a_choice_that_says_nothing_is_refused(talk, typed):
    session = talk()
    assert "no two answers to choose from: /compare sft dpo" in typed(session, "one", "/prefer 1")
    assert "say 1 (dpo) or 2 (base)" in typed(session, "/compare dpo base", "/retry", "/prefer 3")
    for name in ("dpo", "base"):
        session.voices.by_name[name].next = ["same"]
    assert "both said the same" in typed(session, "/retry", "/prefer 1")
    assert not session.feedback.exists()


@pytest.mark.parametrize(("command", "label"), [("/good", True), ("/bad", False)])
@pytest.mark.parametrize("has_template", [True, False])
def test_a_thumb_becomes_a_row_once(command, label, has_template, talk, typed):
    session = talk(has_template)
    assert f"added to {session.feedback}" in typed(session, "one", command)
    (row,) = rows(session)
    words = [{"role": "assistant", "content": "sft 1 10"}] if has_template else "sft 1 10"
    assert (row["completion"], row["label"], row["completion_by"]) == (words, label, "sft")
    assert row["prompt"] == ([{"role": "user", "content": "one"}] if has_template else "one")
    assert "no answer that is not judged yet" in typed(session, command)


@pytest.mark.parametrize("said", [["he", KeyboardInterrupt()], [" "]])
def test_of_an_answer_that_is_not_one_nothing_is_learnt(said, talk, typed):
    session = talk()
    session.voices.by_name["sft"].next = said
    assert "was stopped or is empty" in typed(session, "one", "/bad")
    assert not session.feedback.exists()


def test_numbers_are_set(talk, typed):
    session = talk()
    typed(session, "zero", "/set temperature 0.7", "/set seed 3", "/set top_p 0.5", "/set max_new_tokens 9", "one")
    _, options = session.voices.by_name["sft"].asked[-1]
    assert (options.temperature, options.seed, options.top_p, options.max_new_tokens) == (0.7, 3, 0.5, 9)
    assert "temperature 0.7, top_p 0.5, max_new_tokens 9, seed 3" in typed(session, "/set")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temper 1", "there is no 'temper' to set: did you mean temperature?"),
        ("seed much", "seed is 'much'; it must be a number, such as /set seed 1"),
        ("temperature", "temperature is ''; it must be a number"),
        ("top_p 2", "top_p is 2"),
    ],
)
def test_numbers_that_are_none_are_refused(words, message, talk, typed):
    session = talk()
    before = session.options
    assert message in typed(session, f"/set {words}")
    assert session.options == before


def test_what_is_not_known_or_goes_wrong_is_said_and_the_talk_goes_on(talk, typed, tmp_path):
    session = talk()
    assert "there is no /hlp: did you mean help?" in typed(session, "/hlp")
    assert session.screen.has_problem
    session.feedback = tmp_path
    assert "mine" not in typed(session, "one", "/good", "two")
    assert contents(session)[-1].startswith("sft 3")


def test_the_page_has_the_same_list():
    page = (Path(__file__).parents[3] / "docs" / "chat.md").read_text(encoding="utf-8").replace("\\|", "|")
    listed = [f"| `{f'/{name} {command.usage}'.strip()}` | {command.what} |" for name, command in COMMANDS.items()]
    assert [line for line in listed if line not in page.splitlines()] == []
