"""Whether a run fits the memory that is free, before anything of it is encoded; what auto chooses.

A plan is of the training's steps alone. What encodes pictures and captions comes and goes before
them, and the host moves that out of the way by itself; previews are made by its sampler, which does
so too.
"""

from __future__ import annotations

import dataclasses
import logging

from ....trainers.errors import UnavailableError
from ....trainers.models.fitting import (
    Asked,
    Fit,
    NoPlanError,
    Room,
    cheapest,
    choose,
    without_auto,
)
from ....trainers.models.memory import StepMemory
from ....trainers.models.precision import DTYPES
from ....trainers.settings.memory import OFF, REFUSE
from ..memory import device
from .plan import free_bytes, largest_step
from .plans import planned
from .run import Run

log = logging.getLogger(__name__)

GB = 1e9
# In RAM, which holds the host's weights and much else, few trainings come near what is free. They
# are planned only if activations of twice the weights for each 512 x 512 pixels would be too many:
# SD1.5 without checkpointing takes 0.7 times its weights, SDXL at 1024 px 1.6 times. A picture has
# a prompt beside it, so that small ones count as much.
TIMES_ITS_WEIGHTS, PIXELS = 2, 512 * 512
OF_EACH_TRAINED = 4  # itself, its gradient, two states of the optimizer


def fitted(run: Run) -> Run:
    """The run with what `auto` chose, to be trained so.

    Call it in `torch.inference_mode(False)`, after models were asked to leave the device.

    Raises:
        UnavailableError: it needs more than is free; the message says what would fit.
    """
    plain = dataclasses.replace(run, config=without_auto(run.config))
    if run.config.memory.memory_plan == OFF or not _may_be_short(run):
        return plain
    if run.processes.shard:
        log.info("Personalize: no plan of memory, since processes share the weights out.")
        return plain
    asked = Asked(run.config, run.sockets.dataset.resolution_px)
    room = Room(_free(run), device().type)

    def plan(tried: Asked) -> StepMemory:
        run.reporter.status("planning memory")
        return planned(run, tried)

    try:
        found, fits = choose(asked, room, plan)
    except NoPlanError as error:
        log.info("Personalize: no plan of memory for this model (%s).", error)
        return plain
    needs = _needs(found, room)
    if not fits:
        others = cheapest(found, room, plan)
        if run.config.memory.memory_plan == REFUSE:
            raise UnavailableError(_refusal(needs, *others))
        log.warning("Personalize: %s. %s It is tried.", needs, _remedy(*others))
    else:
        log.info("Personalize: %s.", needs)
    run.reporter.note(needs)
    return dataclasses.replace(run, config=found.asked.config)


def _may_be_short(run: Run) -> bool:
    """Whether a plan is worth its time."""
    if device().type != "cpu":
        return device().type == "cuda"  # of some others the host can only guess what is free
    config, denoiser = run.config, run.sockets.model.model.diffusion_model
    weights: int = sum(one.numel() * one.element_size() for one in denoiser.parameters())
    held = weights
    if config.changes_weights:
        held_in = DTYPES[config.own.weights]
        weights = sum(one.numel() for one in denoiser.parameters()) * held_in.itemsize
        held = OF_EACH_TRAINED * weights
    activations = TIMES_ITS_WEIGHTS * weights * largest_step(run).pixels(PIXELS) / PIXELS
    return held + activations > _free(run)


def _free(run: Run) -> int:
    """What this process may take: all processes on a CPU are in the same RAM."""
    return free_bytes() // (run.processes.count if device().type == "cpu" else 1)


def _needs(found: Fit, room: Room) -> str:
    needs = f"needs {found.needed_bytes / GB:.3g} of {room.free_bytes / GB:.3g} GB free"
    return f"{needs}, with {found.changed}" if found.changed else needs


def _refusal(needs: str, other: Fit, fits: bool) -> str:
    place = "RAM" if device().type == "cpu" else f"the GPU ({device()})"
    remedy = _remedy(other, fits)
    return (
        f"This training does not fit into {place}: it {needs}.\n{remedy} Change that and queue "
        "again, or let it be tried with memory_plan 'warn' in Memory and Speed Settings."
    )


def _remedy(other: Fit, fits: bool) -> str:
    needed = f"{other.needed_bytes / GB:.3g} GB"
    if fits:
        return f"With {other.changed} it needs {needed}."
    if other.changed:
        return f"No settings are known that fit; with {other.changed} it would still need {needed}."
    return "No settings are known that need less."
