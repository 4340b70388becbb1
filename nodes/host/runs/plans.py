"""Plans of memory that were made before, by all that decides them; kept beside the runs.

A plan takes seconds, for large models half a minute, and a person queues the same training again
and again with another rate or seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui_version
import torch

from ....trainers.data.pictures import Picture
from ....trainers.errors import SaveError
from ....trainers.models.fitting import Asked
from ....trainers.models.memory import StepMemory
from ....trainers.runs.files import write_whole
from ..folders import runs_folder
from ..memory import device
from .plan import Largest, Shown, largest_step, of_two_steps, plan_memory
from .run import Run

FORMAT = 2  # another number when what is planned changes, so that plans made before do not count
MOST_REMEMBERED = 200
STEP_PX = 64  # what sides of pictures are multiples of
# Settings that no step's memory depends on, beside those that `of_two_steps` sets.
IRRELEVANT = ("seed", "learning_rate", "lr_schedule", "warmup_steps", "weight_decay")

_PACK = __name__.partition(".nodes.")[0]


def planned(run: Run, asked: Asked) -> StepMemory:
    """What the heaviest step of a run holds with these settings, as `plan_memory` says.

    Raises:
        NoPlanError, PersonalizeError: as `plan_memory`.
    """
    run = dataclasses.replace(run, config=asked.config)
    largest = _at(largest_step(run), asked.resolution_px, run.sockets.dataset.resolution_px)
    key, known = _key(run, largest), _known()
    with contextlib.suppress(KeyError, TypeError):  # a file that somebody has edited
        return StepMemory(**known[key])
    with _silent():
        memory = plan_memory(run, largest)
    newest = dict([*known.items(), (key, dataclasses.asdict(memory))][-MOST_REMEMBERED:])
    if run.processes.is_first:
        with contextlib.suppress(SaveError):  # then it is made again
            write_whole(_path(), json.dumps(newest, indent=1).encode())
    return memory


def _key(run: Run, largest: Largest) -> str:
    """A hash of all that decides a plan."""
    sockets = run.sockets
    config = of_two_steps(run.config, largest.instances.number).as_dict()
    for group in ("store", "validation"):
        del config[group]
    del config["memory"]["memory_plan"]
    for name in IRRELEVANT:
        del config["training"][name]
    place, made = device(), run.facts
    card = torch.cuda.get_device_name(place) if place.type == "cuda" else ""
    facts = [
        FORMAT, made["made_with"], made["base_model"]["computes_in"], run.architecture.name,
        comfyui_version.__version__, place.type, card, config, [_facts(one) for one in largest],
        _weights(sockets.model.model.diffusion_model), _weights(sockets.clip.cond_stage_model),
        sorted(sockets.model.patches), sorted(sockets.clip.patcher.patches),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _weights(module: torch.nn.Module) -> list[Any]:
    """What kind of weights a module has, whatever their numbers."""
    named = (*module.named_parameters(), *module.named_buffers())
    return [
        [type(module).__name__],
        *([name, [*one.shape], str(one.dtype), one.device.type, type(one.data).__name__]
          for name, one in named),
    ]  # fmt: skip


def _facts(shown: Shown | None) -> list[Any]:
    if shown is None:
        return []
    picture = shown.picture
    sizes = [picture.bucket_px, *(control.size_px for control in picture.controls)]
    return [sizes, shown.texts, shown.number]


def _at(largest: Largest, resolution_px: int, before_px: int) -> Largest:
    """The same at a lower resolution; control images stay as large as they are."""
    if resolution_px == before_px:
        return largest

    def smaller(shown: Shown) -> Shown:
        width, height = (
            max(STEP_PX, side * resolution_px // before_px // STEP_PX * STEP_PX)
            for side in shown.picture.bucket_px
        )
        picture: Picture = dataclasses.replace(shown.picture, bucket_px=(width, height))
        return shown._replace(picture=picture)

    classes = smaller(largest.classes) if largest.classes else None
    return Largest(smaller(largest.instances), classes)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A job that is only planned tells nothing of itself; errors are raised all the same."""
    pack = logging.getLogger(_PACK)
    before = pack.level
    pack.setLevel(logging.ERROR)
    try:
        yield
    finally:
        pack.setLevel(before)


def _known() -> dict[str, dict[str, int]]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(_path().read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def _path() -> Path:
    return runs_folder() / "plans.json"
