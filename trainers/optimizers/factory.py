"""Optimizers and learning-rate schedules: all from libraries, chosen by name."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UnavailableError
from ..settings.training import SCHEDULE_FREE, TrainingConfig
from .muon import MuonAndAdamW
from .per_parameter import PerParameter
from .processes import ALONE, Processes
from .rates import with_own_rates
from .sharded import Part, clip_parts

# Adafactor and CAME look at rows and columns.
ELEMENTWISE = ("adamw", "adamw_8bit", "lion", "lion_8bit", "paged_adamw", "paged_adamw_8bit")
ParamGroups = list[dict[str, Any]]


def make_optimizer(
    groups: ParamGroups,
    config: TrainingConfig,
    fused_backward: bool = False,
    processes: Processes = ALONE,
) -> torch.optim.Optimizer:
    """The optimizer `config.optimizer` names, over `groups`, each with its own "lr".

    It is one for each parameter where it works in the backward pass or where weights are bf16.

    Args:
        processes: those whose gradients are summed in the backward pass.

    Raises:
        UnavailableError: its package is not installed.
    """

    def make(some: ParamGroups) -> torch.optim.Optimizer:
        return _make(config, some)

    groups = with_own_rates(config.optimizer, groups)

    narrow = any(p.dtype != torch.float32 for group in groups for p in group["params"])
    if not (fused_backward or narrow):
        return make(groups)
    max_norm = config.max_grad_norm or math.inf
    elementwise = config.optimizer in ELEMENTWISE
    return PerParameter(
        groups, make, config.seed, fused=fused_backward, max_norm=max_norm,
        elementwise=elementwise, processes=processes,
    )  # fmt: skip


def sum_gradients(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], processes: Processes
) -> None:
    """After the backward pass: the gradients of all processes together.

    They are zero where no process has any at all: no prompt of the batch had a learned token.
    """
    if isinstance(optimizer, PerParameter) and optimizer.fused:
        optimizer.finish_backward()
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if isinstance(parameter, Part):
            parameter.take_gradient()
    processes.add_gradients([p for p in trained if not isinstance(p, Part)])
    if all(parameter.grad is None for parameter in trained):
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)


def clip_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    processes: Processes = ALONE,
) -> Tensor:
    """Shorten the gradients together to `max_norm` (0: not at all); their length before.

    Those that were used up in the backward pass were shortened there, each tensor by itself.
    """
    if isinstance(optimizer, PerParameter) and optimizer.fused:
        return optimizer.take_norm()
    parameters = list(parameters)
    if any(isinstance(parameter, Part) for parameter in parameters):
        return clip_parts(parameters, max_norm or math.inf, processes)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)


class _Kind(NamedTuple):
    """Where an optimizer is found, and how it is asked for.

    Attributes:
        module: that is imported, if it is not called as its package is.
    """

    package: str
    path: str
    options: Mapping[str, Any] = MappingProxyType({})
    module: str = ""


_KINDS = {
    "adamw": _Kind("torch", "optim.AdamW", {"fused": True}),
    "adamw_8bit": _Kind("bitsandbytes", "optim.AdamW8bit"),
    # Its own schedule and parameter scaling are off: the rate on the node is the rate (K). Each
    # group has its own rate; a missing one for all breaks the polynomial schedule.
    "adafactor": _Kind(
        "transformers",
        "Adafactor",
        {"lr": 1e-3, "scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "prodigy": _Kind(
        "prodigyopt", "Prodigy", {"safeguard_warmup": True, "use_bias_correction": True}
    ),
    "lion": _Kind("bitsandbytes", "optim.Lion"),
    "lion_8bit": _Kind("bitsandbytes", "optim.Lion8bit"),
    "paged_adamw": _Kind("bitsandbytes", "optim.AdamW", {"is_paged": True}),
    "paged_adamw_8bit": _Kind("bitsandbytes", "optim.AdamW8bit", {"is_paged": True}),
    "adamw_schedule_free": _Kind("schedulefree", "AdamWScheduleFree"),
    # It says aloud that one group cannot be split.
    "prodigy_schedule_free": _Kind(
        "prodigy-plus-schedule-free", "ProdigyPlusScheduleFree", module="prodigyplus"
    ),
    "came": _Kind("came-pytorch", "CAME", {"lr": 1e-3}, module="came_pytorch"),
}


def _make(config: TrainingConfig, groups: ParamGroups) -> torch.optim.Optimizer:
    name = config.optimizer
    if name == "muon":
        return MuonAndAdamW(groups, config.weight_decay)
    kind = _KINDS[name]
    options = dict(kind.options)
    if name == "adamw_schedule_free":
        options["warmup_steps"] = config.warmup_steps
    if name == "prodigy_schedule_free":
        options["split_groups"] = len(groups) > 1
    if "is_paged" in options:  # elsewhere the state has no other place
        options["is_paged"] = all(_is_on_gpu(p) for group in groups for p in group["params"])
    optimizer_class = operator.attrgetter(kind.path)(_imported(name, kind))
    made: torch.optim.Optimizer = optimizer_class(
        groups, weight_decay=config.weight_decay, **options
    )
    if name in SCHEDULE_FREE:
        made.train()  # type: ignore[attr-defined]
    return made


def _imported(name: str, kind: _Kind) -> Any:
    try:
        return importlib.import_module(kind.module or kind.package)
    except ImportError as error:
        raise UnavailableError(
            f"Optimizer '{name}' needs the package {kind.package}, which is not installed.\n"
            f"Install it into ComfyUI's Python with: python -m pip install {kind.package}; "
            "or choose 'adamw'."
        ) from error


def _is_on_gpu(parameter: Tensor) -> bool:
    # Fakes (models/memory.py) have a GPU without one, and pages are the driver's.
    return parameter.is_cuda and not hasattr(parameter, "fake_mode")


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """transformers' schedule `config.lr_schedule` over `num_steps` optimizer steps.

    Schedule-free optimizers do their own warm-up.
    """
    from transformers.optimization import get_scheduler

    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        "constant" if config.optimizer in SCHEDULE_FREE else config.lr_schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=num_steps,
    )
    return schedule
