"""Turns come in twos, and go as they came."""

from __future__ import annotations

from lit_rlhf.commands.chatting.conversation import Conversation


def roles(conversation):
    return [message["role"] for message in conversation.messages]


def test_questions_and_answers_take_turns():
    talk = Conversation()
    talk.ask("a")
    talk.ask("b")  # nobody answered the first
    assert [message["content"] for message in talk.messages] == ["b"]
    talk.answer("c")
    talk.answer("d")
    talk.system = "Be brief."
    assert [message["content"] for message in talk.messages] == ["Be brief.", "b", "d"]
    assert roles(talk) == ["system", "user", "assistant"]


def test_undo_takes_the_last_question_with_its_answer():
    talk = Conversation()
    assert not talk.undo()
    for text in ("a", "b"):
        talk.ask(text)
        talk.answer(text)
    assert talk.undo()
    talk.ask("c")
    assert roles(talk) == ["user", "assistant", "user"]
    assert talk.undo()
    assert talk.undo()
    assert talk.messages == []


def test_an_answer_is_forgotten_and_its_question_stays():
    talk = Conversation()
    assert not talk.forget_answer()
    talk.ask("a")
    talk.answer("b")
    assert talk.forget_answer()
    assert talk.forget_answer()
    assert roles(talk) == ["user"]
