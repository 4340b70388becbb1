"""LoRAs as other programs spell them.

diffusers' own names, by which its pipelines read them:

    unet.<attention>.processor.to_q_lora.down.weight             and .up; to_k, to_v, to_out
    unet.<layer>.lora.down.weight                                of all other layers
    transformer.<layer>.lora_A.weight                            and .lora_B
    text_encoder.<layer>.lora_linear_layer.down.weight           a second one: text_encoder_2

Of the spellings that diffusers' load_lora_weights knows (utils/state_dict_utils.py turns all of
them into peft's lora_A and lora_B), these are what ComfyUI (comfy/lora.py) reads as well.
There is no alpha in them: diffusers refuses such keys, and ComfyUI takes none for a scale of 1. So
alpha / rank goes into `down`, which in fp16 loses less by it than the smaller `up`. All layers of a
module get the greatest rank among them, by rows of zeros: older versions of diffusers would scale
the others by one layer's rank.

And the names of published files, which start with the host's `diffusion_model.`: ai-toolkit and
musubi-tuner write them, and diffusers turns them into its own, as long as no alpha is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import AdapterError
from ...models.architectures import DOTTED, GENERIC, Architecture
from .layers import ALPHA, DOTTED_ENDINGS, ENDINGS, MID, Layer, read_lora, shortened

PLAIN = (*(ending for pair in ENDINGS for ending in pair), MID, ALPHA)
CLIP_LAYER = (
    r"text_model[._]encoder[._]layers[._](?P<block>\d+)[._](?P<part>self_attn|mlp)[._]"
    r"(?P<layer>[qkv]_proj|out_proj|fc[12])"
)
TEXT_LAYERS = {
    "text_encoder": re.compile(rf"(lora_te1?_|text_encoders\.clip_l\.transformer\.){CLIP_LAYER}"),
    "text_encoder_2": re.compile(rf"(lora_te2_|text_encoders\.clip_g\.transformer\.){CLIP_LAYER}"),
}
ATTENTION = re.compile(r"(?P<attention>unet\..*)\.(?P<layer>to_[qkv]|to_out)(\.0)?")
OWN = "diffusion_model."
FOR_KOHYA = "Choose a kohya format, which every ComfyUI reads."


@dataclass(frozen=True)
class Place:
    """Where a layer's outputs are found under another name.

    Attributes:
        name: the layer there, with its module: "unet.conv_in", "transformer.proj_out".
        rows: the first of the outputs, and how many; None means all of them.
        swapped: their halves change places, as shift and scale do.
    """

    name: str
    rows: tuple[int, int] | None = None
    swapped: bool = False


def diffusers_spelling(
    lora: Mapping[str, Tensor], places: Mapping[str, Sequence[Place]]
) -> dict[str, Tensor]:
    """The same LoRA in diffusers' spelling, fp32.

    Args:
        places: of the denoiser's layers, by what a LoRA calls them.

    Raises:
        AdapterError: it is no plain LoRA (DoRA, LoKr, LoHa, OFT), or has layers without a name in
            that spelling.
    """
    if others := _not_plain(lora):
        raise AdapterError(
            f"The diffusers format holds plain LoRAs alone, of up and down; this one has "
            f"{shortened(others)} (DoRA, LoKr, LoHa and OFT have no place in it).\n{FOR_KOHYA}"
        )
    layers = _layers(lora)
    found = {name: _text_place(name) or places.get(name, ()) for name in layers}
    if nameless := sorted(name for name in layers if not found[name]):
        raise AdapterError(
            f"The diffusers format has no name for {len(nameless)} of the LoRA's {len(layers)} "
            f"layers, as far as 'model' knows: {shortened(nameless)}.\nWire in the model that it "
            "was made for, or train it without those layers (targets, train_text_encoder). "
            f"{FOR_KOHYA}"
        )
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        module = _module(found[name])
        ranks[module] = max(ranks.get(module, 0), len(layer.down))
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for place in found[name]:
            tensors |= _spelled(place, layer, ranks[_module(found[name])])
    return tensors


def published_spelling(lora: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The same LoRA as other programs write it for such models, fp32.

    What is no plain LoRA, or is spelled otherwise already, stays as it is.
    """
    starts = (OWN, "text_encoders.")
    known = architecture.spelling == DOTTED and architecture is not GENERIC
    if not known or _not_plain(lora) or not all(key.startswith(starts) for key in lora):
        return dict(lora)
    tensors: dict[str, Tensor] = {}
    for name, layer in _layers(lora).items():
        for place in published_places(name, layer.outputs, architecture):
            tensors |= _spelled(place, layer, len(layer.down))
    return tensors


def published_places(name: str, outputs: int, architecture: Architecture) -> list[Place]:
    """Where published files have a layer.

    Args:
        name: what the host calls it, with its module.
        outputs: how many the layer has.
    """
    own = name.removeprefix(OWN)
    for pattern, theirs in architecture.published.items():
        if name.startswith(OWN) and (match := re.fullmatch(pattern, own)):
            names = [OWN + match.expand(one) for one in theirs]
            size = outputs // len(names)
            return [Place(one, (place * size, size)) for place, one in enumerate(names)]
    return [Place(name)]


def _not_plain(lora: Mapping[str, Tensor]) -> list[str]:
    return sorted(key for key in lora if not key.endswith(PLAIN))


def _layers(lora: Mapping[str, Tensor]) -> dict[str, Layer]:
    read = read_lora(lora, "The LoRA").layers
    return {name: layer for name, layer in read.items() if isinstance(layer, Layer)}


def _text_place(name: str) -> list[Place]:
    """Where a text encoder's layer is; nowhere if it is none of CLIP."""
    for encoder, pattern in TEXT_LAYERS.items():
        if text := pattern.fullmatch(name):
            layer = f"text_model.encoder.layers.{text['block']}.{text['part']}.{text['layer']}"
            return [Place(f"{encoder}.{layer}")]
    return []


def _module(places: Sequence[Place]) -> str:
    return places[0].name.split(".")[0]


def _endings(name: str) -> tuple[str, str]:
    """The keys of a layer's up and down."""
    if attention := ATTENTION.fullmatch(name):
        start = f"{attention['attention']}.processor.{attention['layer']}_lora"
    elif name.startswith("unet."):
        start = f"{name}.lora"
    elif name.startswith(tuple(f"{encoder}." for encoder in TEXT_LAYERS)):
        start = f"{name}.lora_linear_layer"
    else:
        up, down = (name + ending for ending in DOTTED_ENDINGS)
        return up, down
    return f"{start}.up.weight", f"{start}.down.weight"


def _spelled(place: Place, layer: Layer, rank: int) -> dict[str, Tensor]:
    up, down = replace(layer, alpha=None).factors()
    missing = rank - len(down)
    if layer.alpha is not None:
        down = down * (layer.alpha / len(down))
    if place.rows is not None:
        first, number = place.rows
        up = up[first : first + number]
    if place.swapped:
        up = torch.cat(up.chunk(2)[::-1])
    up = torch.nn.functional.pad(up, (0, missing)).float()
    down = torch.nn.functional.pad(down, (0, 0, 0, missing)).float()
    ones = [1] * (len(layer.shape) - 1)
    up_key, down_key = _endings(place.name)
    return {
        up_key: up.reshape(len(up), rank, *ones).contiguous(),
        down_key: down.reshape(rank, *layer.shape).contiguous(),
    }
