"""A talk: what the model is asked, what becomes of its answers, and what is remarked on them."""

from __future__ import annotations

import pytest


def contents(session):
    return [message["content"] for message in session.conversation.messages]


def test_a_model_is_asked_all_that_was_said_each_time_with_other_draws(talk, capsys):
    session = talk()
    session.conversation.system = "Be brief."
    session.ask("one")
    session.ask("two")
    assert contents(session) == ["Be brief.", "one", "sft 2 10", "two", "sft 4 11"]
    assert capsys.readouterr().out == "sft 2 10\nsft 4 11\n"
    assert [reply.prompt[-1]["content"] for reply in session.replies] == ["two"]
    session.begin()
    assert contents(session) == ["Be brief."]


def test_two_answer_the_same_with_the_same_draws_and_the_first_goes_on(talk, capsys):
    session = talk(is_judged=True)
    session.speaking = "dpo", "base"
    session.ask("one")
    assert contents(session) == ["one", "dpo 1 10"]
    assert [reply.voice for reply in session.replies] == ["dpo", "base"]
    said = capsys.readouterr()
    assert said.out == "1 dpo> dpo 1 10\n2 base> base 1 10\n"
    assert "reward: dpo 8.00, base 9.00" in said.err


def test_without_a_template_only_the_last_words_are_gone_on_with(talk):
    session = talk(has_template=False)
    session.ask("one")
    session.ask("two")
    assert [prompt for prompt, _ in session.voices.by_name["sft"].asked] == ["one", "two"]
    assert session.replies[0].prompt == "two"


@pytest.mark.parametrize("said", [["he", KeyboardInterrupt()], [KeyboardInterrupt()]])
def test_a_stopped_answer_stays_as_far_as_it_came(said, talk, capsys):
    session = talk(is_judged=True)
    session.voices.by_name["sft"].next = said
    session.ask("one")
    assert contents(session) == ["one", *said[:-1]]
    assert not session.replies[0].is_whole
    shown = capsys.readouterr().err
    assert "stopped" in shown
    assert "reward" not in shown
    session.voices.by_name["sft"].next = None
    session.ask("two")
    assert contents(session)[-2:] == ["two", f"sft {1 + 2 * len(said[:-1])} 11"]


def test_what_answers_do_not_show_is_said(talk, capsys):
    session = talk()
    voice = session.voices.by_name["sft"]
    session.ask("zero")
    assert capsys.readouterr().err == ""
    voice.end, voice.num_left = "length", 2
    session.ask("one")
    shown = capsys.readouterr().err
    assert "the 2 oldest messages no longer fit the model" in shown
    assert "cut off after 2 tokens" in shown
    assert [message["content"] for message in session.replies[0].prompt] == ["one"]  # as the model saw it
