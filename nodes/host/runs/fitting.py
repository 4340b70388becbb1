"""Whether a run fits the memory that is free, before anything of it is encoded; what auto chooses.

A plan is of the training's steps alone. What encodes pictures and captions comes and goes before
them, and the host moves that out of the way by itself; previews are made by its sampler, which does
so too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

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
from ....trainers.settings.run import RunConfig
from ..memory import device
from ..models.twin import check_quantize_base
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


class Chosen(NamedTuple):
    """What `auto` chose for a run by a plan of its memory; the least where nothing fits."""

    run: Run
    fit: Fit
    fits: bool
    room: Room

    @property
    def needs(self) -> str:
        """What it takes of what is free, and with which settings where they were not asked for."""
        needed, free = (size / GB for size in (self.fit.needed_bytes, self.room.free_bytes))
        needs = f"needs {needed:.3g} of {free:.3g} GB free"
        return f"{needs}, with {self.fit.changed}" if self.fit.changed else needs

    def remedy(self) -> str:
        """What would fit, where this does not."""
        other, fits = cheapest(self.fit, self.room, lambda tried: _plan(self.run, tried))
        needed = f"{other.needed_bytes / GB:.3g} GB"
        if fits:
            return f"With {other.changed} it needs {needed}."
        if other.changed:
            return (
                f"No settings are known that fit; with {other.changed} it would still need "
                f"{needed}."
            )
        return "No settings are known that need less."


def fitted(run: Run) -> Run:
    """The run with what `auto` chose, to be trained so, and with that as its plan.

    Call it in `torch.inference_mode(False)`, after models were asked to leave the device.

    Raises:
        UnavailableError: it needs more than is free; the message says what would fit.
    """
    plain = _with_plan(run, without_auto(run.config))
    if not is_planned(run):
        return plain
    try:
        chosen = choice(run)
    except NoPlanError as error:
        log.info("Personalize: no plan of memory for this model (%s).", error)
        return plain
    if not chosen.fits:
        remedy = chosen.remedy()
        if run.config.memory.memory_plan == REFUSE:
            raise UnavailableError(_refusal(chosen.needs, remedy))
        log.warning("Personalize: %s. %s It is tried.", chosen.needs, remedy)
    else:
        log.info("Personalize: %s.", chosen.needs)
    run.reporter.note(chosen.needs)
    return _with_plan(run, chosen.fit.asked.config, chosen)


def choice(run: Run) -> Chosen:
    """What `auto` chooses for a run; for one that is not planned, as nobody knew what it takes.

    Call it as `fitted`.

    Raises:
        NoPlanError: nobody can tell.
        PersonalizeError: what the training itself would refuse.
    """
    config = run.config if is_planned(run) else without_auto(run.config)
    room = Room(_free(run), device().type)
    asked = Asked(config, run.sockets.dataset.resolution_px)
    return Chosen(run, *choose(asked, room, lambda tried: _plan(run, tried)), room)


def _plan(run: Run, tried: Asked) -> StepMemory:
    check_quantize_base(tried.config.training.quantize_base, run.sockets.model)
    run.reporter.status("planning memory")
    return planned(run, tried)


def _with_plan(run: Run, config: RunConfig, chosen: Chosen | None = None) -> Run:
    memory = config.memory
    plan: dict[str, Any] = {
        "device": device().type,
        "chosen": {"weights_in": memory.weights_in, "checkpointing": memory.checkpointing},
    }
    if chosen is not None:
        plan |= {
            "needed_bytes": chosen.fit.needed_bytes,
            "free_bytes": chosen.room.free_bytes,
            "by_kind_bytes": _by_kind(chosen.fit.memory),
        }
    return dataclasses.replace(run, config=config, plan=plan)


def _by_kind(memory: StepMemory) -> Mapping[str, int]:
    """What adds up to the peak of a step, in bytes, and what of it is there already."""
    return {k: size for k, size in dataclasses.asdict(memory).items() if k != "flops"}


def is_planned(run: Run) -> bool:
    """Whether a run has a plan before it trains; the log says so where one that may be short has
    none.
    """
    if run.config.memory.memory_plan == OFF or not _may_be_short(run):
        return False
    if run.processes.shard:
        log.info("Personalize: no plan of memory, since processes share the weights out.")
    return not run.processes.shard


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


def _refusal(needs: str, remedy: str) -> str:
    place = "RAM" if device().type == "cpu" else f"the GPU ({device()})"
    return (
        f"This training does not fit into {place}: it {needs}.\n{remedy} Change that and queue "
        "again, or let it be tried with memory_plan 'warn' in Memory and Speed Settings."
    )
