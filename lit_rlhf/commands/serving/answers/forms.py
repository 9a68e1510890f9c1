"""Answers in the form of OpenAI's API: whole ones, and the chunks of a stream. Each kind is a pair of functions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_rlhf.commands.serving.answers.worker import Said, TokenSaid


class Form(NamedTuple):
    """What all parts of one answer have in common.

    Args:
        model: name of the voice.
        is_chat: whether messages are given, and not texts.
        identity: of the answer.
        created: seconds since 1970.
    """

    model: str
    is_chat: bool
    identity: str
    created: int

    @classmethod
    def of(cls, model: str, is_chat: bool) -> Form:
        """That of a new answer."""
        return cls(model, is_chat, f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}", int(time.time()))

    def whole(self, said: Sequence[Said], has_logprobs: bool) -> dict[str, Any]:
        """An answer that is not streamed.

        Args:
            said: all of it.
            has_logprobs: whether log-probabilities are wanted.
        """
        numbers = range(said[-1].number + 1)
        choices = [self._choice([one for one in said if one.number == number], has_logprobs) for number in numbers]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage_of(said)}

    def begin(self, number: int) -> dict[str, Any]:
        """The first chunk of an answer to a conversation, which says who speaks."""
        choice = {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [{**choice, "finish_reason": None}]}

    def chunk(self, said: Said, has_logprobs: bool) -> dict[str, Any]:
        """A chunk of a stream.

        Args:
            said: a part of an answer.
            has_logprobs: whether log-probabilities are wanted.
        """
        logprobs = self._logprobs(said.tokens) if has_logprobs and said.tokens else None
        end = {"logprobs": logprobs, "finish_reason": said.end}
        if self.is_chat:
            delta = {"content": said.text} if said.end is None else {}
            choice = {"index": said.number, "delta": delta, **end}
            return {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**self._head("text_completion"), "choices": [{"index": said.number, "text": said.text, **end}]}

    def numbers(self, said: Sequence[Said]) -> dict[str, Any]:
        """The last chunk of a stream: how many tokens there were."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": usage_of(said)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, said: Sequence[Said], has_logprobs: bool) -> dict[str, Any]:
        text = "".join(one.text for one in said)
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        tokens = [token for one in said for token in one.tokens]
        logprobs = self._logprobs(tokens) if has_logprobs else None
        return {"index": said[0].number, **content, "logprobs": logprobs, "finish_reason": said[-1].end}

    def _logprobs(self, tokens: Sequence[TokenSaid]) -> dict[str, Any]:
        if self.is_chat:
            named = [[_named(*top) for top in token.top] for token in tokens]
            both = zip(tokens, named, strict=True)
            return {"content": [{**_named(one.text, one.logprob), "top_logprobs": top} for one, top in both]}
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
        }


def usage_of(said: Sequence[Said]) -> dict[str, int]:
    """How many tokens were read and drawn; a prompt is counted once, however many answers it has."""
    ends = [one for one in said if one.end is not None]
    prompt, drawn = sum(one.num_prompt_tokens for one in ends), sum(one.num_tokens for one in ends)
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}


def _named(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
