"""The trainings that wait in the host's queue, and how long they will take.

    GET /personalize/queue   200 {"trainings": how many, "seconds": of all of them; null where runs
                             on disk do not tell}

Those of prompts that wait are counted, not what is left of the prompt that runs. js/training/
queue.js shows them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import server
from aiohttp import web

from ....trainers.runs.catalog.times import rates_of_graphs, steps_of_graph
from ..folders import runs_folder

ROUTE = "/personalize/queue"
TRAINER = "PersonalizeTrain"  # what the ids of training nodes begin with
Training = tuple[Mapping[str, Any], str]  # the graph, the node's id


def register_queue() -> None:
    """Add the route to the host's server."""
    server.PromptServer.instance.routes.get(ROUTE)(_queue)


async def _queue(request: web.Request) -> web.Response:
    _, waiting = server.PromptServer.instance.prompt_queue.get_current_queue()
    found = [one for item in waiting for one in _trainings(item[2])]  # (number, id, prompt, ...)
    seconds = await asyncio.get_running_loop().run_in_executor(None, _seconds, found)
    return web.json_response({"trainings": len(found), "seconds": seconds})


def _trainings(nodes: Mapping[str, Any]) -> Iterator[Training]:
    for node_id, node in nodes.items():
        if node["class_type"].startswith(TRAINER):
            yield nodes, node_id


def _seconds(trainings: list[Training]) -> float | None:
    """What all of them will take; None where one cannot be told."""
    steps = [steps_of_graph(*training) for training in trainings]
    if None in steps:
        return None
    rates = rates_of_graphs(runs_folder(), trainings) if trainings else []
    if None in rates:
        return None
    return sum(rate.seconds * n for rate, n in zip(rates, steps, strict=True) if rate and n)
