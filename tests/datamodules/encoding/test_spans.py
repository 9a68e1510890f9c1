"""Turns are found where the template put them."""

from __future__ import annotations

from datamodules.encoding.rendering import ChatRenderer
from datamodules.encoding.spans import Turn, TurnFinder
from datamodules.encoding.tokenizers import TextTokenizer
from datamodules.records import Record

USER, ANSWER = {"role": "user", "content": "q "}, {"role": "assistant", "content": " a\n"}


class Counting(ChatRenderer):
    """Counts how often it renders."""

    count = 0

    def render(self, *args, **options):
        self.count += 1
        return super().render(*args, **options)


def find(tokenizer, *chat):
    renderer = Counting(TextTokenizer(tokenizer))
    messages = renderer.clean(chat)
    text = renderer.render(Record("chat", []), messages)
    return text, TurnFinder(renderer).find(Record("chat", []), messages, text), renderer.count


def test_by_hand(chat_tokenizer):
    text, turns, count = find(chat_tokenizer("zephyr"), USER, ANSWER, USER, ANSWER)
    one = "<|user|>\nq </s>\n<|assistant|>\n a\n</s>\n"
    assert text == one + one
    start, end = one.index(" a\n"), len(one) - 1
    assert turns == {1: Turn(start, end, True), 3: Turn(start + len(one), end + len(one), True)}
    assert count == 3  # as it is, with marks, and asking for an answer


def test_a_turn_that_is_not_written_is_missing(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages %}", "in messages[-2:] %}")
    empty = {"role": "assistant", "content": ""}
    assert find(tokenizer, USER, ANSWER, USER, ANSWER)[1].keys() == {3}
    assert find(chat_tokenizer("chatml"), USER, empty, USER, ANSWER)[1].keys() == {3}


def test_messages_in_another_order(chat_tokenizer):
    tokenizer = chat_tokenizer("mistral")
    tokenizer.chat_template = tokenizer.chat_template.replace("{% if loop.last %}", "{% if loop.index > 2 %}")
    text, turns, _ = find(tokenizer, {"role": "system", "content": "s"}, USER, ANSWER, USER, ANSWER)
    assert [text[turn.start : turn.end] for turn in turns.values()] == ["  a\n</s>", "  a\n</s>"]


def test_one_message_at_a_time_where_marks_disturb(chat_tokenizer):
    tokenizer = chat_tokenizer("chatml")
    # Says before each message whether it ends in a question mark.
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content[-1] == '?' }}{{ m.content }}"
    )
    ask, tell = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so?"}
    text, turns, count = find(tokenizer, ask, tell, ask, tell)
    assert [text[turn.start : turn.end] for turn in turns.values()] == ["Trueso?<|im_end|>"] * 2
    assert count == 7
