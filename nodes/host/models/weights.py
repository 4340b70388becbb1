"""What was learned onto the host's MODEL and CLIP, as clones; the inputs stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.sd
import torch
from torch import Tensor

from ....trainers.models.architectures import DENOISER
from ....trainers.runs.foreign import TEXT
from .stored.storage import alias
from .support import record_of
from .tokenizer import encoder_names
from .twin import HOST_DENOISER

BUNDLED = "bundle_emb."  # a learned token in a LoRA's file
WHOLE = (".diff", ".diff_b", ".set_weight")  # of tensors that are no factors


def apply_lora(
    model: Any, clip: Any, lora: Mapping[str, Tensor], strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """(MODEL, CLIP) with `lora` patched in by the host's own loader; None stays None."""
    if model is None and clip is None:  # the loader would warn of every key
        return None, None
    patched: tuple[Any, Any] = comfy.sd.load_lora_for_models(
        model, clip, dict(lora), strength_model, strength_clip
    )
    return patched


def lora_hooks(lora: Mapping[str, Tensor], strength_model: float, strength_clip: float) -> Any:
    """The host's hook group for a LoRA, as its own Create Hook LoRA makes from a file."""
    if strength_model == 0 and strength_clip == 0:
        return comfy.hooks.HookGroup()
    return comfy.hooks.create_hook_lora(dict(lora), strength_model, strength_clip)


def unread_keys(model: Any, clip: Any, lora: Mapping[str, Tensor]) -> list[str]:
    """Keys of a LoRA that the host's loader has no place for in this MODEL and CLIP.

    Args:
        clip: None leaves out what is for text encoders.
    """
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        places = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, places)
    patches = comfy.lora.load_lora(dict(lora), places, log_missing=False).values()
    read = {key for patch in patches for key in getattr(patch, "loaded_keys", ())}
    read |= {place + ending for place in places for ending in WHOLE}
    unread = (key for key in lora if key not in read and not key.startswith(BUNDLED))
    return sorted(key for key in unread if clip is not None or not TEXT.match(key))


def apply_weights(model: Any, clip: Any, weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """(MODEL, CLIP) with `weights` in the place of their own; None stays None.

    They are patches like any other: what is patched in later works on top of them.

    Args:
        weights: by module and the module's own key, as `changed_weights` gives them.
    """
    trained_model, trained_clip = (given and given.clone() for given in (model, clip))
    for target, of_denoiser in ((trained_model, True), (trained_clip, False)):
        if target is None:
            continue
        patches = {
            host_key(key): ("set", (tensor,))
            for key, tensor in weights.items()
            if key.startswith(f"{DENOISER}.") == of_denoiser
        }
        applied = target.add_patches(patches)
        assert len(applied) == len(patches), "every key is one of the host's"
    return trained_model, trained_clip


def changed_weights(
    model: Any, clip: Any, learned: MutableMapping[str, Tensor]
) -> dict[str, Tensor]:
    """Those of `learned` that differ from what the sockets carry, in the host's own dtypes.

    Each is taken out of `learned`: all of them in both dtypes would be gigabytes more.

    Args:
        model, clip: None where nothing is learned for it.
    """
    held = host_weights(model, clip)
    patched = {*(model.patches if model else ()), *(clip.patcher.patches if clip else ())}
    changed = {}
    for key in list(learned):
        place = host_key(key)
        was = alias(held[place]).cpu()
        now = learned.pop(key).to("cpu", was.dtype)
        if place in patched or not torch.equal(now, was):
            changed[key] = now
    return changed


def weights_bytes(model: Any, clip: Any, with_text: bool) -> int:
    """What the weights of all that trains take in the host's dtypes."""
    trained = record_of(model).trained_encoders(encoder_names(clip)) if with_text else ()
    starts = (HOST_DENOISER, *(f"{name}." for name in trained))
    return sum(
        weight.numel() * weight.element_size()
        for key, weight in host_weights(model, clip).items()
        if key.startswith(starts)
    )


def host_key(key: str) -> str:
    """The host's key of a weight, from the name of its module and its own key there."""
    return HOST_DENOISER + key.removeprefix(f"{DENOISER}.") if key.startswith(DENOISER) else key


def host_weights(model: Any, clip: Any) -> dict[str, Tensor]:
    """The parameters of denoiser and text encoders by the host's keys; of None there are none."""
    denoiser = model.model.diffusion_model.named_parameters() if model is not None else ()
    return {
        **{HOST_DENOISER + name: weight for name, weight in denoiser},
        **(dict(clip.cond_stage_model.named_parameters()) if clip is not None else {}),
    }
