"""The runs on disk, for the page that lists, opens, compares and tidies them.

    GET  /personalize/runs                200 {"runs": [row], "problems": [sentence],
                                          "trash": [{"run", "title", "deleted"}]}
    GET  /personalize/runs/{run}          200 the row and more: trainers/runs/catalog/detail.py
    GET  /personalize/runs/{run}/graph    200 {"node", "prompt", "workflow", "settings": {class of a
                                          node: {widget: value}}, "problems"}: the graph in API form
                                          and as a page had it, one of which may be null; 404 with
                                          settings where neither is known
    POST /personalize/runs/{run}          {"title"?, "note"?, "pinned"?}: 200 the row
    POST /personalize/runs/{run}/delete   200 {"trash"}: moved into the trash
    POST /personalize/runs/{run}/restore  200 the row: the last of that name is back
    POST /personalize/runs/trash/empty    200 {"bytes", "problems"}: deleted for good
    POST /personalize/runs/free           {"runs", "kinds": ["states", "previews"], "dry"?}: 200
                                          {"bytes", "problems"}

    event "personalize.runs"              {"runs": [name]}: these were changed by one of the above

A row is what trainers/runs/catalog/rows.py makes; times are seconds since 1970. Errors are
{"error"}: 404 there is no such run; 409 it is at work, pinned or in use; 400 what was sent is not
allowed. What is posted must be application/json, even where nothing is to be said: {}.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import server
from aiohttp import web

from ....trainers.errors import PersonalizeError, RunError, SettingsError
from ....trainers.runs.catalog import tidy
from ....trainers.runs.catalog.curve import Growing
from ....trainers.runs.catalog.labels import write_label
from ....trainers.runs.catalog.listing import Catalog, encode
from ....trainers.runs.catalog.names import UnknownRunError, run_path
from ....trainers.runs.catalog.reading import read_workflow
from ....trainers.runs.catalog.rows import Live, has_graph, inside, listed, text
from ....trainers.runs.catalog.settings import widget_values
from ...training.settings import LossSettings, MemorySettings, OptimizerSettings, RunSettings
from ...training.train import TrainDreamBooth, TrainLora, TrainTextualInversion
from ..folders import runs_folder
from ..runs.graph import path_of
from ..runs.pages import PAGES

ROUTE, EVENT = "/personalize/runs", "personalize.runs"
MOST_BYTES = 200_000  # of what is posted
MOST_RUNS = 10_000
SETTINGS = (OptimizerSettings, LossSettings, RunSettings, MemorySettings)
TRAINERS = {
    "lora": TrainLora,
    "dreambooth": TrainDreamBooth,
    "textual_inversion": TrainTextualInversion,
}
Answer = Callable[[], bytes]


class Workbench:
    """Answers pages from one catalog, which remembers what it has read."""

    def __init__(self) -> None:
        nodes = {**TRAINERS, **{node.PLACE: node for node in SETTINGS}}
        schemas = {place: node.define_schema() for place, node in nodes.items()}
        self._classes = {place: str(schema.node_id) for place, schema in schemas.items()}
        titles = {place: str(schema.display_name) for place, schema in schemas.items()}
        self._catalog = Catalog(runs_folder(), titles, remembers=True)
        self._growing = Growing(())

    # -- to look at -------------------------------------------------------

    async def runs(self, request: web.Request) -> web.Response:
        return await _answered(request, self._listing)

    def _listing(self) -> bytes:
        return self._catalog.listing(self._live(), PAGES.changes)

    async def list_ahead(self, app: web.Application) -> None:
        """Read the runs while nobody waits for them yet."""
        asyncio.get_running_loop().run_in_executor(None, self._catalog.rows)

    async def run(self, request: web.Request) -> web.Response:
        name = request.match_info["run"]
        return await _answered(request, lambda: self._catalog.detail(name, self._live()))

    async def graph(self, request: web.Request) -> web.Response:
        return await _answered(request, lambda: self._graph(request.match_info["run"]))

    def _graph(self, name: str) -> bytes:
        found = self._catalog.found(name)
        values = widget_values(found.row["method"], found.facts)
        settings = {self._classes[p]: v for p, v in values.items() if p in self._classes}
        nodes = inside(found.facts, "graph", "nodes")
        is_known = has_graph(found.facts) and all(map(_is_node, nodes.values()))
        workflow, problems = read_workflow(self._catalog.parent / name)
        if not is_known and workflow is None:
            raise NoGraphError(name, settings)
        return encode(
            {
                "node": found.facts["graph"]["node"] if is_known else None,
                "prompt": nodes if is_known else None,
                "workflow": workflow,
                "settings": settings,
                "problems": [*problems, *_missing_files(found.facts)],
            }
        )

    def _live(self) -> Live | None:
        at_work = PAGES.at_work
        if at_work is None:
            return None
        if self._growing.rows is not at_work.metrics:
            self._growing = Growing(at_work.metrics)
        return Live(at_work.run, self._growing, at_work.since)

    # -- to change --------------------------------------------------------

    async def label(self, request: web.Request) -> web.Response:
        return await self._changed(request, self._label)

    def _label(self, name: str, asked: Mapping[str, Any]) -> bytes:
        write_label(run_path(self._catalog.parent, name), asked)
        return self._row(name)

    async def delete(self, request: web.Request) -> web.Response:
        return await self._changed(request, self._delete)

    def _delete(self, name: str, asked: Mapping[str, Any]) -> bytes:
        tidy.delete(self._catalog.parent, name, _at_work())
        self._tell(name)
        return encode({"trash": tidy.in_trash(self._catalog.parent)})

    async def restore(self, request: web.Request) -> web.Response:
        return await self._changed(request, self._restore)

    def _restore(self, name: str, asked: Mapping[str, Any]) -> bytes:
        tidy.restore(self._catalog.parent, name)
        return self._row(name)

    async def empty(self, request: web.Request) -> web.Response:
        return await self._changed(request, self._empty)

    def _empty(self, name: str, asked: Mapping[str, Any]) -> bytes:
        freed, problems = tidy.empty_trash(self._catalog.parent)
        self._tell()
        return encode({"bytes": freed, "problems": problems})

    async def free(self, request: web.Request) -> web.Response:
        return await self._changed(request, self._free)

    def _free(self, name: str, asked: Mapping[str, Any]) -> bytes:
        names, kinds = (_texts(asked, key) for key in ("runs", "kinds"))
        dry = asked.get("dry", False)
        if not isinstance(dry, bool):
            raise SettingsError((f"dry is {dry!r}; allowed: true or false",))
        freed, problems = tidy.free(self._catalog.parent, names, kinds, _at_work(), dry)
        if not dry:
            self._tell(*names)
        return encode({"bytes": freed, "problems": problems})

    async def _changed(
        self, request: web.Request, work: Callable[[str, Mapping[str, Any]], bytes]
    ) -> web.Response:
        # A form of another site cannot be of this type unless its browser asks first.
        if request.content_type != "application/json":
            return web.json_response({"error": "Allowed: application/json."}, status=415)
        body = await request.read()
        if len(body) > MOST_BYTES:
            told = f"{len(body):,} bytes were sent; allowed: {MOST_BYTES:,}."
            return web.json_response({"error": told}, status=413)
        name = request.match_info.get("run", "")
        return await _answered(request, lambda: work(name, _parsed(body)))

    def _row(self, name: str) -> bytes:
        self._tell(name)
        return encode(self._catalog.row(name, self._live()))

    def _tell(self, *names: str) -> None:
        self._catalog.forget(*names)
        server.PromptServer.instance.send_sync(EVENT, {"runs": list(names)})


class NoGraphError(UnknownRunError):
    """A run of which nothing says what graph it came from; its settings are known all the same."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        RunError.__init__(
            self,
            f"Run '{name}' does not say what its graph was: an earlier version trained it, or its "
            "run.json is damaged.\nIts settings can be put into an open graph.",
        )


def register_runs() -> None:
    """Add the routes to the host's server."""
    routes, workbench = server.PromptServer.instance.routes, Workbench()
    server.PromptServer.instance.app.on_startup.append(workbench.list_ahead)
    routes.get(ROUTE)(workbench.runs)
    routes.post(ROUTE + "/free")(workbench.free)
    routes.post(ROUTE + "/trash/empty")(workbench.empty)
    routes.get(ROUTE + "/{run}")(workbench.run)
    routes.get(ROUTE + "/{run}/graph")(workbench.graph)
    routes.post(ROUTE + "/{run}")(workbench.label)
    routes.post(ROUTE + "/{run}/delete")(workbench.delete)
    routes.post(ROUTE + "/{run}/restore")(workbench.restore)


async def _answered(request: web.Request, work: Answer) -> web.Response:
    """What `work` gives; files are not read in the server's loop."""
    try:
        content = await asyncio.to_thread(work)
    except NoGraphError as error:
        return web.json_response({"error": str(error), "settings": error.settings}, status=404)
    except UnknownRunError as error:
        return web.json_response({"error": str(error)}, status=404)
    except RunError as error:
        return web.json_response({"error": str(error)}, status=409)
    except PersonalizeError as error:
        return web.json_response({"error": str(error)}, status=400)
    # A page that has it already is told so.
    tag = f'"{zlib.crc32(content):08x}-{len(content):x}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.method == "GET" and request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=content, content_type="application/json", headers=headers)


def _at_work() -> tuple[str, ...]:
    at_work = PAGES.at_work
    return (at_work.run,) if at_work else ()


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise SettingsError(("what was sent is no JSON object; allowed: one, such as {}",))
    return asked


def _texts(asked: Mapping[str, Any], key: str) -> list[str]:
    found = asked.get(key)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise SettingsError((f"{key} is no list of names; allowed: one",))
    return list(dict.fromkeys(found[:MOST_RUNS]))


def _is_node(node: Any) -> bool:
    return isinstance(inside(node, "class_type"), str) and isinstance(inside(node, "inputs"), dict)


def _missing_files(facts: Mapping[str, Any]) -> list[str]:
    """Sentences on what the graph needs and the host has no longer."""
    problems = []
    for file in listed(inside(facts, "graph", "files")):
        folder, name = text(inside(file, "folder")), text(inside(file, "name"))
        place = PurePosixPath(name.replace("\\", "/"))
        if not folder or not name or place.is_absolute() or ".." in place.parts or "\0" in name:
            continue
        if path_of(folder, name) is None:
            problems.append(f"{folder}/{name} is no longer there.")
    return problems
