"""Base models made on the spot: seeded single-file checkpoints that a host takes for real ones.

Shapes and key names are those of the published models (LDM layout, as in
CompVis/stable-diffusion and Stability-AI/generative-models); weights are random,
so pictures are noise. *Thin* ones keep the architecture and drop width and levels.

    python -m tests.checkpoints thin_sd15 OUT.safetensors [--dtype fp16] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

StateDict = dict[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

SD15_UNET: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
THIN_SD15_UNET = SD15_UNET | {
    "block_out_channels": (320,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
THIN_SD2_UNET = THIN_SD15_UNET | {
    "attention_head_dim": 5,  # heads, in spite of its name: of 64 channels each
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # heads of 64 channels
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
THIN_SDXL_UNET = SDXL_UNET | {
    "block_out_channels": (320, 320, 320),
    "attention_head_dim": (5, 5, 5),
}
# SDXL's relatives, which a host knows by how deep the transformers of each level are.
THIN_SSD1B_UNET = THIN_SDXL_UNET | {"transformer_layers_per_block": (1, 2, 4)}
THIN_KOALA_UNET = THIN_SDXL_UNET | {
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2, 5),
}
SHALLOW = r"\.(middle_block|output_blocks\.\d+)\.1\.transformer_blocks\.[1-9]"
KL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}


# -- the models ---------------------------------------------------------------


def thin_sd15(random: torch.Generator) -> StateDict:
    """SD1.5 with one level of one block: a UNet of 26 M parameters, TAESD, CLIP-L."""
    return {
        **_unet(THIN_SD15_UNET, random),
        **_tiny_vae(0.18215, random),
        **_clip(CLIP_L, "cond_stage_model.transformer.text_model.", random),
    }


def full_sd15(random: torch.Generator) -> StateDict:
    """SD1.5 in its real size: a UNet of 860 M parameters, the KL VAE, CLIP-L."""
    return {
        **_unet(SD15_UNET, random),
        **_kl_vae(random),
        **_clip(CLIP_L, "cond_stage_model.transformer.text_model.", random),
    }


def thin_sd2(random: torch.Generator) -> StateDict:
    """SD2 with one level of one block: TAESD and OpenCLIP-H."""
    return {
        **_unet(THIN_SD2_UNET, random),
        **_tiny_vae(0.18215, random),
        **_open_clip(CLIP_H, "cond_stage_model.model.", random),
    }


def full_sdxl(random: torch.Generator) -> StateDict:
    """SDXL with a UNet of its real size, 2.6 B parameters; TAESD, CLIP-L and OpenCLIP-G.

    The UNet's numbers are bf16's in any file: 5 GB of memory to write one, not 10.
    """
    return _sdxl(SDXL_UNET, random, torch.bfloat16)


def thin_sdxl(random: torch.Generator) -> StateDict:
    """SDXL with its depths (2 and 10) on the way down and no widening: TAESD, CLIP-L, OpenCLIP-G.

    Elsewhere a transformer has one block: a host knows SDXL by the way down.
    """
    return _without(SHALLOW, _sdxl(THIN_SDXL_UNET, random))


def _sdxl(
    unet: dict[str, Any], random: torch.Generator, unet_in: torch.dtype = torch.float32
) -> StateDict:
    return {
        **_unet(unet, random, unet_in),
        **_tiny_vae(0.13025, random),
        **_clip(CLIP_L, "conditioner.embedders.0.transformer.text_model.", random),
        **_open_clip(CLIP_G, "conditioner.embedders.1.model.", random),
    }


def thin_sdxl_v(random: torch.Generator) -> StateDict:
    """``thin_sdxl`` that predicts v: the host knows such files by an empty tensor."""
    return {**thin_sdxl(random), "v_pred": torch.empty(0)}


def thin_ssd1b(random: torch.Generator) -> StateDict:
    """The UNet alone of SSD-1B, which has no transformer in the middle."""
    return _without(rf"{SHALLOW}|middle_block\.[12]", _unet(THIN_SSD1B_UNET, random))


def thin_koala(random: torch.Generator) -> StateDict:
    """The UNet alone of KOALA-700M, which has no middle at all."""
    return _without(rf"{SHALLOW}|middle_block", _unet(THIN_KOALA_UNET, random))


BUILDERS = {
    f.__name__: f
    for f in (
        thin_sd15, full_sd15, thin_sd2, thin_sdxl, thin_sdxl_v, full_sdxl, thin_ssd1b, thin_koala
    )
}  # fmt: skip


def write(name: str, path: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Writes a checkpoint by its name in ``BUILDERS``; whole or not at all."""
    weights = BUILDERS[name](torch.Generator().manual_seed(seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # one after another, since a large model in fp32 and its copy would not fit into memory
    save_file({k: weights.pop(k).to(dtype).contiguous() for k in list(weights)}, partial)
    partial.replace(path)
    return path


def cached(name: str, folder: Path, dtype: str = "fp32") -> Path:
    """The checkpoint's file in ``folder``, written if it is not there or this module changed."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = folder / f"{name}-{dtype}-{version}.safetensors"
    if not path.exists():
        for stale in folder.glob(f"{name}-{dtype}-*"):
            stale.unlink()
        write(name, path, DTYPES[dtype])
    return path


# -- weights ------------------------------------------------------------------


def _fill(
    shapes: nn.Module, random: torch.Generator, dtype: torch.dtype = torch.float32
) -> StateDict:
    """Random weights for a module on the meta device, in the scale of torch's own inits.

    Norms and biases are noisy too: were they ones and zeros, a test could not see
    that one of them got lost or mixed up.
    """
    weights = shapes.state_dict().items()
    return {name: _tensor(name, shape, random).to(dtype) for name, shape in weights}


def _tensor(name: str, shape: Tensor, random: torch.Generator) -> Tensor:
    if "embeddings." in name:
        return 0.02 * torch.randn(shape.shape, generator=random)
    if shape.ndim > 1:
        bound = shape[0].numel() ** -0.5  # fan-in
        return torch.empty(shape.shape).uniform_(-bound, bound, generator=random)
    noise = 0.02 * torch.randn(shape.shape, generator=random)
    return 1 + noise if name.endswith("weight") else noise


def _unet(
    config: dict[str, Any], random: torch.Generator, dtype: torch.dtype = torch.float32
) -> StateDict:
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    rules = _unet_rules(model.config.layers_per_block + 1)
    weights = _rename(_fill(model, random, dtype), rules)
    for block in range(len(model.down_blocks)):  # upsamplers follow an attention, if there is one
        last = block * (model.config.layers_per_block + 1) + model.config.layers_per_block
        if f"output_blocks.{last}.1.proj_in.weight" not in weights:
            weights = _rename(weights, [(rf"(output_blocks\.{last}\.)2\.conv", r"\g<1>1.conv")])
    return {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}


def _tiny_vae(latent_scale: float, random: torch.Generator) -> StateDict:
    """TAESD with its last layers scaled so that latents and pictures spread like real ones."""
    with torch.device("meta"):
        model = AutoencoderTiny()
    model.load_state_dict(_fill(model, random), assign=True)
    with torch.no_grad():
        picture = torch.rand(1, 3, 64, 64, generator=random)
        latents = model.encoder.layers(picture)
        _divide(model.encoder.layers[-1], latents.std())
        decoded = model.decoder.layers(torch.randn(latents.shape, generator=random))
        _divide(model.decoder.layers[-1], 4 * decoded.std())
        model.decoder.layers[-1].bias.add_(0.5)  # mid-grey
    rules: Rules = [
        (r"^encoder\.layers\.", "first_stage_model.taesd_encoder."),
        # there, a clamp is the decoder's layer 0
        (
            r"^decoder\.layers\.(\d+)",
            lambda m: f"first_stage_model.taesd_decoder.{int(m[1]) + 1}",
        ),
    ]
    return {
        **_rename(model.state_dict(), rules),
        "first_stage_model.vae_scale": torch.tensor(latent_scale),
        "first_stage_model.vae_shift": torch.tensor(0.0),
    }


def _divide(layer: nn.Conv2d, by: Tensor) -> None:
    layer.weight.div_(by)
    layer.bias.div_(by)


def _kl_vae(random: torch.Generator) -> StateDict:
    with torch.device("meta"):
        model = AutoencoderKL(**KL_VAE)
    weights = _rename(_fill(model, random), _VAE_RULES)
    for name in weights:
        if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", name):
            weights[name] = weights[name][:, :, None, None]  # LDM has 1x1 convolutions here
    return {f"first_stage_model.{name}": weight for name, weight in weights.items()}


def _clip_layers(config: dict[str, Any], random: torch.Generator) -> StateDict:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config))
    # transformers before 5 have a prefix here
    return {k.removeprefix("text_model."): w for k, w in _fill(model, random).items()}


def _clip(config: dict[str, Any], prefix: str, random: torch.Generator) -> StateDict:
    return {prefix + name: weight for name, weight in _clip_layers(config, random).items()}


def _open_clip(config: dict[str, Any], prefix: str, random: torch.Generator) -> StateDict:
    """The same network in OpenCLIP's layout: joined q, k, v and a text projection."""
    weights = _clip_layers(config, random)
    for layer in range(config["num_hidden_layers"]):
        attention = f"encoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{attention}{part}_proj.{kind}") for part in "qkv"]
            weights[f"{attention}in_proj_{kind}"] = torch.cat(parts)
    width = config["hidden_size"]
    weights["text_projection"] = torch.randn(width, width, generator=random) * width**-0.5
    return {prefix + name: weight for name, weight in _rename(weights, _OPEN_CLIP_RULES).items()}


def _without(pattern: str, weights: StateDict) -> StateDict:
    return {name: weight for name, weight in weights.items() if not re.search(pattern, name)}


# -- names: diffusers' and transformers' to LDM's ------------------------------


def _rename(weights: StateDict, rules: Rules) -> StateDict:
    """Applies every rule (a pattern and its replacement) to every name, in order."""
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    assert len(renamed) == len(weights), "two weights got the same name"
    return renamed


def _unet_rules(stride: int) -> Rules:
    """LDM numbers blocks through; ``stride`` of them (layers + 1) make one level."""

    def numbered(side: str, place: str, first: int) -> Callable[[re.Match[str]], str]:
        return lambda m: f"{side}.{first + int(m[1]) * stride + int(m[2])}.{place}"

    def sampler(side: str, place: str, last: int) -> Callable[[re.Match[str]], str]:
        return lambda m: f"{side}.{int(m[1]) * stride + last}.{place}"

    return [
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)", numbered("input_blocks", "0", 1)),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)", numbered("input_blocks", "1", 1)),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", sampler("input_blocks", "0.op", stride)),
        (r"^mid_block\.resnets\.0", "middle_block.0"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^mid_block\.resnets\.1", "middle_block.2"),
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)", numbered("output_blocks", "0", 0)),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)", numbered("output_blocks", "1", 0)),
        (r"^up_blocks\.(\d+)\.upsamplers\.0", sampler("output_blocks", "2", stride - 1)),
        (r"^(\w+_blocks?\.\d+(?:\.0)?)\.norm1", r"\1.in_layers.0"),
        (r"^(\w+_blocks?\.\d+(?:\.0)?)\.conv1", r"\1.in_layers.2"),
        (r"\.time_emb_proj", ".emb_layers.1"),
        (r"^(\w+_blocks?\.\d+(?:\.0)?)\.norm2", r"\1.out_layers.0"),
        (r"^(\w+_blocks?\.\d+(?:\.0)?)\.conv2", r"\1.out_layers.3"),
        (r"\.conv_shortcut", ".skip_connection"),
        (r"^time_embedding\.linear_1", "time_embed.0"),
        (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^add_embedding\.linear_1", "label_emb.0.0"),
        (r"^add_embedding\.linear_2", "label_emb.0.2"),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
    ]


_VAE_RULES: Rules = [
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)", r".down.\1.block.\2"),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0", r".down.\1.downsample"),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f".up.{3 - int(m[1])}.block.{m[2]}"),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f".up.{3 - int(m[1])}.upsample"),
    (r"\.mid_block\.resnets\.(\d+)", lambda m: f".mid.block_{int(m[1]) + 1}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.group_norm", ".norm"),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0", ".proj_out"),
    (r"\.conv_shortcut", ".nin_shortcut"),
    (r"\.conv_norm_out", ".norm_out"),
]

_OPEN_CLIP_RULES: Rules = [
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)", r".ln_\1"),
    (r"\.mlp\.fc1", ".mlp.c_fc"),
    (r"\.mlp\.fc2", ".mlp.c_proj"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a base model with random weights.")
    parser.add_argument("name", choices=BUILDERS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    write(asked.name, asked.path, DTYPES[asked.dtype], asked.seed)
    print(f"{asked.path}: {asked.path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
