"""The one thread that draws: requests wait their turn, and one whose client has left is drawn no further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, Full, Queue, SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

from lit_rlhf.commands.serving.answers.schema import AnswerRequest
from lit_rlhf.commands.serving.requests import BusyError
from lit_rlhf.commands.speaking.voices import Piece, Voice

_LEAST = -9999.0
"""Stands for the log-probability of what cannot be, which JSON has no number for; OpenAI's number."""

_LOOK = 0.25
"""Seconds between two looks at whether a client is still there."""


class TokenSaid(NamedTuple):
    """A token with its log-probability.

    Args:
        text: of it.
        logprob: in nats, of the policy as it is.
        top: the likeliest tokens at its place, with theirs.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Said(NamedTuple):
    """A part of an answer.

    Args:
        number: of the answer, those to the first prompt first.
        text: may be empty.
        tokens: that it consists of; none unless they are asked for.
        end: why the answer ended with it; None = it goes on.
        num_prompt_tokens: of the prompt; 0 beside the second answer to it, so that each is counted once.
        num_tokens: of the answer so far.
    """

    number: int
    text: str
    tokens: tuple[TokenSaid, ...]
    end: str | None
    num_prompt_tokens: int
    num_tokens: int


@dataclass
class Job:
    """A request that somebody waits for.

    Args:
        request: what is asked.
        voice: who answers.
    """

    request: AnswerRequest
    voice: Voice
    said: SimpleQueue[Said | Exception | None] = field(default_factory=SimpleQueue)
    is_left: Event = field(default_factory=Event)


class Drawer(Thread):
    """Draws the answers to one request after another.

    Args:
        max_waiting: most requests that may wait.
    """

    def __init__(self, max_waiting: int) -> None:
        super().__init__(name="answers", daemon=True)
        self._waiting: Queue[Job | None] = Queue(max_waiting)
        self._is_closing = Event()

    def said(self, job: Job, is_there: Callable[[], bool]) -> Iterator[Said]:
        """What is said to a request, as it is drawn; from any thread. Left in the middle, it is drawn no further.

        Args:
            job: of the request.
            is_there: tells whether the client still is.

        Raises:
            BusyError: if too many requests wait already.
            ConnectionError: if the client has left.
            Exception: whatever the drawing raises.
        """
        try:
            self._waiting.put_nowait(job)
        except Full:
            raise BusyError from None
        try:
            while (said := self._next(job, is_there)) is not None:
                yield said
        finally:
            job.is_left.set()

    def run(self) -> None:
        """Answer what waits until there is nothing more to come."""
        while (job := self._waiting.get()) is not None:
            try:
                for said in _drawn(job):
                    job.said.put(said)
                    if job.is_left.is_set() or self._is_closing.is_set():
                        break
                job.said.put(None if not self._is_closing.is_set() else ConnectionError("the server ends"))
            except Exception as error:  # whatever it is belongs to the request, and the next one wants its answer
                job.said.put(error)

    def close(self) -> None:
        """Break off what is drawn, and end."""
        self._is_closing.set()
        self._waiting.put(None)
        self.join()

    def _next(self, job: Job, is_there: Callable[[], bool]) -> Said | None:
        while True:
            if not is_there():
                raise ConnectionError("the client has left")
            try:
                said = job.said.get(timeout=_LOOK)
            except Empty:
                continue
            if isinstance(said, Exception):
                raise said
            return said


def _drawn(job: Job) -> Iterator[Said]:
    """All answers to a request; nothing is drawn before all prompts are read."""
    request, voice = job.request, job.voice
    if job.is_left.is_set():
        return
    prompts = [voice.reader.whole(prompt) for prompt in request.prompts]
    for number in range(len(prompts) * request.num_answers):
        prompt = prompts[number // request.num_answers]
        num_read = 0 if number % request.num_answers else len(prompt.tokens)
        options = replace(request.options, seed=(request.options.seed + number) % 2**63)
        answer = voice.answer(prompt, options, request.stop_strings)
        for piece in answer:
            tokens = () if request.num_top is None else _tokens(piece, voice, request.num_top)
            if piece.text or tokens:
                yield Said(number, piece.text, tokens, None, num_read, answer.num_tokens)
        yield Said(number, "", (), answer.end, num_read, answer.num_tokens)


def _tokens(piece: Piece, voice: Voice, num_top: int) -> tuple[TokenSaid, ...]:
    """The token of a piece; none where there is none, or it only ends the answer."""
    if piece.drawn is None or piece.drawn.token in voice.stop_tokens:
        return ()
    logprobs, decode = piece.drawn.logprobs.clamp(min=_LEAST), voice.tokenizer.decode
    best = logprobs.topk(num_top)
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    named = tuple((str(decode([token])), value) for token, value in top)
    return (TokenSaid(str(decode([piece.drawn.token])), float(logprobs[piece.drawn.token]), named),)
