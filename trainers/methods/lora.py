"""LoRA: small trainable matrices beside frozen layers.

    h = W x + (alpha / rank) B A x          A: (rank, in) random, B: (out, rank) zero at the start

(arXiv 2106.09685; DoRA arXiv 2402.09353; rsLoRA arXiv 2312.03732 scales by alpha / sqrt(rank).)
The layers are peft's; this file chooses them, keeps them in fp32, and spells them for files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..contracts import Parts, Trainable
from ..models.architectures import DENOISER, KOHYA, Architecture
from ..settings.lora import LoraConfig
from ..settings.run import RunConfig
from .learned_tokens import copies, train_tokens

ADAPTER = "default"


def prepare(parts: Parts, config: RunConfig) -> Trainable:
    """Put a LoRA into the denoiser and, if asked for, into the text encoders of `parts`.

    Raises:
        SettingsError: the learned tokens are to be trained, and there are none.
    """
    lora: LoraConfig = config.own
    rates = {DENOISER: config.training.learning_rate}
    if lora.train_text_encoder:
        rates |= dict.fromkeys(parts.text.encoders, config.text_rate)
    groups: list[dict[str, Any]] = []
    for name, rate in rates.items():
        module = parts.modules[name]
        layers = parts.architecture.layers(name, module, lora.targets)
        _inject(module, layers, lora, config.training.seed)
        trained = [p for p in module.parameters() if p.requires_grad]
        groups.append({"name": name, "params": trained, "lr": rate})
    learned, more = train_tokens(parts.text, lora)
    groups += more

    def export() -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name in rates:
            tensors |= _tensors(parts, name)
        return tensors

    return Trainable(groups, export, trains_text=lora.trains_text, tokens=lambda: copies(learned))


def _inject(module: nn.Module, layers: list[str], lora: LoraConfig, seed: int) -> None:
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number works
        target_modules="|".join(map(re.escape, layers)),
        lora_dropout=lora.dropout,
        use_dora=lora.variant == "dora",
        use_rslora=lora.rank_stabilized,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # peft draws A from it, on the CPU
        peft.inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
    if architecture.spelling != KOHYA:
        start = "diffusion_model" if module_name == DENOISER else f"text_encoders.{module_name}"
        return f"{start}.{layer}"
    if module_name == DENOISER:
        named = parts.diffusers_names[layer] if architecture.diffusers_names else layer
        return f"lora_unet_{named}".replace(".", "_")
    prefix = architecture.text_prefixes[module_name]
    return f"{prefix}_{layer.removeprefix('transformer.')}".replace(".", "_")


def _tensors(parts: Parts, module_name: str) -> dict[str, Tensor]:
    """What a file holds of each adapted layer: down, up, alpha, dora_scale."""
    from peft.tuners.lora import LoraLayer

    kohya = parts.architecture.spelling == KOHYA
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    tensors: dict[str, Tensor] = {}
    for name, layer in parts.modules[module_name].named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        key = layer_name(parts, module_name, name)
        b = _kept(layer.lora_B[ADAPTER].weight)
        tensors[f"{key}.{up}.weight"] = b
        tensors[f"{key}.{down}.weight"] = _kept(layer.lora_A[ADAPTER].weight)
        # Readers scale by alpha / rank, and take a missing alpha for "scale 1"; with rsLoRA this
        # alpha is not the one that was set.
        tensors[f"{key}.alpha"] = torch.tensor(layer.scaling[ADAPTER] * layer.r[ADAPTER])
        if ADAPTER in layer.lora_magnitude_vector:
            tensors[f"{key}.dora_scale"] = _dora_scale(layer).reshape(-1, *[1] * (b.ndim - 1))
    return tensors


def _dora_scale(layer: Any) -> Tensor:
    """The magnitude of each output of a DoRA layer, as ComfyUI reads it. (out,) fp32.

    DoRA scales W + BA by m / |W + BA|; ComfyUI (0.18 to 0.30, weight_adapter/base.py) divides by
    |W| instead when the scale is per output, so the ratio of the two norms goes into the scale.
    """
    with torch.no_grad():
        weight = layer.get_base_layer().weight.float()
        merged = weight + layer.get_delta_weight(ADAPTER).float()
        ratio = weight.flatten(1).norm(dim=1) / merged.flatten(1).norm(dim=1)
        return _kept(layer.lora_magnitude_vector[ADAPTER].weight.flatten() * ratio)


def _kept(parameter: Any) -> Tensor:
    # A copy on the CPU, so that nothing keeps the training modules alive.
    kept: Tensor = parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
    return kept
