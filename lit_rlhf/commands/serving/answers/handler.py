"""The addresses of OpenAI's API that are there, and what becomes of a request for answers."""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, cast

from lit_rlhf.commands.serving.answers.forms import Form
from lit_rlhf.commands.serving.answers.schema import AnswerRequest, read_chat, read_completion
from lit_rlhf.commands.serving.answers.worker import Drawer, Job, Said
from lit_rlhf.commands.serving.handler import JsonHandler, Route
from lit_rlhf.commands.serving.requests import BusyError, RequestError
from lit_rlhf.commands.serving.server import Server, Settings, run_server
from lit_rlhf.commands.speaking.prompts import PromptTooLongError
from lit_rlhf.commands.speaking.voices import Voice, Voices

_MAX_WAITING = 64
"""Requests that may wait to be answered."""

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}


def serve_answers(voices: Voices, settings: Settings) -> None:
    """Answer requests until the process is asked to end.

    Raises:
        ValueError: if nothing can listen at the address.
    """
    server = AnswerServer(voices, settings)
    run_server(server, f"answering at {server.url}/v1 ({', '.join(voices.by_name)})")


class AnswerHandler(JsonHandler):
    """Answers one request for answers."""

    server: AnswerServer

    @property
    def routes(self) -> dict[str, Route]:
        """Addresses -> what is there."""
        names = self.server.voices
        return {
            "/v1/chat/completions": Route("POST", lambda: self._answer(read_chat)),
            "/v1/completions": Route("POST", lambda: self._answer(read_completion)),
            "/v1/models": Route("GET", lambda: {"object": "list", "data": list(map(self._model, names))}),
            **{f"/v1/models/{name}": Route("GET", lambda name=name: self._model(name)) for name in names},  # type: ignore[misc]
            "/health": Route("GET", lambda: {"status": "ok"}, is_open=True),
        }

    def error_body(self, error: RequestError) -> dict[str, Any]:
        """What is sent of a refusal, in OpenAI's form."""
        said = {"param": None, "code": None, **error.details}
        return {"error": {"message": str(error), "type": _TYPES.get(error.status, "invalid_request_error"), **said}}

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": self.server.settings.model}

    def _answer(self, read: Callable[[bytes, int], AnswerRequest]) -> dict[str, Any] | None:
        request = read(self.read_body(), self.server.settings.max_items)
        name, voice = self._voice(request)
        form, has_logprobs = Form.of(name, request.is_chat), request.num_top is not None
        said = self._said(Job(request, voice))
        if not request.is_streamed:
            return form.whole(list(said), has_logprobs)
        first = next(said)  # what is wrong with the request shows before the first token
        self._begin_stream()
        self._stream(first, said, request, form)
        return None

    def _voice(self, request: AnswerRequest) -> tuple[str, Voice]:
        voices = self.server.voices
        name = next(iter(voices)) if request.model is None else request.model
        if name not in voices:
            message = f"there is no model {name[:60]!r}, but {', '.join(voices)}"
            raise RequestError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")
        if request.is_chat and not voices[name].reader.has_template:
            message = f"{name!r} has no chat template, so it takes texts alone: POST /v1/completions"
            raise RequestError(HTTPStatus.BAD_REQUEST, message, param="messages")
        return name, voices[name]

    def _said(self, job: Job) -> Iterator[Said]:
        """What is said, whatever goes wrong told as a refusal."""
        try:
            yield from cast(Drawer, self.server.worker).said(job, self._is_there)
        except BusyError:
            message = "too many requests wait already; ask again later"
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, message, headers={"Retry-After": "1"}) from None
        except PromptTooLongError as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, str(error), code="context_length_exceeded") from None
        except ValueError as error:  # of the request, such as messages that the chat template refuses
            raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _is_there(self) -> bool:
        """Whether the client waits: one that has left ends its side of the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _begin_stream(self) -> None:
        self.connection.settimeout(self.server.settings.timeout)
        self.send_response(HTTPStatus.OK)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "Connection": "close"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self, first: Said, rest: Iterator[Said], request: AnswerRequest, form: Form) -> None:
        """Send what is said as it comes; what goes wrong in the middle is the last event."""
        ends: list[Said] = []
        number = -1
        try:
            for one in _joined(first, rest):
                if one.number != number and form.is_chat:
                    self._event(form.begin(one.number))
                number = one.number
                self._event(form.chunk(one, request.num_top is not None))
                if one.end is not None:
                    ends.append(one)
            if request.has_usage:
                self._event(form.numbers(ends))
            self._event("[DONE]")
        except RequestError as error:
            self._event(self.error_body(error))
        except OSError:
            raise
        except Exception as error:  # as for an answer that is not streamed
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
            failure = RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, f"it failed: {type(error).__name__}")
            self._event(self.error_body(failure))
        finally:
            cast(Any, rest).close()  # a client that left is drawn for no further

    def _event(self, data: dict[str, Any] | str) -> None:
        text = data if isinstance(data, str) else json.dumps(data, allow_nan=False)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()


class AnswerServer(Server):
    """A server of answers.

    Args:
        voices: that answer.
        settings: see there.

    Raises:
        ValueError: if nothing can listen at the address.
    """

    def __init__(self, voices: Voices, settings: Settings) -> None:
        self.voices = voices.by_name
        super().__init__(settings, AnswerHandler, Drawer(_MAX_WAITING))


def _joined(first: Said, rest: Iterator[Said]) -> Iterator[Said]:
    yield first
    yield from rest
