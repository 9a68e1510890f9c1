"""The addresses of a reward server, and what becomes of a request for scores."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from lit_rlhf.commands.scoring import NotFiniteError, Scored
from lit_rlhf.commands.serving.handler import JsonHandler, Route
from lit_rlhf.commands.serving.requests import BusyError, RequestError
from lit_rlhf.commands.serving.scores.schema import SCHEMA, Request, read_request
from lit_rlhf.commands.serving.scores.worker import Worker
from lit_rlhf.commands.serving.server import Server, Settings, run_server

if TYPE_CHECKING:
    from lit_rlhf.commands.scoring import Scorer

_MAX_WAITING = 64
"""Requests that may wait to be scored."""


def serve_scores(scorer: Scorer, settings: Settings) -> None:
    """Answer requests until the process is asked to end; then finish those that are running.

    Raises:
        ValueError: if nothing can listen at the address.
    """
    scorer.model.prepare()
    server = ScoreServer(scorer, settings)
    run_server(server, f"scoring at {server.url} (POST /score, GET /health, GET /schema)")


class ScoreHandler(JsonHandler):
    """Answers one request for scores."""

    @property
    def routes(self) -> dict[str, Route]:
        """Addresses -> what is there."""
        return {
            "/score": Route("POST", self._score),
            "/health": Route("GET", lambda: {"status": "ok"}, is_open=True),
            "/schema": Route("GET", lambda: SCHEMA),
        }

    @property
    def worker(self) -> Worker:
        """The thread that scores."""
        return cast(Worker, self.server.worker)

    def _score(self) -> dict[str, Any]:
        settings, worker = self.server.settings, self.worker
        request = read_request(self.read_body(), settings.max_items)
        try:
            if request.normalise:
                worker.scorer.normalise([0.0])
        except ValueError as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from None
        scored = self._wait(request)
        for number, one in enumerate(scored):
            if one.error is not None:
                is_ours = isinstance(one.error, NotFiniteError)
                status = HTTPStatus.INTERNAL_SERVER_ERROR if is_ours else HTTPStatus.UNPROCESSABLE_ENTITY
                item = None if request.is_single else number
                raise RequestError(status, f"{one.row.address}: {one.error}", item=item)
        scores = [one.scores[0] for one in scored]
        return request.answer(scored, worker.scorer.normalise(scores) if request.normalise else scores, settings.model)

    def _wait(self, request: Request) -> list[Scored]:
        try:
            return self.worker.score(request.rows, self.arrival.left)
        except BusyError:
            message = "too many requests wait already; ask again later"
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, message, headers={"Retry-After": "1"}) from None
        except TimeoutError:
            message = f"not scored within {self.server.settings.timeout:g} seconds; send fewer items at once"
            raise RequestError(HTTPStatus.GATEWAY_TIMEOUT, message) from None
        except ValueError as error:  # of a kind that no other item would mend, such as a missing chat template
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None


class ScoreServer(Server):
    """A server of scores.

    Args:
        scorer: used by the worker alone.
        settings: see there.

    Raises:
        ValueError: if nothing can listen at the address.
    """

    def __init__(self, scorer: Scorer, settings: Settings) -> None:
        super().__init__(settings, ScoreHandler, Worker(scorer, _MAX_WAITING, settings.max_items))
