"""Answers in OpenAI's form, compared with what its reference shows."""

from __future__ import annotations

from lit_rlhf.commands.serving.answers.forms import Form, usage_of
from lit_rlhf.commands.serving.answers.worker import Said, TokenSaid

A, B = TokenSaid("A", -0.5, (("A", -0.5), ("B", -1.0))), TokenSaid("\u00e9", -2.0)
SAID = [
    Said(0, "A", (A,), None, 3, 1),
    Said(0, "\u00e9", (B,), None, 3, 2),
    Said(0, "", (), "stop", 3, 3),
    Said(1, "x", (), None, 0, 1),
    Said(1, "", (), "length", 0, 1),
]


def test_a_whole_conversation():
    answer = Form("dpo", True, "id", 5).whole(SAID, False)
    assert answer == {
        "id": "id",
        "object": "chat.completion",
        "created": 5,
        "model": "dpo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A\u00e9"},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {"index": 1, "message": {"role": "assistant", "content": "x"}, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def test_a_whole_text():
    answer = Form("dpo", False, "id", 5).whole(SAID[:3], True)
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "A\u00e9",
            "logprobs": {
                "tokens": ["A", "\u00e9"],
                "token_logprobs": [-0.5, -2.0],
                "top_logprobs": [{"A": -0.5, "B": -1.0}, {}],
            },
            "finish_reason": "stop",
        }
    ]


def test_log_probabilities_of_a_conversation():
    (choice,) = Form("dpo", True, "id", 5).whole(SAID[:3], True)["choices"]
    first, second = choice["logprobs"]["content"]
    assert first["top_logprobs"][1] == {"token": "B", "logprob": -1.0, "bytes": [66]}
    assert second == {"token": "\u00e9", "logprob": -2.0, "bytes": [0xC3, 0xA9], "top_logprobs": []}


def test_chunks_of_a_conversation():
    form = Form("dpo", True, "id", 5)
    head = {"id": "id", "object": "chat.completion.chunk", "created": 5, "model": "dpo"}
    nothing = {"logprobs": None, "finish_reason": None}
    begun = {"index": 1, "delta": {"role": "assistant", "content": ""}, **nothing}
    assert form.begin(1) == {**head, "choices": [begun]}
    assert form.chunk(SAID[0], False) == {**head, "choices": [{"index": 0, "delta": {"content": "A"}, **nothing}]}
    assert form.chunk(SAID[0], True)["choices"][0]["logprobs"]["content"][0]["token"] == "A"
    ended = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert form.chunk(SAID[2], True) == {**head, "choices": [ended]}
    assert form.numbers(SAID) == {**head, "choices": [], "usage": usage_of(SAID)}


def test_chunks_of_a_text():
    form = Form("dpo", False, "id", 5)
    chunk = form.chunk(SAID[3], False)
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [{"index": 1, "text": "x", "logprobs": None, "finish_reason": None}]


def test_every_answer_has_an_identity_of_its_own():
    one, other = Form.of("dpo", True), Form.of("dpo", False)
    assert one.identity.startswith("chatcmpl-")
    assert other.identity.startswith("cmpl-")
    assert Form.of("dpo", True).identity != one.identity
