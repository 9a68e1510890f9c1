"""One HTTP request in JSON, whatever is asked: what is read, what is refused, what is said."""

from __future__ import annotations

import hmac
import io
import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_rlhf.commands.serving.requests import RequestError

if TYPE_CHECKING:
    from lit_rlhf.commands.serving.server import Server

_LINGER = 2.0
"""Seconds for which the rest of a refused request is read, so that the client gets to read why."""


class Route(NamedTuple):
    """An address that is answered.

    Args:
        method: that asks it.
        answer: what is sent; None where the handler has sent it already.
        is_open: whether it is answered without the token.
    """

    method: str
    answer: Callable[[], dict[str, Any] | None]
    is_open: bool = False


class JsonHandler(BaseHTTPRequestHandler):
    """Reads one request of a connection, answers it in JSON, and closes the connection.

    A kind of server says which addresses it has.
    """

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"
    server_version = "lit_rlhf"
    sys_version = ""
    wbufsize = -1  # head and body of an answer leave together
    server: Server

    @property
    def routes(self) -> dict[str, Route]:
        """Addresses -> what is there."""
        raise NotImplementedError

    def error_body(self, error: RequestError) -> dict[str, Any]:
        """What is sent of a refusal."""
        return {"error": {"message": str(error), **error.details}}

    def setup(self) -> None:
        """Read against a deadline: a client that sends a byte now and then does not hold a thread for ever."""
        super().setup()
        self.rfile.close()
        self.arrival = _Arrival(self.connection, self.server.settings.timeout)
        self.rfile = io.BufferedReader(self.arrival)

    def answer(self) -> None:
        """Answer the request, whatever it is."""
        with self.server.running():
            self.is_read = False
            try:
                if (reply := self._reply()) is not None:
                    self._send(HTTPStatus.OK, reply)
            except RequestError as error:
                self._send(error.status, self.error_body(error), error.headers)
            except OSError:  # the client is gone
                raise
            except Exception as error:  # whatever it is, the next request wants its answer
                print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
                failure = RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, f"it failed: {type(error).__name__}")
                self._send(failure.status, self.error_body(failure))
            if not self.is_read and "Content-Length" in self.headers:
                self.arrival.drain()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = answer  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say in JSON what the library finds wrong with a request."""
        error = RequestError(HTTPStatus(code), message or HTTPStatus(code).phrase)
        self._send(error.status, self.error_body(error))
        self.arrival.drain()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing about requests."""

    def _reply(self) -> dict[str, Any] | None:
        path, routes = self.path.partition("?")[0], self.routes
        if path not in routes:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no {path[:60]!r}, but {', '.join(routes)}")
        route = routes[path]
        if self.command != route.method:
            message = f"{path} is asked by {route.method}, not by {self.command}"
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, message, headers={"Allow": route.method})
        if not route.is_open:
            self._check_token()
        return route.answer()

    def _check_token(self) -> None:
        token = self.server.settings.token
        given = self.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            message = "the header 'Authorization: Bearer TOKEN' with the server's token is missing or wrong"
            raise RequestError(HTTPStatus.UNAUTHORIZED, message, headers={"WWW-Authenticate": "Bearer"})

    def read_body(self) -> bytes:
        """The body of the request.

        Raises:
            RequestError: if it is too long, or does not arrive as it was announced.
        """
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths or "Transfer-Encoding" in self.headers:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
        if len(lengths) > 1 or not lengths[0].isdecimal():
            raise RequestError(HTTPStatus.BAD_REQUEST, "Content-Length must be one number of bytes")
        length, limit = int(lengths[0][:20]), self.server.settings.max_body
        if length > limit:
            message = f"the request has {length} bytes; at most {limit} are taken"
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive") from None
        if len(body) < length:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the body ended after {len(body)} of {length} bytes")
        self.is_read = True
        return body

    def _send(self, status: HTTPStatus, reply: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(reply, allow_nan=False).encode()
        self.connection.settimeout(self.server.settings.timeout)
        self.send_response(status)
        always = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**always, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


class _Arrival(io.RawIOBase):
    """What comes in on a connection, until a deadline.

    Args:
        connection: of the client.
        seconds: from now on.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.connection = connection
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what comes next.

        Raises:
            TimeoutError: if nothing comes before the deadline.
        """
        if not (left := self.left):
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)

    def drain(self) -> None:
        """Read on for a moment after the answer: a connection closed on unread bytes would take the answer with it."""
        self.end = time.monotonic() + _LINGER
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.readinto(bytearray(2**16)):
                pass
