"""Stop and keep: a request that the training at work ends here and hands out what it learned.

    GET /personalize/stop       200 {"node": id of the training node, "run": its folder's name};
                                both null where nothing trains
    POST /personalize/stop      the same as its body; 200, or 409 where another or nothing trains

The front end (js/stop.js) hears of trainings by the event "personalize.training", whose data are
{"node", "run", "training"}, and asks when a page opens in the middle of one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import server
from aiohttp import web

ROUTE, EVENT = "/personalize/stop", "personalize.training"


class StopButton:
    """Pressed by a route in the server's thread, read by the training in the worker's."""

    def __init__(self) -> None:
        self._pressed = threading.Event()
        self._at_work: dict[str, str | None] = {"node": None, "run": None}

    @contextmanager
    def watching(self, node_id: str | None, run: str) -> Iterator[None]:
        """While inside, the button can be pressed."""
        self._pressed.clear()
        before, self._at_work = self._at_work, {"node": node_id, "run": run}
        _tell(node_id, run, True)
        try:
            yield
        finally:
            self._at_work = before
            _tell(node_id, run, False)

    @property
    def pressed(self) -> bool:
        return self._pressed.is_set()

    async def at_work(self, request: web.Request) -> web.Response:
        """The route's GET."""
        return web.json_response(self._at_work)

    async def answer(self, request: web.Request) -> web.Response:
        """The route's POST."""
        at_work = self._at_work
        asked = await request.json() if request.can_read_body else None
        if at_work["run"] is None or asked != at_work:
            return web.json_response({"error": "This training is not at work."}, status=409)
        self._pressed.set()
        return web.json_response(at_work)


BUTTON = StopButton()


def register_stop() -> None:
    """Add the route to the host's server."""
    routes = server.PromptServer.instance.routes
    routes.get(ROUTE)(BUTTON.at_work)
    routes.post(ROUTE)(BUTTON.answer)


def _tell(node_id: str | None, run: str, training: bool) -> None:
    facts = {"node": node_id, "run": run, "training": training}
    server.PromptServer.instance.send_sync(EVENT, facts)
