"""LoRA and its relatives: small trainable matrices beside frozen layers.

    h = W x + (alpha / rank) B A x          A: (rank, in) random, B: (out, rank) zero at the start

The kinds are in adapters/variants.py; this file chooses the layers, and spells them for files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..contracts import Parts, Trainable
from ..errors import UnavailableError
from ..models.architectures import DENOISER, KOHYA, Architecture
from ..models.recast import NARROW
from ..optimizers.per_parameter import NARROW_STATE
from ..settings.methods.lora import LoraConfig
from ..settings.run import RunConfig
from .adapters.pissa import starts
from .adapters.variants import ADAPTER, held_layers, inject, switched_off
from .learned_tokens import copies, train_tokens


def prepare(parts: Parts, config: RunConfig) -> Trainable:
    """Put a LoRA into the denoiser and, if asked for, into the text encoders of `parts`.

    Raises:
        SettingsError: the learned tokens are to be trained, and there are none.
        UnavailableError: the adapter is to be bf16 on a device that computes in fp16.
    """
    lora: LoraConfig = config.own
    if lora.adapter_weights == "bf16" and parts.dtype == torch.float16:
        raise UnavailableError(
            "adapter_weights bf16 is not possible in fp16, which this device needs for speed.\n"
            "Choose adapter_weights fp32, or precision fp32 or bf16."
        )
    rates = {DENOISER: config.training.learning_rate}
    if lora.train_text_encoder:
        encoders = parts.architecture.trained_encoders(parts.text.encoders)
        rates |= dict.fromkeys(encoders, config.text_rate)
    groups: list[dict[str, Any]] = []
    for name, rate in rates.items():
        module = parts.modules[name]
        layers = parts.architecture.layers(name, module, lora.targets)
        inject(module, layers, lora, config.training.seed, parts.device)
        if name == DENOISER and parts.dtype in NARROW and lora.narrows_copies:
            from .adapters.narrow import compute_narrow

            compute_narrow(module, ADAPTER, parts.dtype)
        trained = [p for p in module.parameters() if p.requires_grad]
        group = {"name": name, "params": trained, "lr": rate}
        groups.append(group | {NARROW_STATE: lora.adapter_weights == "bf16"})
    learned, more = train_tokens(parts.text, lora)
    groups += more

    def export(copy: bool = False) -> dict[str, Tensor]:  # always copies
        tensors: dict[str, Tensor] = {}
        for name in rates:
            tensors |= _tensors(parts, name)
        return tensors

    frozen = [start for name in rates for start in starts(parts.modules[name])]

    def load_state(state: dict[str, Any]) -> None:
        for start, kept in zip(frozen, state.get("starts", ()), strict=True):
            start.data.copy_(kept)

    return Trainable(
        groups,
        export,
        trains_text=lora.trains_text,
        tokens=lambda: copies(learned),
        state=lambda: {"starts": [start.detach() for start in frozen]},
        load_state=load_state,
        base_model=lambda: switched_off([parts.modules[name] for name in rates]),
    )


class Naming(Protocol):
    """What decides how layers are called."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def diffusers_names(self) -> Mapping[str, str]:
        """Those of the denoiser's layers, where the architecture goes by them."""


def layer_name(parts: Naming, module_name: str, layer: str) -> str:
    """What a layer is called in a LoRA's file.

    kohya's spelling is read by ComfyUI, A1111, Forge and diffusers; the dotted one is the host's
    own, for every model it knows.
    """
    architecture = parts.architecture
    if module_name != DENOISER:
        return text_layer_name(architecture, module_name, layer)
    if architecture.spelling != KOHYA:
        return f"diffusion_model.{layer}"
    named = parts.diffusers_names[layer] if architecture.diffusers_names else layer
    return f"lora_unet_{named}".replace(".", "_")


def text_layer_name(architecture: Architecture, encoder: str, layer: str) -> str:
    """The same of a text encoder's layer; nothing where such files have no name for it."""
    if architecture.spelling != KOHYA:
        return f"text_encoders.{encoder}.{layer}"
    prefix = architecture.text_prefixes.get(encoder, "")
    named = f"{prefix}_{layer.removeprefix('transformer.')}".replace(".", "_")
    return named if prefix else ""


def _tensors(parts: Parts, module_name: str) -> dict[str, Tensor]:
    """What a file holds of one module."""
    kohya = parts.architecture.spelling == KOHYA
    return {
        f"{layer_name(parts, module_name, layer)}.{ending}": tensor
        for layer, held in held_layers(parts.modules[module_name], kohya)
        for ending, tensor in held.items()
    }
