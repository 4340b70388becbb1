"""Before and after: base and trained, sampled from the same noise; and what nodes showed last.

    GET /personalize/before_after?graph=...   200 {"shown": {node: pairs}}: the last pairs of each
                                              node of this graph, by the ids of both, see `pairs_of`

The host's history has them: also where it has given out what it had cached. The files lie in its
temp folder, which it empties when it starts. They are shown by js/pictures/before_after.js.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import server
import torch
from aiohttp import web
from torch import Tensor

from ....trainers.errors import SettingsError
from ....trainers.runs.pictures.grid import Label, draw_grid
from ....trainers.settings.preview import BeforeAfterConfig
from ..memory import check_interrupt
from ..models.support import check_clip
from ..models.vae import check_vae
from ..sampling import (
    PictureProgress,
    Sampling,
    conditioning,
    decoded,
    picture_of,
    sample,
)
from .class_images import Painter
from .overview import image_of

ROUTE = "/personalize/before_after"
SIDES = ("before", "after")
SHOWN = "before_after"  # among what a node returns as its `ui`


@dataclass(frozen=True)
class Sampled:
    """What both sides make.

    Attributes:
        before: (B, H, W, 3) in 0..1, by seeds.
        after: the same.
        compared: (1, h, w, 3), the pairs with labels.
    """

    before: Tensor
    after: Tensor
    compared: Tensor


def before_after(painter: Painter, trained: tuple[Any, Any], config: BeforeAfterConfig) -> Sampled:
    """Sample base and trained with the same seeds, each picture as KSampler makes it alone.

    Args:
        painter: of the base.
        trained: model and clip; None where the base's serves.

    Raises:
        SettingsError: neither of them is there.
        UnsupportedModelError: the checkpoint has no text encoder or no VAE, or what a clip says
            does not fit its model.
    """
    check_vae(painter.vae)
    if trained == (None, None):
        raise SettingsError(
            (
                "trained_model and trained_clip are both empty; allowed: either or both; wire the "
                "model and clip of what was trained, of Textual Inversion its clip alone",
            )
        )
    base = (painter.model, painter.clip)
    others = tuple(new if new is not None else old for new, old in zip(trained, base, strict=True))
    for model, clip in (base, others):
        check_clip(clip, model)
    told = _told((base[1], others[1]), config)
    progress = PictureProgress(painter.model, 2 * config.count, config.steps)
    latents = [
        _latents(painter, model, config, texts, progress)
        for model, texts in zip((base[0], others[0]), told, strict=True)
    ]
    # One by one, as a batch would be rounded in another way; and all of them at the end, since a
    # device may have no room for the model and its decoder.
    before, after = (torch.cat([decoded(painter.vae, one) for one in side]) for side in latents)
    return Sampled(before, after, image_of(_sheet((before, after), config)))


def _told(clips: tuple[Any, Any], config: BeforeAfterConfig) -> list[tuple[Any, Any]]:
    """Positive and negative of each side; what is the same is encoded once."""
    known: dict[tuple[int, str], Any] = {}
    for clip, prompt in zip(clips, config.prompts, strict=True):
        for text in (prompt, config.negative_prompt):
            if (id(clip), text) not in known:
                known[id(clip), text] = conditioning(clip, text)
    return [
        (known[id(clip), prompt], known[id(clip), config.negative_prompt])
        for clip, prompt in zip(clips, config.prompts, strict=True)
    ]


def _latents(
    painter: Painter,
    model: Any,
    config: BeforeAfterConfig,
    told: tuple[Any, Any],
    progress: PictureProgress,
) -> list[Tensor]:
    """Those of each seed."""
    how = Sampling(config.steps, config.cfg, painter.sampler_name, painter.scheduler)
    stride_px = painter.vae.spacial_compression_encode()
    size = (config.height // stride_px, config.width // stride_px)
    made = []
    for seed in config.seeds:
        check_interrupt()
        made.append(sample(model, how, told, [seed], size, progress))
        progress.pictures_done += 1
    return made


def _sheet(sides: Sequence[Tensor], config: BeforeAfterConfig) -> Any:
    """The pairs below each other, as a picture with labels."""
    cells = [list(map(picture_of, pair)) for pair in zip(*sides, strict=True)]
    rows = [Label(f"seed {seed}") for seed in config.seeds]
    columns = [f"{side}: {text}" for side, text in zip(SIDES, config.prompts, strict=True)]
    return draw_grid(cells, rows, columns)


# -- what pages show ----------------------------------------------------------


def pairs_of(
    files: tuple[Sequence[Any], Sequence[Any]], config: BeforeAfterConfig
) -> list[dict[str, Any]]:
    """What the node shows, a row for each seed: {"files", "prompts", "seed"}.

    The first two are lists of before and after, files as ComfyUI's /view takes them; the seed is
    text, since it may be larger than a page's numbers.
    """
    return [
        {"files": list(pair), "prompts": list(config.prompts), "seed": str(seed)}
        for *pair, seed in zip(*files, config.seeds, strict=True)
    ]


def register_before_after() -> None:
    """Add the route to the host's server."""
    server.PromptServer.instance.routes.get(ROUTE)(_answer)


async def _answer(request: web.Request) -> web.Response:
    graph_id = request.query.get("graph")
    shown: dict[str, Any] = {}
    history = server.PromptServer.instance.prompt_queue.get_history()
    for entry in history.values():  # the oldest first
        told = entry["prompt"][3].get("extra_pnginfo")  # whatever a client has sent
        workflow = told.get("workflow") if isinstance(told, dict) else None
        if graph_id and isinstance(workflow, dict) and workflow.get("id") == graph_id:
            shown |= _shown(entry["outputs"])
    return web.json_response({"shown": shown})


def _shown(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {node: given[SHOWN] for node, given in outputs.items() if SHOWN in given}
