"""What a MODEL predicts and its noise schedule, read off the host's class of it."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
from torch import Tensor

from ....trainers.errors import UnsupportedModelError
from ....trainers.objective.noise import Diffusion, Flow, Objective
from .stored.storage import alias

PREDICTION_OF = {comfy.model_sampling.EPS: "epsilon", comfy.model_sampling.V_PREDICTION: "v"}


def objective_of(model: Any) -> Objective:
    """What `model` is trained on, as sampling nodes before us may have set it.

    Raises:
        UnsupportedModelError: it predicts something else, or at other noise levels.
    """
    sampling = model.get_model_object("model_sampling")
    # The direct bases say it: a schedule and a prediction; other predictions inherit from these.
    bases = type(sampling).__bases__
    schedules = comfy.model_sampling
    if comfy.model_sampling.CONST in bases:
        scale = float(getattr(sampling, "noise_scale", 1.0))
        if schedules.ModelSamplingFlux in bases:
            return Flow(math.exp(sampling.shift), scale)  # which it has as an exponent
        if schedules.ModelSamplingDiscreteFlow in bases:
            return Flow(float(sampling.shift), scale)
    # The same flow: its sampler counts noise against the picture, sigma / (sigma + 1) is the share.
    if schedules.COSMOS_RFLOW in bases and schedules.ModelSamplingCosmosRFlow in bases:
        return Flow()
    prediction = next((PREDICTION_OF[base] for base in bases if base in PREDICTION_OF), None)
    if prediction is None or schedules.ModelSamplingDiscrete not in bases:
        kinds = " and ".join(base.__name__ for base in bases)
        raise UnsupportedModelError(
            f"Input 'model' samples with {kinds}, which cannot be trained here.\n"
            "Supported: epsilon and v prediction at discrete timesteps, and flow matching. Remove "
            "the sampling node before the trainer, or load another base model."
        )
    sigmas = alias(sampling.sigmas).double().cpu()
    return Diffusion(prediction, (1 / (1 + sigmas**2)).float())


def module_timesteps(sampling: Any, timesteps: Tensor) -> Tensor:
    """What the host's module is told for timesteps of `objective_of`, (B,)."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        told: Tensor = sampling.timestep(timesteps)
        return told
    return timesteps
