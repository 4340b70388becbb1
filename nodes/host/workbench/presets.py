"""The presets of a method, for the dialog of its node (js/presets/dialog.js).

    GET /personalize/presets?method=lora    200 {"presets", "nodes", "problems"}; 400 {"error"}

presets: each with name, models, about, source, and settings: name, value, default, and the input of
the training node that takes it from another node, null where it stands on the training node itself.
nodes: ids of those other nodes, by input. problems: what is wrong with other files, a line each.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import server
from aiohttp import web

from ....trainers.models.architectures import ARCHITECTURES
from ....trainers.runs.presets import Preset, read_presets
from ....trainers.settings.field import settings_of
from ....trainers.settings.run import METHOD_DEFAULTS, ON_OTHERS, ON_TRAINER, config_groups
from ...training.settings import LossSettings, MemorySettings, OptimizerSettings, RunSettings

ROUTE = "/personalize/presets"
FOLDER = Path(__file__).resolve().parents[3] / "presets"
NODES = (OptimizerSettings, LossSettings, RunSettings, MemorySettings)


def register_presets() -> None:
    """Add the route to the host's server."""
    server.PromptServer.instance.routes.get(ROUTE)(_answer)


async def _answer(request: web.Request) -> web.Response:
    method = request.query.get("method", "")
    if method not in ON_TRAINER:
        error = f"method is {method!r}; allowed: {', '.join(ON_TRAINER)}"
        return web.json_response({"error": error}, status=400)
    # Read anew each time, so that a file of the user's needs no restart; not in the event loop.
    presets, problems = await asyncio.to_thread(read_presets, FOLDER, ARCHITECTURES)
    shown = [_shown(preset) for preset in presets[method]]
    nodes = {node.PLACE: node.define_schema().node_id for node in NODES}
    return web.json_response({"presets": shown, "nodes": nodes, "problems": problems})


def _shown(preset: Preset) -> dict[str, Any]:
    places = {name: place for place, names in ON_OTHERS.items() for name in names}
    own = ON_TRAINER[preset.method]
    defaults = {
        name: METHOD_DEFAULTS[preset.method].get(name, field.default)
        for group in config_groups(preset.method).values()
        for name, (field, _) in settings_of(group).items()
    }
    settings = [
        {
            "name": name,
            "value": value,
            "default": defaults[name],
            "input": None if name in own else places[name],
        }
        for name, value in preset.settings.items()
    ]
    return {
        "name": preset.name,
        "models": [ARCHITECTURES[model].title for model in preset.models],
        "about": preset.about,
        "source": preset.source,
        "settings": settings,
    }
