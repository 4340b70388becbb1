"""What differs between kinds of base models, as records; the modules themselves are the host's.

A model that no record knows trains all the same, as GENERIC. A new model is a new record.

Sources: K = kohya sd-scripts (library/train_util.py, networks/lora.py, docs/train_network.md),
M = the modelspec standard 1.0.1, P = the model's paper or card, D = diffusers' training scripts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..settings.lora import LORA_TARGETS

DENOISER = "denoiser"
KOHYA, DOTTED = "kohya", "dotted"
FAR = 20  # times the usual learning rate, or a part of it

ADAPTABLE = (nn.Linear, nn.Conv2d)
# Text encoders, the host's names: CLIP's first, then those of T5 and of language models.
TEXT_ATTENTION = r".*\.(self_attn\.(q|k|v|o|out)_proj|SelfAttention\.[qkvo])"
TEXT_FEED_FORWARD = r".*\.(mlp\.(fc[12]|(gate|up|down)_proj)|DenseReluDense\.w[io](_[01])?)"
# Never CLIP's projection: kohya leaves it out, and where nothing reads what it gives, files have no
# name for it that ComfyUI knows.
TEXT_ALL = r"(?!.*\.text_projection$).*"
TEXT_TARGETS = (TEXT_ATTENTION, f"{TEXT_ATTENTION}|{TEXT_FEED_FORWARD}", TEXT_ALL)
# The UNet of Stable Diffusion 1, 2 and XL.
UNET_ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
UNET_FEED_FORWARD = r".*\.(ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)"
UNET_CONVOLUTIONS = (
    r".*\.(in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|op|conv)|input_blocks\.0\.0"
    r"|out\.2"
)
UNET_TARGETS = (
    UNET_ATTENTION,
    f"{UNET_ATTENTION}|{UNET_FEED_FORWARD}",
    f"{UNET_ATTENTION}|{UNET_FEED_FORWARD}|{UNET_CONVOLUTIONS}",
)
# Of any module: what has a number in its path is one of many equal blocks.
BLOCKS = r".*\.\d+\..*"
ANY_TARGETS = (r".*\.\d+\.(.*[._])?(attn|attention|self_attn).*", BLOCKS, ".*")


@dataclass(frozen=True)
class Architecture:
    """Base models of one kind.

    Attributes:
        name: the key in ARCHITECTURES and in run.json.
        title: what people call it.
        host_classes: the host's names for it (comfy.supported_models).
        modelspec: the architecture in file metadata (M).
        base_model_version: ss_base_model_version in file metadata (K).
        spelling: KOHYA or DOTTED: how a LoRA's file names layers.
        diffusers_names: kohya's names are those of diffusers' modules, not of the published ones.
        text_prefixes: what the names of a text encoder's layers start with in kohya's spelling.
        targets: the denoiser's layers for each choice of LORA_TARGETS: a regular expression that
            their full names match.
        resolution_px: what it was trained at; None where nobody knows.
        rates: the usual learning rate of the denoiser, by method.
        unset_weights: text encoder weights that its files lack and nothing reads.
    """

    name: str
    title: str
    host_classes: tuple[str, ...] = ()
    modelspec: str = ""
    base_model_version: str = ""
    spelling: str = DOTTED
    diffusers_names: bool = False
    text_prefixes: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ANY_TARGETS
    resolution_px: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    unset_weights: str = r".*\.logit_scale"

    def unusual(self, method: str, resolution_px: int, rate: float) -> list[str]:
        """What of a run is far from what such models are trained with, in the user's words."""
        found = []
        if self.resolution_px and resolution_px < self.resolution_px / 1.5:
            found.append(f"resolution {resolution_px}, where {self.resolution_px} is usual")
        usual = self.rates.get(method)
        if usual and not usual / FAR <= rate <= usual * FAR:
            found.append(f"learning_rate {rate:g}, where about {usual:g} is usual")
        return found

    def layers(self, module_name: str, module: nn.Module, choice: str) -> list[str]:
        """Names of the layers of `module` that get an adapter, in the module's order.

        Args:
            choice: one of LORA_TARGETS. Where it fits no layer, all that a block has fit.
        """
        patterns = self.targets if module_name == DENOISER else TEXT_TARGETS
        known = [name for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)]
        for pattern in (patterns[LORA_TARGETS.index(choice)], BLOCKS, ".*"):
            if found := [name for name in known if re.fullmatch(pattern, name)]:
                return found
        return []


SD15 = Architecture(
    name="sd15",
    title="Stable Diffusion 1.5",
    host_classes=("SD15",),
    modelspec="stable-diffusion-v1",
    base_model_version="sd_v1",
    spelling=KOHYA,
    diffusers_names=True,
    text_prefixes={"clip_l": "lora_te"},
    # time_embed: what the layer choice had from the start; kohya has no key of its own for it
    targets=(*UNET_TARGETS[:2], rf"{UNET_TARGETS[2]}|time_embed\.[02]"),
    resolution_px=512,
    rates={"lora": 1e-4, "dreambooth": 2e-6},  # D; huggingface.co/blog/dreambooth
    unset_weights=r".*\.(logit_scale|text_projection\.weight)",
)
SD2 = dataclasses.replace(
    SD15,
    name="sd2",
    title="Stable Diffusion 2",
    host_classes=("SD20",),
    modelspec="stable-diffusion-v2-768-v",
    base_model_version="sd_v2",
    text_prefixes={"clip_h": "lora_te"},
    resolution_px=768,  # P: 2.1; 2.1-base 512
    unset_weights=Architecture.unset_weights,
)
SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    host_classes=("SDXL", "SSD1B"),
    modelspec="stable-diffusion-xl-v1-base",
    base_model_version="sdxl_base_v1-0",
    spelling=KOHYA,
    text_prefixes={"clip_l": "lora_te1", "clip_g": "lora_te2"},
    targets=UNET_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4, "dreambooth": 1e-6},  # D train_dreambooth_lora_sdxl.py; K sdxl_train.py
    unset_weights=r".*\.logit_scale|clip_l\..*\.text_projection\.weight",
)
GENERIC = Architecture("generic", "a model that this pack has no record of", modelspec="generic")

ARCHITECTURES = {record.name: record for record in (SD15, SD2, SDXL, GENERIC)}


def architecture_of(host_class: str) -> Architecture:
    """The record of a kind of models by the host's name for it; GENERIC where there is none."""
    known = (record for record in ARCHITECTURES.values() if host_class in record.host_classes)
    return next(known, GENERIC)
