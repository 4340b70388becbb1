"""From what the sockets carry to the Parts of a training, and how those are held."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch

from ....trainers.contracts import Parts
from ....trainers.models.architectures import DENOISER, Architecture
from ....trainers.models.precision import DTYPES, compute_dtype, trained_compute_dtype
from ....trainers.settings.memory import RAM
from ....trainers.settings.run import RunConfig
from ..memory import device
from .denoiser import HostDenoiser
from .objective import objective_of
from .text import HostText
from .tokenizer import embeddings_of, encoder_names
from .twin import HOST_DENOISER, Placement, twin_of


def placements(config: RunConfig, shard: bool = False) -> tuple[Placement, Placement]:
    """How the weights of the denoiser and of the text encoders are held.

    Args:
        shard: whether the denoiser's are shared out, so that no device need have all of them.
    """
    place, precision = device(), config.training.precision
    text_changed = None
    if not config.changes_weights:
        denoiser = Placement(
            place, compute_dtype(precision, place), quantized=config.training.quantize_base
        )
    else:
        held_in = DTYPES[config.own.weights]
        denoiser = Placement(place, trained_compute_dtype(precision, held_in, place), held_in)
        text_changed = held_in if config.own.train_text_encoder else None
    # The host computes prompts in fp32 whatever their weights are stored in; so does training.
    text = Placement(place, torch.float32, text_changed)
    ram = torch.device("cpu")
    if shard or config.memory.weights_in == RAM:
        denoiser = denoiser._replace(waits_on=ram)
    if config.memory.weights_in == RAM:
        text = text._replace(waits_on=ram)
    return denoiser, text


def parts_of(
    model: Any, clip: Any, architecture: Architecture, denoiser: Placement, text: Placement | None
) -> Parts:
    """Twins of the modules that take part in a training.

    Call it in `torch.inference_mode(False)`, after models were asked to leave the device.

    Args:
        denoiser: how the denoiser's weights are held.
        text: how the text encoders' are; None where they are frozen and have encoded all there is.
    """
    twin = twin_of(model.model.diffusion_model, model, HOST_DENOISER, denoiser)
    modules = {DENOISER: twin}
    encoders = clip.cond_stage_model
    if text is not None:
        names = encoder_names(clip)
        trained = architecture.trained_encoders(names)
        frozen = tuple(name for name in names if name not in trained)
        encoders = twin_of(encoders, clip.patcher, "", text, frozen)
        modules |= {name: getattr(encoders, name) for name in names}
        for name, child in encoders.named_children():
            if name not in names:  # what lies beside them has no blocks that anybody waits for
                child.to(text.device)
    parts = Parts(
        modules=modules,
        predict=HostDenoiser(model, twin, denoiser.computes_in, architecture.guidance),
        text=HostText(clip, encoders, denoiser.device, architecture.control_encoder),
        architecture=architecture,
        objective=objective_of(model),
        device=denoiser.device,
        dtype=denoiser.computes_in,
        diffusers_names=diffusers_names(model) if architecture.diffusers_names else {},
    )
    if text is not None:
        for embedding in embeddings_of(clip):
            parts.add_token(embedding.token, embedding.rows)
    return parts


def diffusers_names(model: Any) -> dict[str, str]:
    """The layers of a UNet by the names that diffusers has for them."""
    named = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    ending = ".weight"
    return {
        ours.removesuffix(ending): theirs.removesuffix(ending)
        for theirs, ours in named.items()
        if theirs.endswith(ending)
    }
