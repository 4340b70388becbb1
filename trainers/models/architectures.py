"""What differs between kinds of base models, as records; the modules themselves are the host's.

A model that no record knows trains all the same, as GENERIC. A new model is a new record.

Sources: K = kohya sd-scripts (library/train_util.py, networks/lora.py, docs/train_network.md) and
musubi-tuner (docs/, utils/sai_model_spec.py), A = ai-toolkit, M = the modelspec standard 1.0.1,
P = the model's paper or card, D = diffusers' training scripts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..settings.methods.lora import LORA_TARGETS

DENOISER = "denoiser"
KOHYA, DOTTED = "kohya", "dotted"
UNET, TRANSFORMER, PUBLISHED = "unet", "transformer", "published"
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
# Of transformers: attention, with single blocks' two layers, in which it is one with the
# feed-forward; then all of their blocks but what the timestep modulates with (K leaves that out).
ATTENTION = rf"{ANY_TARGETS[0]}|single_blocks\.\d+\.linear[12]"
UNMODULATED = rf"(?!.*([._]mod\.|modulation)){BLOCKS}"
TRANSFORMER_TARGETS = (ATTENTION, UNMODULATED, ".*")


def is_adaptable(layer: nn.Module) -> bool:
    """Whether an adapter may stand beside a layer: torch's kinds, or a host's of the same name."""
    return isinstance(layer, ADAPTABLE) or type(layer).__name__ == nn.Linear.__name__


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
        published: what files in the DOTTED spelling call layers that the host calls otherwise or
            has as one: regular expressions of its names, with theirs for equal parts of the layer.
        diffusers: whose names diffusers' pipelines read LoRAs by: UNET and TRANSFORMER mean those
            of their own modules, PUBLISHED what is in such files; "" means that none reads any.
        unread: layers that they read under no name, or wrongly.
        diffusers_names: kohya's names are those of diffusers' modules, not of the published ones.
        text_prefixes: what the names of a text encoder's layers start with in kohya's spelling.
        frozen_encoders: text encoders that stay as they are where the others train.
        targets: the denoiser's layers for each choice of LORA_TARGETS: a regular expression that
            their full names match.
        resolution_px: what it was trained at; None where nobody knows.
        rates: the usual learning rate of the denoiser, by method.
        unset_weights: text encoder weights that its files lack and nothing reads.
        guidance: what a model that was distilled to know it is trained at; None: what the host
            says.
        control_encoder: the host's node that encodes a caption together with control images; empty
            where the text encoder does not look at them.
        implementation: where its code is, as file metadata says (M).
    """

    name: str
    title: str
    host_classes: tuple[str, ...] = ()
    modelspec: str = ""
    base_model_version: str = ""
    spelling: str = DOTTED
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    diffusers: str = ""
    unread: str = ""
    diffusers_names: bool = False
    text_prefixes: Mapping[str, str] = field(default_factory=dict)
    frozen_encoders: tuple[str, ...] = ()
    targets: tuple[str, ...] = ANY_TARGETS
    resolution_px: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    unset_weights: str = r".*\.logit_scale"
    guidance: float | None = None
    control_encoder: str = ""
    implementation: str = "https://github.com/Stability-AI/generative-models"

    def unusual(self, method: str, resolution_px: int, rate: float) -> list[str]:
        """What of a run is far from what such models are trained with, in the user's words."""
        found = []
        if self.resolution_px and resolution_px < self.resolution_px / 1.5:
            found.append(f"resolution {resolution_px}, where {self.resolution_px} is usual")
        usual = self.rates.get(method)
        if usual and not usual / FAR <= rate <= usual * FAR:
            found.append(f"learning_rate {rate:g}, where about {usual:g} is usual")
        return found

    def trained_encoders(self, encoders: Iterable[str]) -> tuple[str, ...]:
        """Those of a base model's text encoders that train where text encoders do."""
        every = tuple(encoders)
        return tuple(name for name in every if name not in self.frozen_encoders) or every

    def layers(self, module_name: str, module: nn.Module, choice: str) -> list[str]:
        """Names of the layers of `module` that get an adapter, in the module's order.

        Args:
            choice: one of LORA_TARGETS. Where it fits no layer, all that a block has fit.
        """
        patterns = self.targets if module_name == DENOISER else TEXT_TARGETS
        known = [name for name, layer in module.named_modules() if is_adaptable(layer)]
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
    diffusers=UNET,
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
    diffusers=UNET,
    text_prefixes={"clip_l": "lora_te1", "clip_g": "lora_te2"},
    targets=UNET_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4, "dreambooth": 1e-6},  # D train_dreambooth_lora_sdxl.py; K sdxl_train.py
    unset_weights=r".*\.logit_scale|clip_l\..*\.text_projection\.weight",
)
SD3 = Architecture(
    name="sd3",
    title="Stable Diffusion 3.5",
    host_classes=("SD3",),
    modelspec="stable-diffusion-3",
    base_model_version="sd3",
    diffusers=TRANSFORMER,
    frozen_encoders=("t5xxl",),  # K: CLIP's train, T5 only where it is asked for
    targets=TRANSFORMER_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4, "dreambooth": 1e-5},  # D train_dreambooth_lora_sd3.py; K sd3_train.py
)
FLUX = Architecture(
    name="flux",
    title="FLUX.1",
    host_classes=("Flux", "FluxSchnell"),
    modelspec="flux-1-dev",
    base_model_version="flux1",
    spelling=KOHYA,  # which diffusers reads too, unlike the dotted one
    diffusers=TRANSFORMER,
    text_prefixes={"clip_l": "lora_te1", "t5xxl": "lora_te3"},
    frozen_encoders=("t5xxl",),  # K, as above
    targets=TRANSFORMER_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4, "dreambooth": 5e-6},  # D; A; K docs/flux_train_network.md
    guidance=1.0,  # K --guidance_scale 1.0, A bypass_guidance_embedding
    implementation="https://github.com/black-forest-labs/flux",
)
FLUX2 = Architecture(
    name="flux2",
    title="FLUX.2",
    host_classes=("Flux2",),
    modelspec="Flux.2",
    base_model_version="flux2",
    diffusers=PUBLISHED,
    # diffusers takes its shift for the scale in LoRAs (0.42, _convert_non_diffusers_flux2_lora_...)
    unread=r"final_layer\.adaLN_modulation\.1",
    targets=TRANSFORMER_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4, "dreambooth": 1e-6},  # K docs/flux_2.md, rank 32
    guidance=1.0,  # K flux_2_train_network.py
    implementation="https://github.com/black-forest-labs/flux2",
)
CHROMA = Architecture(
    name="chroma",
    title="Chroma",
    host_classes=("Chroma",),
    modelspec="chroma",
    base_model_version="chroma",
    spelling=KOHYA,  # as for FLUX.1
    diffusers=TRANSFORMER,
    text_prefixes={"t5xxl": "lora_te1"},
    # What the timestep modulates with is a module of its own here; K leaves it out.
    targets=(ATTENTION, rf"(?!distilled_guidance_layer\.){UNMODULATED}", ".*"),
    resolution_px=1024,
    rates={"lora": 1e-4},  # A
    guidance=0.0,  # P: distilled away
    implementation="https://huggingface.co/lodestones/Chroma",
)
# As A and K write them, and diffusers: attention is three layers there.
Z_IMAGE_NAMES = {
    r"(.*\.attention)\.qkv": (r"\1.to_q", r"\1.to_k", r"\1.to_v"),
    r"(.*\.attention)\.out": (r"\1.to_out.0",),
    r"(x_embedder|final_layer)(.*)": (r"all_\1.2-1\2",),
}
Z_IMAGE = Architecture(
    name="z_image",
    title="Z-Image",
    host_classes=("ZImage",),
    modelspec="Z-Image",
    base_model_version="z_image",
    published=Z_IMAGE_NAMES,
    diffusers=PUBLISHED,
    targets=TRANSFORMER_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4, "dreambooth": 1e-6},  # K docs/zimage.md, rank 32; A 1e-4
    implementation="https://github.com/Tongyi-MAI/Z-Image",
)
QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    host_classes=("QwenImage",),
    modelspec="Qwen-Image",
    base_model_version="qwen_image",
    diffusers=PUBLISHED,
    targets=TRANSFORMER_TARGETS,
    resolution_px=1328,  # P; K and A train at 1024
    rates={"lora": 5e-5, "dreambooth": 1e-6},  # K docs/qwen_image.md, rank 16; A 1e-4
    control_encoder="TextEncodeQwenImageEditPlus",  # P: from 2509 on; the first was shown 1024 px
    implementation="https://github.com/QwenLM/Qwen-Image",
)
KREA2 = Architecture(
    name="krea2",
    title="Krea 2",
    host_classes=("Krea2",),
    modelspec="Krea-2",
    base_model_version="krea2",
    diffusers=PUBLISHED,
    targets=TRANSFORMER_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4},  # K docs/krea2.md, rank 32; A
    implementation="https://github.com/krea-ai/krea-2",
)
ANIMA = Architecture(
    name="anima",
    title="Anima",
    host_classes=("Anima",),
    modelspec="anima-preview",
    base_model_version="anima",
    diffusers=PUBLISHED,
    targets=TRANSFORMER_TARGETS,
    resolution_px=1024,
    rates={"lora": 1e-4},  # A
    implementation="https://huggingface.co/circlestone-labs/Anima",
)
GENERIC = Architecture("generic", "a model that this pack has no record of", modelspec="generic")

KNOWN = (
    SD15, SD2, SDXL, SD3, FLUX, FLUX2, CHROMA, Z_IMAGE, QWEN_IMAGE, KREA2, ANIMA, GENERIC
)  # fmt: skip
ARCHITECTURES = {record.name: record for record in KNOWN}


def architecture_of(host_class: str) -> Architecture:
    """The record of a kind of models by the host's name for it; GENERIC where there is none."""
    known = (record for record in ARCHITECTURES.values() if host_class in record.host_classes)
    return next(known, GENERIC)
