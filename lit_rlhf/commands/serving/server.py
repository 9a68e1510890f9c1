"""The server: who may ask it, how much at once, and how it ends.

It is the standard library's threading server: a thread per connection reads and writes, and one thread, the worker,
uses the model. What a client says is never written anywhere.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import BoundedSemaphore, Condition, Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lit_rlhf.rewards.http import TOKEN_VARIABLE

if TYPE_CHECKING:
    from lit_rlhf.commands.serving.handler import JsonHandler

_MAX_CONNECTIONS = 256


class Settings(NamedTuple):
    """What the command line says about the server.

    Args:
        model: name of what is served, in answers.
        host: address to listen on.
        port: 0 = one that is free.
        token: to ask for; None = anybody may ask.
        timeout: seconds that a request may take to arrive, and a part of its answer to leave.
        max_body: most bytes of a request.
        max_items: most items of a request.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8190
    token: str | None = None
    timeout: float = 30.0
    max_body: int = 2**24
    max_items: int = 1024


class Worker(Protocol):
    """The thread that uses the model."""

    def start(self) -> None:
        """Begin."""

    def close(self) -> None:
        """Finish, and end."""


def add_arguments(
    parser: argparse.ArgumentParser, *, port: int = 8190, items: str = "items", max_items: int = 1024
) -> None:
    """Add the arguments of a server.

    Args:
        parser: of the command.
        port: that it listens on unless told otherwise.
        items: what a request may have several of.
        max_items: most of them unless told otherwise.
    """
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    group.add_argument("--port", type=int, default=port, help=f"0 takes one that is free (default {port})")
    group.add_argument("--token_file", type=Path, help=f"file with the token to ask for (or {TOKEN_VARIABLE})")
    group.add_argument("--timeout", type=float, default=30.0, help="seconds that a request may take (default 30)")
    group.add_argument("--max_body", type=int, default=2**24, help="most bytes of a request (default 16 MiB)")
    group.add_argument(
        "--max_items", type=int, default=max_items, help=f"most {items} of a request (default {max_items})"
    )


def read_settings(args: argparse.Namespace, model: str) -> Settings:
    """Check what the command line says.

    Args:
        args: of the command line.
        model: name of what is served.

    Raises:
        ValueError: if others than this machine could ask and no token is set, the token cannot stand in a header, or a
            number is out of range.
    """
    if args.timeout <= 0 or args.max_body < 1 or args.max_items < 1 or not 0 <= args.port < 2**16:
        raise ValueError(
            f"--timeout is {args.timeout}, --max_body {args.max_body}, --max_items {args.max_items} and --port "
            f"{args.port}; the first three must be above 0, and a port is a number below 65536"
        )
    token = _read_token(args.token_file)
    if token is None and not _is_loopback(args.host):
        raise ValueError(
            f"--host={args.host} is open to other machines: set a token by --token_file or {TOKEN_VARIABLE}, or listen "
            "on 127.0.0.1"
        )
    return Settings(model, args.host, args.port, token, args.timeout, args.max_body, args.max_items)


def run_server(server: Server, said: str) -> None:
    """Answer requests until the process is asked to end; then finish those that are running.

    Args:
        server: that listens already.
        said: a line that tells where; whoever started the process waits for it.
    """
    Thread(target=server.serve_forever, daemon=True).start()
    with _asked_to_end() as end:
        print(said, flush=True)  # noqa: T201
        end.wait()
    server.stop()
    print(f"stopped after {server.num_requests} requests", file=sys.stderr)  # noqa: T201


class Server(ThreadingHTTPServer):
    """Listens, and counts the requests that are running.

    Args:
        settings: see there.
        handler: answers a request.
        worker: uses the model.

    Raises:
        ValueError: if nothing can listen at the address.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: Settings, handler: type[JsonHandler], worker: Worker) -> None:
        self.settings = settings
        try:
            (self.address_family, *_), *_ = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
            super().__init__((settings.host, settings.port), handler)
        except OSError as error:
            raise ValueError(f"cannot listen at --host={settings.host} --port={settings.port}: {error}") from error
        self.worker = worker
        self.worker.start()
        self.num_requests = 0
        self._num_running = 0
        self._is_idle = Condition()
        self._connections = BoundedSemaphore(_MAX_CONNECTIONS)

    def server_bind(self) -> None:
        """Bind, without asking the network for the name of this machine, which may take minutes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request that has begun to arrive, so that the server does not end before it is answered."""
        with self._is_idle:
            self._num_running += 1
            self.num_requests += 1
        try:
            yield
        finally:
            with self._is_idle:
                self._num_running -= 1
                self._is_idle.notify_all()

    def stop(self) -> None:
        """Take no more requests, and finish those that are running; ``serve_forever`` runs in another thread."""
        self.shutdown()
        self.server_close()
        with self._is_idle:
            self._is_idle.wait_for(lambda: self._num_running == 0, 2 * self.settings.timeout)
        self.worker.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, if there are not too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Read and write in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless it is that the client went away."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201


@contextmanager
def _asked_to_end() -> Iterator[Event]:
    """An event that Ctrl-C or SIGTERM sets; asked a second time, the process ends at once."""
    asked = Event()

    def ask(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_token(file: Path | None) -> str | None:
    """The token of the file, else of the environment; None if there is none."""
    where, token = f"--token_file={file}", file.read_text(encoding="utf-8").strip() if file else ""
    if file is None:
        where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{where} must hold one token: printable ASCII characters without spaces")
    return token


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--host={host} is no address: {error}") from error
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)
