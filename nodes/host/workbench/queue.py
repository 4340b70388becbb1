"""The trainings that wait in the host's queue, and how long they will take.

    GET /personalize/queue   200 {"trainings": how many, "seconds": of all of them; null where runs
                             on disk do not tell}

Those of prompts that wait are counted, each run of a sweep as one, not what is left of the prompt
that runs. js/training/queue.js shows them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import server
from aiohttp import web

from ....trainers.errors import SettingsError
from ....trainers.runs.catalog.times import rates_of_graphs, steps_of_graph
from ....trainers.settings.sweep import grid_of
from ..folders import runs_folder
from ..runs.base import GraphNode
from ..runs.inputs import Sockets
from .sweep import SETTINGS_NODES, SOCKETS, Planned, planned

ROUTE = "/personalize/queue"
TRAINER = "PersonalizeTrain"  # what the ids of training nodes begin with
SWEEP = "PersonalizeSweep"
Training = tuple[Mapping[str, Any], str]  # the graph, the node's id


def register_queue() -> None:
    """Add the route to the host's server."""
    server.PromptServer.instance.routes.get(ROUTE)(_queue)


async def _queue(request: web.Request) -> web.Response:
    _, waiting = server.PromptServer.instance.prompt_queue.get_current_queue()
    prompts = [item[2] for item in waiting]  # (number, id, prompt, ...)
    # Beside the server's loop: a large sweep takes a third of a second to lay out.
    told = await asyncio.get_running_loop().run_in_executor(None, _told, prompts)
    return web.json_response(told)


def _told(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [one for nodes in prompts for one in _trainings(nodes)]
    return {"trainings": len(found), "seconds": _seconds(found)}


def _trainings(nodes: Mapping[str, Any]) -> Iterator[Training]:
    for node_id, node in nodes.items():
        if node["class_type"].startswith(TRAINER):
            yield nodes, node_id
        elif node["class_type"] == SWEEP:
            yield from _runs_of_sweep(nodes, node_id)


def _runs_of_sweep(nodes: Mapping[str, Any], node_id: str) -> Iterator[Training]:
    """Each as the training node that it would have; the sweep itself where a wire has its grid."""
    inputs = nodes[node_id]["inputs"]
    try:
        given = {p: _values(nodes, inputs[p]) for p in SETTINGS_NODES if p in inputs}
        grid = grid_of(inputs["settings"], inputs["method"])
    except (SettingsError, AttributeError, TypeError, KeyError):  # a link where a value may stand
        yield nodes, node_id
        return
    nothing: dict[str, Any] = dict.fromkeys(SOCKETS)  # a plan opens none of them
    for run in planned(grid, Sockets(**nothing), given, GraphNode(node_id, nodes)):
        if isinstance(run, Planned):
            yield run.node.prompt, node_id


def _values(nodes: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """What stands on a settings node, but for what is wired to it."""
    inputs = nodes[link[0]]["inputs"]
    return {name: value for name, value in inputs.items() if not isinstance(value, list)}


def _seconds(trainings: list[Training]) -> float | None:
    """What all of them will take; None where one cannot be told."""
    steps = [steps_of_graph(*training) for training in trainings]
    if None in steps:
        return None
    rates = rates_of_graphs(runs_folder(), trainings) if trainings else []
    if None in rates:
        return None
    return sum(rate.seconds * n for rate, n in zip(rates, steps, strict=True) if rate and n)
