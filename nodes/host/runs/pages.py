"""What pages in browsers see of trainings, and what they may ask of them.

A page that was loaded anew, a second one and a late one all see the same: events say what changes,
routes what there is.

    GET /personalize/trainings         {"trainings": [...]}: the last training of each node, as
                                       {"graph", "node", "run", "training", "text"}: the graph's and
                                       the node's id, the run's folder, whether it is at work, the
                                       status line
    GET /personalize/trainings/{run}   its curve and previews, see trainers/runs/story.py; 404
    POST /personalize/stop             Stop and keep: {"node", "run"} of the training at work ends
                                       and hands out what it learned; 409 where another is at work

    event "personalize.training"       one of the trainings above, which began, ended or has more
                                       previews
    event "personalize.status"         the same with a new text; after steps also with what is new
                                       in "loss" and "validation", lists of [step, loss]

The front end's side is js/training/live.js.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import server
from aiohttp import web

from ....trainers.runs.story import curves, read_metrics, story
from ..folders import runs_folder
from .base import GraphNode

TRAININGS, STOP = "/personalize/trainings", "/personalize/stop"
TRAINING, STATUS = "personalize.training", "personalize.status"
MOST_REMEMBERED = 100  # nodes

Row = Mapping[str, Any]  # of metrics.jsonl


class AtWork(NamedTuple):
    """A run at work: its folder's name, its metrics, which grow, and when it began in seconds."""

    run: str
    metrics: Sequence[Row]
    since: float


class Pages:
    """Trainings write from the worker's thread, routes read in the server's.

    Attributes:
        changes: how many times pages were told of a training that began, ended or has previews.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._seen: dict[tuple[str | None, str | None], dict[str, Any]] = {}
        self._at_work: dict[str, Any] | None = None
        self._metrics: Sequence[Row] = ()
        self._sent = 0  # how many of them
        self._since = 0.0  # when the one at work began
        self._stop = threading.Event()

    # -- from trainings ---------------------------------------------------

    @contextmanager
    def watching(self, node: GraphNode, run: str) -> Iterator[None]:
        """While inside, this run is at work and can be stopped."""
        self._stop.clear()
        training = self._training(node) | {"run": run, "training": True}
        self._remember(training)
        self._since = time.time()
        before, self._at_work = self._at_work, training
        self._tell(training)
        try:
            yield
        finally:
            self._metrics, self._sent = (), 0
            self._at_work = before
            self.show(node, run)

    def show(self, node: GraphNode, run: str) -> None:
        """The node hands out this run, which is not at work."""
        training = self._training(node) | {"run": run, "training": False}
        self._remember(training)
        self._tell(training)

    def say(self, node: GraphNode, text: str) -> None:
        """Show a line in the node's body."""
        if node.heading:
            text = f"{node.heading}\n{text}"
        training = self._training(node) | {"text": text}
        self._remember(training)
        _send(STATUS, training | self._news())

    def record(self, metrics: Sequence[Row]) -> None:
        """What the run at work writes down of its steps; it may grow."""
        self._metrics, self._sent = metrics, len(metrics)
        self._tell(self._at_work)

    def has_previews(self) -> None:
        """The run at work has new ones."""
        self._tell(self._at_work)

    @property
    def at_work(self) -> AtWork | None:
        """The run at work, if there is one."""
        training, metrics, since = self._at_work, self._metrics, self._since
        return AtWork(str(training["run"]), metrics, since) if training else None

    @property
    def asked_to_stop(self) -> bool:
        return self._stop.is_set()

    def _tell(self, training: Mapping[str, Any] | None) -> None:
        self.changes += 1
        _send(TRAINING, training)

    def _training(self, node: GraphNode) -> dict[str, Any]:
        unseen = {"run": None, "training": False, "text": ""}
        where = {"graph": node.graph_id, "node": node.node_id}
        return {**unseen, **self._seen.get((node.graph_id, node.node_id), {}), **where}

    def _remember(self, training: dict[str, Any]) -> None:
        key = training["graph"], training["node"]
        seen = {k: v for k, v in self._seen.items() if k != key} | {key: training}
        self._seen = dict([*seen.items()][-MOST_REMEMBERED:])  # replaced whole: others read it
        if self._at_work and key == (self._at_work["graph"], self._at_work["node"]):
            self._at_work = training

    def _news(self) -> dict[str, Any]:
        rows = self._metrics[self._sent :]
        self._sent += len(rows)
        return curves(rows) if rows else {}

    # -- from pages -------------------------------------------------------

    async def trainings(self, request: web.Request) -> web.Response:
        return web.json_response({"trainings": list(self._seen.values())})

    async def training(self, request: web.Request) -> web.Response:
        name = request.match_info["run"]
        folder = runs_folder() / name
        at_work = self._at_work
        live = self._metrics if at_work and at_work["run"] == name else None
        if folder.name != name or name.startswith(".") or not folder.is_dir():
            return web.json_response({"error": "There is no such run."}, status=404)

        def read() -> dict[str, Any]:
            return story(folder, read_metrics(folder) if live is None else list(live))

        found = await asyncio.get_running_loop().run_in_executor(None, read)
        return web.json_response(found)

    async def stop(self, request: web.Request) -> web.Response:
        asked = await request.json() if request.can_read_body else None
        at_work = self._at_work
        if at_work is None or asked != {name: at_work[name] for name in ("node", "run")}:
            return web.json_response({"error": "This training is not at work."}, status=409)
        self._stop.set()
        return web.json_response(asked)


PAGES = Pages()


def register_pages() -> None:
    """Add the routes to the host's server."""
    routes = server.PromptServer.instance.routes
    routes.get(TRAININGS)(PAGES.trainings)
    routes.get(TRAININGS + "/{run}")(PAGES.training)
    routes.post(STOP)(PAGES.stop)


def _send(event: str, facts: Mapping[str, Any] | None) -> None:
    server.PromptServer.instance.send_sync(event, dict(facts or {}))
