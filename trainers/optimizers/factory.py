"""Optimizers and learning-rate schedules: all from libraries, chosen by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnavailableError
from ..settings.training import TrainingConfig
from .per_parameter import PerParameter

ELEMENTWISE = ("adamw", "adamw_8bit", "lion")  # Adafactor looks at rows and columns
ParamGroups = list[dict[str, Any]]


def make_optimizer(
    groups: ParamGroups, config: TrainingConfig, fused_backward: bool = False
) -> torch.optim.Optimizer:
    """The optimizer `config.optimizer` names, over `groups`, each with its own "lr".

    It is one for each parameter where it works in the backward pass or where weights are bf16.

    Raises:
        UnavailableError: its package is not installed.
    """

    def make(some: ParamGroups) -> torch.optim.Optimizer:
        return _MAKERS[config.optimizer](some, config.weight_decay)

    narrow = any(p.dtype != torch.float32 for group in groups for p in group["params"])
    if not (fused_backward or narrow):
        return make(groups)
    max_norm = config.max_grad_norm or math.inf
    elementwise = config.optimizer in ELEMENTWISE
    return PerParameter(
        groups, make, config.seed, fused=fused_backward, max_norm=max_norm, elementwise=elementwise
    )


def clip_gradients(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_norm: float
) -> Tensor:
    """Shorten the gradients together to `max_norm` (0: not at all); their length before.

    Those that were used up in the backward pass were shortened there, each tensor by itself.
    """
    if isinstance(optimizer, PerParameter) and optimizer.fused:
        return optimizer.take_norm()
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)


def _adamw(groups: ParamGroups, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def _adamw_8bit(groups: ParamGroups, weight_decay: float) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _library("bitsandbytes", "adamw_8bit").optim.AdamW8bit(
        groups, weight_decay=weight_decay
    )
    return made


def _adafactor(groups: ParamGroups, weight_decay: float) -> torch.optim.Optimizer:
    # Its own schedule and parameter scaling are off: the rate on the node is the rate (K).
    made: torch.optim.Optimizer = _library("transformers", "adafactor").Adafactor(
        groups,
        lr=1e-3,  # each group has its own; None breaks the polynomial schedule
        weight_decay=weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
    return made


def _prodigy(groups: ParamGroups, weight_decay: float) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _library("prodigyopt", "prodigy").Prodigy(
        groups, weight_decay=weight_decay, safeguard_warmup=True, use_bias_correction=True
    )
    return made


def _lion(groups: ParamGroups, weight_decay: float) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _library("bitsandbytes", "lion").optim.Lion(
        groups, weight_decay=weight_decay
    )
    return made


_MAKERS: dict[str, Callable[[ParamGroups, float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "lion": _lion,
}


def _library(package: str, optimizer: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UnavailableError(
            f"Optimizer '{optimizer}' needs the package {package}, which is not installed.\n"
            f"Install it into ComfyUI's Python with: python -m pip install {package}; "
            "or choose 'adamw'."
        ) from error


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """diffusers' schedule `config.lr_schedule` over `num_steps` optimizer steps."""
    from diffusers.optimization import get_scheduler

    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        config.lr_schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=num_steps,
    )
    return schedule
