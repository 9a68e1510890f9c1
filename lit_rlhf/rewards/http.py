"""A reward that another process computes: the client of ``python -m lit_rlhf score RUN --serve``.

It speaks the schema of that server (``docs/score.md``), which is small enough to put before a scorer of one's own.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib import error, parse, request

from lit_rlhf.rewards.reward import Sample

TOKEN_VARIABLE = "LIT_RLHF_TOKEN"
_MAX_ANSWER = 64 * 2**20  # bytes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class HttpReward:
    """Asks a reward server for scores.

    Connections that fail, time-outs and answers of status 429 and 5xx are tried again; other refusals are final.

    Args:
        url: of the server, such as ``http://127.0.0.1:8190``; ``/score`` is added where it has no path.
        timeout: seconds to wait for the server, each time it is asked.
        retries: times to ask again after a failure that may pass.
        backoff: seconds before the first retry, twice as many before each further one.
        token: that the server asks for; None = what the environment variable ``LIT_RLHF_TOKEN`` holds, if anything.
        batch_size: most items of one request.
        normalise: ask for scores of mean 0 and spread 1 on the model's validation data.

    Raises:
        ValueError: for a URL that is not http or https, or a number out of range.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
        token: str | None = None,
        batch_size: int = 64,
        normalise: bool = False,
    ) -> None:
        self.url = _checked(url)
        if timeout <= 0 or retries < 0 or backoff < 0 or batch_size < 1:
            raise ValueError(
                f"timeout is {timeout}, retries is {retries}, backoff is {backoff}, batch_size is {batch_size}; "
                "a time-out is above 0, a batch has at least 1 item, and the others are not negative"
            )
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.batch_size = batch_size
        self.normalise = normalise
        self._token = token or os.environ.get(TOKEN_VARIABLE)
        self._opener = _opener(parse.urlsplit(self.url).hostname or "")

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses: of a conversation the messages are sent, else the text of the prompt.

        Raises:
            ValueError: if the server refuses them, or its answer is no list of finite numbers, one per sample.
            ConnectionError: if the server does not answer, however often it is asked.
        """
        return self.score([{"prompt": list(one.messages) or one.prompt, "response": one.response} for one in samples])

    def score(self, items: Sequence[Mapping[str, Any]]) -> list[float]:
        """Score items as the server takes them: ``{prompt, response}``, ``{messages}``, ``{prompt_ids, response_ids}``.

        Args:
            items: any number of them; they are sent in batches.

        Returns:
            One finite number per item, in their order.

        Raises:
            ValueError: if the server refuses them, or its answer is no list of finite numbers, one per item.
            ConnectionError: if the server does not answer, however often it is asked.
        """
        scores = []
        for start in range(0, len(items), self.batch_size):
            batch = list(items[start : start + self.batch_size])
            scores += self._read(self._ask({"items": batch, "normalise": self.normalise}), len(batch))
        return scores

    def _ask(self, question: dict[str, Any]) -> bytes:
        """The server's answer, asked for as often as may help."""
        body = json.dumps(question, allow_nan=False).encode()
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                return self._post(body)
            except error.HTTPError as answer:
                what = _said(answer)
                if answer.code != 429 and answer.code < 500:
                    raise ValueError(f"{self.url} refused the request: {what}") from None
            except (OSError, http.client.HTTPException) as failure:  # URLError and TimeoutError are OSErrors
                what = str(failure) or type(failure).__name__
        raise ConnectionError(f"{self.url} gave no scores, asked {self.retries + 1} times; at last: {what}")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        asked = request.Request(self.url, body, headers, method="POST")
        with self._opener.open(asked, timeout=self.timeout) as answer:
            body = answer.read(_MAX_ANSWER + 1)
            if answer.length and len(body) <= _MAX_ANSWER:
                raise http.client.IncompleteRead(body, answer.length)
            return body

    def _read(self, answer: bytes, number: int) -> list[float]:
        """The scores in an answer."""
        if len(answer) > _MAX_ANSWER:
            self._distrust(answer, f"more than {_MAX_ANSWER} bytes")
        try:
            scores = json.loads(answer, parse_int=float)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError):
            self._distrust(answer, 'no JSON object with "scores"')
        if not isinstance(scores, list) or len(scores) != number:
            self._distrust(answer, f"no list of {number} scores")
        for index, score in enumerate(scores):
            if not isinstance(score, float) or not math.isfinite(score):
                self._distrust(answer, f"{score!r:.40} as the score of item {index}, which is no finite number")
        return scores

    def _distrust(self, answer: bytes, what: str) -> NoReturn:
        start = answer[:200].decode(errors="replace")
        raise ValueError(f"{self.url} answered with {what}: {start}") from None


class _NoRedirect(request.HTTPRedirectHandler):
    """Follows nobody elsewhere: the token is meant for one server."""

    def redirect_request(self, *_: Any) -> None:
        """Leave the answer to be raised as an error."""


def _opener(host: str) -> request.OpenerDirector:
    """Opens addresses; those of this machine never by a proxy."""
    proxies = [request.ProxyHandler({})] if host in _LOOPBACK else []
    return request.build_opener(_NoRedirect, *proxies)


def _checked(url: str) -> str:
    """The address to post to."""
    parts = parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url is {url!r}; it must be that of a server, such as http://127.0.0.1:8190")
    if parts.username or parts.password:
        raise ValueError("url holds a user or a password; give a token instead")
    return parse.urlunsplit(parts._replace(path="/score" if parts.path in ("", "/") else parts.path))


def _said(answer: error.HTTPError) -> str:
    """Status and message of a refusal."""
    try:
        with answer:
            body = answer.read(10_000)
    except (OSError, http.client.HTTPException):
        body = b""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, TypeError, KeyError):
        message = body[:200].decode(errors="replace")
    return f"{answer.code} {answer.reason}: {message}".rstrip(": ")
