"""LoRAs of Stable Diffusion 1.5, 2 and XL as diffusers spells them.

    unet.<attention>.processor.to_q_lora.down.weight             and .up; to_k, to_v, to_out
    unet.<layer>.lora.down.weight                                of all other layers
    text_encoder.<layer>.lora_linear_layer.down.weight           SDXL's second: text_encoder_2

Of the spellings that diffusers' load_lora_weights knows (utils/state_dict_utils.py turns all of
them into peft's lora_A and lora_B), this is the one that ComfyUI (comfy/lora.py) reads as well.
There is no alpha in it: diffusers refuses such keys, and ComfyUI takes none for a scale of 1. So
alpha / rank goes into `down`, which in fp16 loses less by it than the smaller `up`. All layers of a
module get the greatest rank among them, by rows of zeros: older versions of diffusers would scale
the others by one layer's rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import AdapterError
from .layers import ALPHA, ENDINGS, MID, Layer, read_lora, shortened

PLAIN = (*(ending for pair in ENDINGS for ending in pair), MID, ALPHA)
TEXT_LAYER = re.compile(
    r"lora_te(?P<number>[12]?)_text_model_encoder_layers_(?P<block>\d+)_"
    r"(?P<part>self_attn|mlp)_(?P<layer>[qkv]_proj|out_proj|fc[12])"
)
ATTENTION = re.compile(r"(?P<attention>.*)\.(?P<layer>to_[qkv]|to_out)(\.0)?")
FOR_KOHYA = "Choose a kohya format, which every ComfyUI, A1111 and Forge reads."


def diffusers_spelling(
    lora: Mapping[str, Tensor], unet_layers: Mapping[str, str]
) -> dict[str, Tensor]:
    """The same LoRA in diffusers' spelling, fp32.

    Args:
        unet_layers: what diffusers calls the UNet's layers, by what a LoRA calls them.

    Raises:
        AdapterError: it is no plain LoRA (DoRA, LoKr, LoHa, OFT), or has layers without a name in
            that spelling.
    """
    if others := sorted(key for key in lora if not key.endswith(PLAIN)):
        raise AdapterError(
            f"The diffusers format holds plain LoRAs alone, of up and down; this one has "
            f"{shortened(others)} (DoRA, LoKr, LoHa and OFT have no place in it).\n{FOR_KOHYA}"
        )
    read = read_lora(lora, "The LoRA").layers
    layers = {name: layer for name, layer in read.items() if isinstance(layer, Layer)}
    names = {name: _start(name, unet_layers) for name in layers}
    if nameless := sorted(name for name, start in names.items() if not start):
        raise AdapterError(
            f"The diffusers format has no name for {len(nameless)} of the LoRA's {len(layers)} "
            f"layers, as far as 'model' knows: {shortened(nameless)}.\nWire in the model that it "
            f"was made for. {FOR_KOHYA}"
        )
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        module = names[name].split(".")[0]
        ranks[module] = max(ranks.get(module, 0), len(layer.down))
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        start = names[name]
        tensors |= _spelled(start, layer, ranks[start.split(".")[0]])
    return tensors


def _start(name: str, unet_layers: Mapping[str, str]) -> str:
    """How the keys of a layer begin; nothing where it has no name."""
    if text := TEXT_LAYER.fullmatch(name):
        encoder = "text_encoder_2" if text["number"] == "2" else "text_encoder"
        layer = f"text_model.encoder.layers.{text['block']}.{text['part']}.{text['layer']}"
        return f"{encoder}.{layer}.lora_linear_layer"
    layer = unet_layers.get(name, "")
    if attention := ATTENTION.fullmatch(layer):
        return f"unet.{attention['attention']}.processor.{attention['layer']}_lora"
    return f"unet.{layer}.lora" if layer else ""


def _spelled(start: str, layer: Layer, rank: int) -> dict[str, Tensor]:
    up, down = replace(layer, alpha=None).factors()
    missing = rank - len(down)
    if layer.alpha is not None:
        down = down * (layer.alpha / len(down))
    up = torch.nn.functional.pad(up, (0, missing)).float()
    down = torch.nn.functional.pad(down, (0, 0, 0, missing)).float()
    ones = [1] * (len(layer.shape) - 1)
    return {
        f"{start}.up.weight": up.reshape(len(up), rank, *ones).contiguous(),
        f"{start}.down.weight": down.reshape(rank, *layer.shape).contiguous(),
    }
