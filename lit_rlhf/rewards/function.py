"""A Python function as a reward: it is given what it names.

def brevity(response):                      called for each response
    return -len(response)

def exact(responses, answer):               called once with lists; `answer` is a column of the rows
    return [text.strip() == right for text, right in zip(responses, answer)]

async def judged(prompt, response):         awaited for all responses at once
    return await ask_a_judge(prompt, response)
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from threading import Thread
from typing import Any

from lit_rlhf.rewards.reward import Sample, checked_score, checked_scores

_EACH: dict[str, Callable[[Sample], Any]] = {
    "sample": lambda sample: sample,
    "prompt": lambda sample: sample.prompt,
    "response": lambda sample: sample.response,
}
"""What a function that is called for each response may name."""

_ALL: dict[str, Callable[[Sample], Any]] = {f"{name}s": read for name, read in _EACH.items()}
"""What a function that is called once may name: lists of the same."""

_BOTH: dict[str, Callable[[Sample], Any]] = {
    "messages": lambda sample: list(sample.messages),
    "prompt_tokens": lambda sample: list(sample.prompt_tokens),
    "response_tokens": lambda sample: list(sample.response_tokens),
    "row": lambda sample: sample.row,
    "finished": lambda sample: sample.finished,
}
"""What either may name, beside the columns of the rows."""


class FunctionReward:
    """Asks a Python function, plain or ``async``.

    A function that names ``responses``, ``prompts`` or ``samples`` is called once with lists and gives a list. One that
    names ``response``, ``prompt`` or ``sample`` is called for each response and gives a number. Either may name
    ``messages``, ``prompt_tokens``, ``response_tokens``, ``row``, ``finished`` and any column of the rows; with
    ``**kwargs`` it is given all of them. Truth values count as 1 and 0.

    Args:
        function: the function, in YAML by its import path, such as ``my_rewards.brevity``.
        arguments: given to the function by name, beside what it names of the samples.
        timeout: seconds for all responses of a call; None = wait for ever. Python cannot end a function that hangs: it
            is left behind in a thread of its own.
        max_concurrency: most responses for which an ``async`` function is awaited at a time.

    Raises:
        ValueError: for a function that names nothing of the above, or a number out of range.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: dict[str, Any] | None = None,
        timeout: float | None = 600.0,
        max_concurrency: int = 64,
    ) -> None:
        if (timeout is not None and timeout <= 0) or max_concurrency < 1:
            raise ValueError(
                f"timeout is {timeout} and max_concurrency is {max_concurrency}; the first is above 0 or null, "
                "the second at least 1"
            )
        self.function = function
        self.name = _name_of(function)
        self.arguments = arguments or {}
        self.timeout = timeout
        self.max_concurrency = max_concurrency
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        self._is_batched = self._reads_lists()

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses.

        Raises:
            ValueError: if the function raises, takes too long, or gives something other than one finite number per
                response; with its name and the row.
        """
        if not samples:
            return []
        return self._in_time(self._batch if self._is_batched else self._each, samples)

    def _reads_lists(self) -> bool:
        """Whether the function is called once for all responses."""
        names = {one.name for one in self._named} - self.arguments.keys()
        is_batched, is_each = bool(names & _ALL.keys()), bool(names & _EACH.keys())
        if is_batched and is_each:
            raise ValueError(f"{self.name} names {sorted(names & (_ALL.keys() | _EACH.keys()))}; name lists or single")
        if not (is_batched or is_each or self._takes_all):
            raise ValueError(
                f"{self.name} names {sorted(names) or 'nothing'}; a reward names `responses`, `prompts` or `samples` "
                "to be called once with lists, or `response`, `prompt` or `sample` to be called for each response"
            )
        return not is_each

    def _in_time(self, score: Callable[[Sequence[Sample]], list[float]], samples: Sequence[Sample]) -> list[float]:
        """What ``score`` gives, computed in a thread that is not waited for longer than ``timeout``."""
        outcome: list[list[float] | BaseException] = []

        def run() -> None:
            try:
                outcome.append(score(samples))
            except BaseException as error:  # raised again below, where it can be seen
                outcome.append(error)

        # A daemon, so that one that hangs does not keep the process alive; in it no event loop is running yet.
        thread = Thread(target=run, name=self.name, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not outcome:
            raise ValueError(
                f"{samples[0].address}: reward function {self.name} gave no scores for {len(samples)} responses within "
                f"{self.timeout} seconds (timeout)"
            )
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _batch(self, samples: Sequence[Sample]) -> list[float]:
        columns = {name: [read(sample) for sample in samples] for name, read in self._readers(samples).items()}
        try:
            scores = self.function(**columns, **self.arguments)
            if inspect.isawaitable(scores):
                scores = asyncio.run(_awaited(scores))
        except Exception as error:
            raise self._told(error, samples) from error
        return checked_scores(scores, samples, self.name)

    def _each(self, samples: Sequence[Sample]) -> list[float]:
        readers = self._readers(samples)
        given = [{name: read(sample) for name, read in readers.items()} for sample in samples]
        scores = []
        for sample, columns in zip(samples, given, strict=True):
            try:
                scores.append(self.function(**columns, **self.arguments))
            except Exception as error:
                raise self._told(error, [sample]) from error
        if any(map(inspect.isawaitable, scores)):
            scores = asyncio.run(self._gathered(scores, samples))
        return [checked_score(score, sample, self.name) for score, sample in zip(scores, samples, strict=True)]

    async def _gathered(self, scores: Sequence[Awaitable[Any]], samples: Sequence[Sample]) -> list[Any]:
        """What an ``async`` function gives for each response, awaited together."""
        gate = asyncio.Semaphore(self.max_concurrency)

        async def wait(score: Awaitable[Any], sample: Sample) -> Any:
            async with gate:
                try:
                    return await score
                except Exception as error:
                    raise self._told(error, [sample]) from error

        return await asyncio.gather(*map(wait, scores, samples))

    def _readers(self, samples: Sequence[Sample]) -> dict[str, Callable[[Sample], Any]]:
        """What the function is given of each sample, by name."""
        columns = dict.fromkeys(name for sample in samples for name in sample.columns)
        known = {name: _column(name) for name in columns} | (_ALL if self._is_batched else _EACH) | _BOTH
        if self._takes_all:
            return {name: read for name, read in known.items() if name not in self.arguments}
        wanted = [one for one in self._named if one.name not in self.arguments]
        for one in wanted:
            if one.name not in known and one.default is one.empty:
                raise ValueError(
                    f"{samples[0].address}: reward function {self.name} names `{one.name}`, and there is no such "
                    f"column; there are {', '.join(known)}"
                )
        return {one.name: known[one.name] for one in wanted if one.name in known}

    def _told(self, error: Exception, samples: Sequence[Sample]) -> ValueError:
        """What a function raised, with where."""
        place = samples[0].address + (f" to {samples[-1].address}" if len(samples) > 1 else "")
        return ValueError(f"{place}: reward function {self.name} raised {type(error).__name__}: {error}")


def _column(name: str) -> Callable[[Sample], Any]:
    """Reads a column; None in rows that lack it."""
    return lambda sample: sample.columns.get(name)


def _name_of(function: Callable[..., Any]) -> str:
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


async def _awaited(scores: Awaitable[Any]) -> Any:
    return await scores
