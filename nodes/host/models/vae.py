"""The host's VAE as a function from pictures to latents."""

from __future__ import annotations

import logging
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ....trainers.data.examples import EncodePicture, ScaleLatents
from ....trainers.errors import UnsupportedModelError
from .stored.storage import alias

log = logging.getLogger(__name__)

PICTURE_CHANNELS = (3, 4)


def check_vae(vae: Any) -> None:
    """Raise UnsupportedModelError if the host found no weights for `vae`, or it is for sound."""
    if vae is None or vae.first_stage_model is None:
        raise UnsupportedModelError(
            "Input 'vae' is empty: the checkpoint holds no VAE.\n"
            "Wire the vae of a checkpoint that has one, or of Load VAE."
        )
    if vae.output_channels not in PICTURE_CHANNELS:
        raise UnsupportedModelError(
            f"Input 'vae' gives {vae.output_channels} channels, so no pictures.\n"
            "Wire the vae of the model that is trained."
        )


def encoder_of(vae: Any) -> EncodePicture:
    """Encode with `vae`, as VAE Encode does.

    From the first picture that overflows on, an fp32 copy of `vae` encodes.
    """
    current = vae

    def encode(pixels: Tensor) -> Tensor:
        nonlocal current
        latents = _encode(current, pixels)
        if not latents.isfinite().all() and current is vae and vae.vae_dtype != torch.float32:
            log.warning("Personalize: the VAE overflows in %s; using fp32.", vae.vae_dtype)
            current = comfy.sd.VAE(sd=dict(vae.get_sd()), dtype=torch.float32)
            latents = _encode(current, pixels)
        return latents

    return encode


def scaler_of(model: Any) -> ScaleLatents:
    """Scale latents for the denoiser of `model`, as the host's sampler does."""
    return lambda latents: alias(model.model.process_latent_in(latents))


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return alias(vae.encode(pixels))
