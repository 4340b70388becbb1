"""What can be trained, asked before anything is loaded, and what of a MODEL training leaves out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import comfy.latent_formats
import comfy.lora
import comfy.model_base
import torch
from comfy.quant_ops import QuantizedTensor
from torch import nn

from ....trainers.errors import UnsupportedModelError
from ....trainers.methods.lora import text_layer_name
from ....trainers.models.architectures import GENERIC, Architecture, architecture_of
from ....trainers.models.tread import check_route
from .objective import objective_of
from .stored import gguf
from .stored.quantized import FLOAT8, is_scale, model_dtype, stored_weight
from .text import host_node
from .tokenizer import encoder_names, widths

log = logging.getLogger(__name__)

# Classes of the host's models whose latents and channels do not tell.
SHAPES = ("TripoSplat",)  # makes them as pictures' latents are made
RESTORERS = ("PiD", "SeedVR2")  # ask for a picture when they run
PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def record_of(model: Any) -> Architecture:
    """The record of a MODEL; GENERIC where there is none."""
    return architecture_of(type(model.model.model_config).__name__)


def check_model(model: Any, whole: bool = False) -> Architecture:
    """The record of a MODEL; GENERIC where there is none.

    Args:
        whole: whether its own weights are to train, so that they have to be plain numbers.

    Raises:
        UnsupportedModelError: it cannot be trained; the message says why.
    """
    base = model.model
    kind = type(base.model_config).__name__
    if isinstance(base, comfy.model_base.SDXLRefiner):
        raise _refused(f"is a {kind}, which goes on from another model's latents")
    if not _makes_pictures(base):
        raise _refused(f"is a {kind}, which makes no pictures")
    if _has_sound(base.diffusion_model):
        raise _refused(f"is a {kind}, which makes or follows sound")
    (check_weights if whole else check_frozen_weights)("model", base.diffusion_model)
    if _wants_images(base):
        raise _refused(f"is a {kind} that takes a picture beside the noise (inpainting, image-"
                       "conditioned)")  # fmt: skip
    objective_of(model)
    if model.injections:
        raise UnsupportedModelError(
            f"Input 'model' carries injections ({', '.join(model.injections)}), such as a LoRA in "
            "bypass mode, which training would not see.\nLoad the LoRA with Load LoRA, or remove "
            "it before the trainer."
        )
    return record_of(model)


def check_clip(clip: Any, model: Any, trains: bool = False, whole: bool = False) -> None:
    """Raise UnsupportedModelError unless what `clip` gives fits `model`.

    Args:
        trains: whether gradients go through it. If not, the host encodes texts with it as it
            stands, quantized or not.
        whole: whether its own weights train.
    """
    if clip is None:
        raise UnsupportedModelError(
            "Input 'clip' is empty: the checkpoint holds no text encoder.\n"
            "Wire the clip of a checkpoint that has one, or of Load CLIP."
        )
    if trains:
        (check_weights if whole else check_frozen_weights)("clip", clip.cond_stage_model)
    wanted = model.model.model_config.unet_config.get("context_dim")
    found = widths(clip)
    if isinstance(wanted, int) and found and sum(found.values()) != wanted:
        listed = ", ".join(f"{name} {width}" for name, width in found.items())
        raise UnsupportedModelError(
            f"Input 'clip' gives encodings {sum(found.values())} wide ({listed}), but 'model' "
            f"takes {wanted}.\nWire model and clip from the same checkpoint."
        )


def check_text_names(clip: Any, architecture: Architecture, targets: str) -> None:
    """Raise UnsupportedModelError unless a LoRA's file can name what trains of `clip`.

    Args:
        targets: one of LORA_TARGETS.
    """
    read = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    nameless = [
        name
        for name in architecture.trained_encoders(encoder_names(clip))
        for layers in [architecture.layers(name, getattr(clip.cond_stage_model, name), targets)]
        if any(text_layer_name(architecture, name, layer) not in read for layer in layers)
    ]
    if nameless:
        raise UnsupportedModelError(
            f"Input 'clip' has {', '.join(nameless)}, for whose layers a LoRA's file for "
            f"{architecture.title} has no names that ComfyUI reads.\nWire the text encoders that "
            f"such models come with ({', '.join(architecture.text_prefixes)}), all of them in one "
            "clip, or set train_text_encoder off."
        )


def check_takes_controls(model: Any, num_controls: int, dataset: str) -> None:
    """See that `model` takes so many control images with each picture.

    Args:
        dataset: what it is called.

    Raises:
        UnsupportedModelError: it does not, or this host lacks what that needs.
    """
    if not num_controls:
        return
    record, module = record_of(model), model.model.diffusion_model
    takes = "ref_latents" in inspect.signature(module.forward).parameters
    # Some look at them only where a node says how.
    if not takes or getattr(module, "default_ref_method", "") is None:
        kind = type(model.model.model_config).__name__
        raise UnsupportedModelError(
            f"Input 'dataset' ('{dataset}') has control images, but input 'model' is a {kind}, "
            "which takes none.\nLoad a model that edits pictures (FLUX.1 Kontext, FLUX.2, "
            "Qwen-Image-Edit ...), or remove the control images."
        )
    if not record.control_encoder:
        return
    node = host_node(record.control_encoder)
    if node is None:
        raise UnsupportedModelError(
            f"Input 'dataset' ('{dataset}') has control images, but this ComfyUI has no node "
            f"{record.control_encoder}, which shows them to the text encoder.\nUpdate ComfyUI."
        )
    most = sum(name.startswith("image") for name in inspect.signature(node.execute).parameters)
    if num_controls > most:
        raise UnsupportedModelError(
            f"Input 'dataset' ('{dataset}') has {num_controls} control images with each picture; "
            f"{record.title} takes at most {most}.\nRemove those beyond."
        )


def check_tread(ratio: float, model: Any, num_controls: int) -> None:
    """Raise UnsupportedModelError unless a share of tokens can skip blocks of `model`, if it is to.

    Args:
        ratio: that share; 0 for none.
        num_controls: control images with each picture.
    """
    if ratio:
        check_route(ratio, model.model.diffusion_model, num_controls > 0)


def warn_of_what_is_left_out(model: Any, clip: Any, architecture: Architecture) -> None:
    """Log what a MODEL and CLIP carry that training leaves out."""
    if architecture is GENERIC:
        log.info(
            "Personalize: %s is %s; it trains as any other module, with the settings' defaults.",
            type(model.model.model_config).__name__, architecture.title,
        )  # fmt: skip
    if left_out := sorted({*_carried(model)}):
        log.warning(
            "Personalize: input 'model' carries %s. Training works on the model without; what is "
            "handed out has it again.",
            ", ".join(left_out),
        )
    if getattr(clip, "apply_hooks_to_conds", None) or clip.patcher.forced_hooks:
        log.warning("Personalize: input 'clip' carries hooks. Training works on it without.")


def warn_of_dora(model: Any) -> None:
    """Log what a DoRA is for that is trained on a MODEL with a LoRA before it."""
    if model.patches:
        log.warning(
            "Personalize: input 'model' carries a LoRA or other patches. A DoRA's magnitudes are "
            "those of the weights with it, so use the result on the model with it too; on the "
            "model without, such as after a training adapter, other variants are exact."
        )


def _carried(model: Any) -> Iterator[str]:
    options = model.model_options
    yield from (f"the object patch '{key}'" for key in model.object_patches if _matters(key))
    if "model_function_wrapper" in options:
        yield "a model function wrapper"
    transformer = options.get("transformer_options", {})
    for kind in ("patches", "patches_replace"):
        yield from (f"{kind} {name}" for name, given in transformer.get(kind, {}).items() if given)
    for source in (getattr(model, "wrappers", {}), transformer.get("wrappers", {})):
        for kind, by_key in source.items():
            yield from (f"the {kind} wrapper '{key}'" for key, given in by_key.items() if given)


def _matters(key: str) -> bool:
    return key.startswith("diffusion_model")  # model_sampling and the like are honoured


def check_weights(socket: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError unless the weights of `module` are plain numbers."""
    for layer, name, parameter in _parameters(module):
        if gguf.is_packed(parameter):
            raise _refused("holds GGUF weights", socket)
        dtype = model_dtype(layer, name)
        if isinstance(parameter, QuantizedTensor) or dtype not in PLAIN_DTYPES:
            raise _quantized(getattr(parameter, "_qdata", parameter).dtype, dtype, socket)


def check_frozen_weights(socket: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError unless a model can train beside the weights of `module`.

    They are plain numbers, or their layers can make such of what they hold.
    """
    for layer, name, parameter in _parameters(module):
        if isinstance(parameter, QuantizedTensor):
            if name == "weight" and stored_weight(layer) is not None:
                continue
            kind = type(layer).__name__
            raise _refused(f"holds a quantized weight in a layer of kind {kind}", socket)
        if gguf.is_packed(parameter):
            if not gguf.opens(layer, parameter):
                raise _refused("holds GGUF weights that its loader's layers do not open", socket)
            continue
        dtype = model_dtype(layer, name)
        if dtype not in (*PLAIN_DTYPES, *FLOAT8) and not is_scale(layer, name):
            raise _quantized(parameter.dtype, dtype, socket)


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            yield layer, name, parameter


def _quantized(held: torch.dtype, computed: torch.dtype, socket: str) -> UnsupportedModelError:
    dtype = computed if held in PLAIN_DTYPES else held
    return _refused(f"holds quantized weights ({str(dtype).removeprefix('torch.')})", socket)


def _makes_pictures(base: Any) -> bool:
    """Sound and shapes have latents of one dimension; what finds things in pictures has none."""
    latents = base.latent_format
    if "audio_model" in base.model_config.unet_config or _is_one_of(base, SHAPES):
        return False
    return latents.latent_dimensions > 1 and type(latents) is not comfy.latent_formats.LatentFormat


def _has_sound(module: nn.Module) -> bool:
    return any("audio" in name or "music" in name for name, _ in module.named_modules())


def _is_one_of(base: Any, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(base).__mro__)


def _wants_images(base: Any) -> bool:
    """Whether the module takes channels beside the latents' own, or a picture by another way."""
    if _is_one_of(base, RESTORERS):
        return True
    latents, config = base.latent_format, base.model_config.unet_config
    if "num_res_blocks" in config and config["in_channels"] > latents.latent_channels:
        return True  # a UNet; some host classes join the picture elsewhere than in concat_cond
    shape = (1, latents.latent_channels, *[1] * (latents.latent_dimensions - 2), 8, 8)
    noise = torch.zeros(shape)
    try:
        beside = base.concat_cond(noise=noise, device=noise.device)
    except (AttributeError, KeyError, TypeError):  # it takes for granted that there is a picture
        return True
    return beside is not None and beside.shape[1] > 0


def _refused(what: str, socket: str = "model") -> UnsupportedModelError:
    remedy = (
        "Supported: text-to-image models in fp32, fp16 or bf16. Load a checkpoint of one; LoRA and "
        "Textual Inversion can train on one that is quantized, too."
    )
    if socket == "clip":
        remedy = (
            "Turn train_text_encoder off (a clip that only encodes captions may be quantized), or "
            "load text encoders in fp32, fp16 or bf16; LoRA and Textual Inversion can train "
            "through quantized ones."
        )
    return UnsupportedModelError(
        f"Input '{socket}' {what}, which cannot be trained here.\n{remedy}"
    )
