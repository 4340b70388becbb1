"""Which timesteps train, and how often each: laws over the noise level u, from 0 to 1.

    uniform        u ~ U(0, 1)
    logit_normal   u = sigmoid(mean + std n), n ~ N(0, 1)   (arXiv 2403.03206, eq. 19)
    shift          s u / (1 + (s - 1) u) of that one: towards noise for s > 1
    flux_shift     the same with s = exp(mu), mu from 0.5 at 256 tokens to 1.15 at 4096 (FLUX.1's
                   sampler; kohya's name): large pictures need more noise to hide what they show

The settings' range, in thousandths, is what u is spread over. `auto` is uniform where noise or v
is predicted, as those models were trained, and logit_normal for flow matching.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..settings.field import raise_problems
from ..settings.objective import AUTO, FLUX_SHIFT, LOGIT_NORMAL, SHIFT, UNIFORM, ObjectiveConfig
from .noise import Objective

THOUSAND = 1000
PIXELS_PER_TOKEN = 16 * 16
FEW_TOKENS, MANY_TOKENS = 256, 4096
LITTLE_SHIFT, MUCH_SHIFT = 0.5, 1.15  # as exponents


def law_of(settings: ObjectiveConfig, process: Objective) -> str:
    """The law that `auto` stands for, or the one that was asked for."""
    if settings.timestep_sampling != AUTO:
        return settings.timestep_sampling
    return LOGIT_NORMAL if process.prediction == "flow" else UNIFORM


def check_objective(settings: ObjectiveConfig, process: Objective) -> None:
    """Raise SettingsError for settings that mean nothing to what this model predicts."""
    problems = []
    if settings.min_snr_gamma and process.prediction == "flow":
        problems.append(
            f"min_snr_gamma is {settings.min_snr_gamma:g}, but this model is trained by flow "
            "matching, for which min-SNR is not defined; allowed: 0"
        )
    if law_of(settings, process) == UNIFORM and settings.shapes_logit_normal:
        problems.append(
            "logit_mean or logit_std is set, but timestep_sampling 'auto' is uniform for this "
            f"model ({process.prediction} prediction); allowed: timestep_sampling 'logit_normal'"
        )
    wants_own = settings.timestep_sampling == SHIFT and not settings.discrete_flow_shift
    if wants_own and process.shift is None:
        problems.append(
            "discrete_flow_shift is 0, which means the model's own, but this model "
            f"({process.prediction} prediction) has none; allowed: above 0, such as 3"
        )
    raise_problems(problems)


def draw_timesteps(
    num: int,
    generator: torch.Generator,
    settings: ObjectiveConfig,
    process: Objective,
    area_px: int,
) -> Tensor:
    """Timesteps (num,) as `process` counts them, for pictures of one area."""
    lowest, highest = settings.timestep_min, settings.timestep_max
    law = law_of(settings, process)
    if law == UNIFORM:
        thousandths = torch.randint(lowest, highest + 1, (num,), generator=generator)
        return _timesteps(thousandths, process)
    normal = torch.randn(num, generator=generator)
    levels = torch.sigmoid(settings.logit_mean + settings.logit_std * normal)
    levels = shifted(levels, _shift(law, settings, process, area_px))
    thousandths = lowest + levels * (highest + 1 - lowest)
    # A sigmoid far out rounds to 1, which would be the next thousandth.
    return process.timesteps(thousandths.clamp(max=highest + 0.999) / THOUSAND)


def even_timesteps(num: int, settings: ObjectiveConfig, process: Objective) -> Tensor:
    """Timesteps (num,) at even distances inside the range."""
    even = torch.linspace(settings.timestep_min, settings.timestep_max, num + 2)[1:-1]
    return _timesteps(even.round().long(), process)


def _timesteps(thousandths: Tensor, process: Objective) -> Tensor:
    return process.timesteps((thousandths + 0.5) / THOUSAND)  # in the middle of each


def shifted(levels: Tensor, shift: float) -> Tensor:
    """Levels moved towards noise for shift > 1, towards none for shift < 1."""
    return shift * levels / (1 + (shift - 1) * levels)


def flux_shift(area_px: int) -> float:
    """The shift that FLUX.1 samples a picture of this area with."""
    tokens = area_px / PIXELS_PER_TOKEN
    slope = (MUCH_SHIFT - LITTLE_SHIFT) / (MANY_TOKENS - FEW_TOKENS)
    return math.exp(LITTLE_SHIFT + slope * (tokens - FEW_TOKENS))


def _shift(law: str, settings: ObjectiveConfig, process: Objective, area_px: int) -> float:
    if law == FLUX_SHIFT:
        return flux_shift(area_px)
    return (settings.discrete_flow_shift or process.shift or 1.0) if law == SHIFT else 1.0
