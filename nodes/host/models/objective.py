"""What a MODEL predicts and its noise schedule, read off the host's class of it."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling

from ....trainers.errors import UnsupportedModelError
from ....trainers.noise import Diffusion
from .twin import alias

PREDICTION_OF = {comfy.model_sampling.EPS: "epsilon", comfy.model_sampling.V_PREDICTION: "v"}


def objective_of(model: Any) -> Diffusion:
    """What `model` is trained on, as sampling nodes before us may have set it.

    Raises:
        UnsupportedModelError: it predicts neither noise nor velocity, or at other noise levels.
    """
    sampling = model.get_model_object("model_sampling")
    # The direct bases say it: a schedule and a prediction; other predictions inherit from these.
    bases = type(sampling).__bases__
    prediction = next((PREDICTION_OF[base] for base in bases if base in PREDICTION_OF), None)
    if prediction is None or comfy.model_sampling.ModelSamplingDiscrete not in bases:
        kinds = " and ".join(base.__name__ for base in bases)
        raise UnsupportedModelError(
            f"Input 'model' samples with {kinds}, which cannot be trained here.\n"
            "Supported: epsilon and v prediction at discrete timesteps. Remove the sampling node "
            "before the trainer, or load another base model."
        )
    sigmas = alias(sampling.sigmas).double().cpu()
    return Diffusion(prediction, (1 / (1 + sigmas**2)).float())
