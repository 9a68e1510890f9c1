"""A reward server that answers late, wrongly or not at all now and then, and otherwise always with the same scores."""

from __future__ import annotations

import collections
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VOWELS = "aeiou"
CHANCES = {"error 503": 0.06, "too late": 0.03, "hung up": 0.04, "no number": 0.01}
"""What becomes of a request, and how often; all others are answered."""


def score_of(response: str) -> float:
    """Share of vowels: any policy can learn to please it."""
    return sum(response.count(letter) for letter in VOWELS) / max(len(response), 1)


class FlakyServer:
    """Listens on a free port of 127.0.0.1 while it is open.

    Args:
        seed: of what becomes of requests.
        late: seconds that a late answer takes: more than the asker waits.
        is_flaky: whether anything goes wrong at all.
    """

    def __init__(self, seed: int, late: float, is_flaky: bool) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.is_down = False
        self._late = late
        self._chances = CHANCES if is_flaky else {}
        self._random = random.Random(seed)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
                server._answer(self, items)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/score"

    def __enter__(self) -> FlakyServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _fate(self) -> str:
        if self.is_down:
            return "down"
        draw = self._random.random()
        for name, chance in self._chances.items():
            if draw < chance:
                return name
            draw -= chance
        return "answered"

    def _answer(self, request: BaseHTTPRequestHandler, items: list[dict[str, Any]]) -> None:
        fate = self._fate()
        self.counts[fate] += 1
        if fate == "too late":
            time.sleep(self._late)
        if fate == "hung up":
            request.close_connection = True
            return
        scores = [score_of(item["response"]) for item in items]
        body = json.dumps({"scores": scores}) if fate != "no number" else '{"scores": [NaN]}'
        try:
            request.send_response(503 if fate in ("error 503", "down") else 200)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked has stopped to wait, or was killed
