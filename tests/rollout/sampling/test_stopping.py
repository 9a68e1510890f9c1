"""The ends of responses: by id, by text, across borders of tokens and inside of letters."""

import pytest
import torch

from lit_rlhf.rollout.sampling.stopping import Stopping


@pytest.fixture
def tokens_of(tiny_tokenizer):
    """Token ids, one byte each where ``split`` is set."""

    def encode(text, split=False):
        pieces = list(text) if split else [text]
        return [token for piece in pieces for token in tiny_tokenizer.encode(piece, add_special_tokens=False)]

    return encode


def test_a_token_ends_a_response_only_as_its_latest(tiny_tokenizer):
    stopping = Stopping([2, 9], [], tiny_tokenizer)
    responses = torch.tensor([[5, 2, 0], [5, 6, 9], [2, 5, 6], [5, 9, 7]])
    assert stopping(responses, torch.tensor([2, 3, 3, 3])).tolist() == [True, True, False, False]


def test_a_string_across_tokens_ends_where_its_last_letter_comes(tiny_tokenizer, tokens_of):
    response = tokens_of("Paris is\n\nHuman: no", split=True)
    end = Stopping([2], ["\n\nHuman:"], tiny_tokenizer).end(response)
    assert tiny_tokenizer.decode(response[:end]) == "Paris is\n\nHuman:"


def test_a_string_inside_of_a_token_ends_with_the_token(tiny_tokenizer, tokens_of):
    response = tokens_of("The capital of France")
    token = next(at for at, token in enumerate(response) if len(tiny_tokenizer.decode([token])) > 3)
    inner = tiny_tokenizer.decode([response[token]])[1:-1]
    assert Stopping([2], [inner], tiny_tokenizer).end(response) == token + 1


@pytest.mark.parametrize("stop", ["\u4e2d", "\u00e9!", "\U0001f98a", "\u4e2d" * 9])
def test_a_letter_of_several_bytes_ends_with_its_last_byte(tiny_tokenizer, tokens_of, stop):
    before, response = tokens_of("a"), tokens_of(f"a{stop}b", split=True)
    assert len(response) > 3
    assert Stopping([2], [stop], tiny_tokenizer).end(response) == len(before) + len(tokens_of(stop, split=True))


def test_half_a_letter_is_no_stop(tiny_tokenizer, tokens_of):
    response = tokens_of("\u4e2d", split=True)[:-1]
    assert Stopping([2], ["\u4e2d", "\u4e2e"], tiny_tokenizer).end(response) is None


def test_special_tokens_are_read_as_they_are_written(tiny_tokenizer, tokens_of):
    response = [*tokens_of("hi"), tiny_tokenizer.convert_tokens_to_ids("<|user|>"), 50]
    assert Stopping([2], ["<|user|>"], tiny_tokenizer).end(response) == len(response) - 1


def test_a_stop_far_behind_the_beginning(tiny_tokenizer, tokens_of):
    response = [*tokens_of("x" * 300, split=True), *tokens_of("END", split=True), 50]
    stopping = Stopping([2], ["END", "a much longer text that never comes"], tiny_tokenizer)
    assert stopping.end(response) == len(response) - 1
