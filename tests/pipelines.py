"""Small transformers of the host as diffusers has them: its class, its weights, how it is called.

A new model is a new row. Classes go by name, since older versions of diffusers lack some.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor, nn

from tests import tiny_transformers as transformers
from tests.tiny_transformers import HEADS, TEXT, WIDTH, Recipe

# Numbers in diffusers' code where its functions take no width: those of FLUX.1, and of ours.
PUBLISHED_WIDTH, PUBLISHED_MLP = 3072, 12288
WIDTHS = {PUBLISHED_WIDTH: WIDTH, PUBLISHED_MLP: 4 * WIDTH}
ALL, BLOCKS = "all with convolutions", "attention and feed-forward"  # layers that train
Weights = dict[str, Tensor]
Arguments = Mapping[str, Tensor]  # of the host's module, by name


def at_our_width(function: Any) -> Any:
    """One of diffusers' functions, with our widths where it has those of FLUX.1 in its code."""

    def ours(constant: Any) -> Any:
        if isinstance(constant, types.CodeType):
            return constant.replace(co_consts=tuple(map(ours, constant.co_consts)))
        if isinstance(constant, tuple):
            return tuple(map(ours, constant))
        return WIDTHS.get(constant, constant) if type(constant) is int else constant

    return types.FunctionType(ours(function.__code__), function.__globals__, function.__name__)


# -- how diffusers' modules are called with what the host gives to its own -----------------


def packed(latents: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, H/2 W/2, 4 C)."""
    _, channels, height, width = latents.shape
    squares = latents.view(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return squares.reshape(1, height * width // 4, channels * 4)


def unpacked(tokens: Tensor, latents: Tensor) -> Tensor:
    """The inverse, in the shape of `latents`."""
    height, width = latents.shape[-2:]
    squares = tokens.view(height // 2, width // 2, -1, 2, 2).permute(2, 0, 3, 1, 4)
    return squares.reshape(latents.shape)


def places(latents: Tensor) -> Tensor:
    """(H/2 W/2, 3): nothing, row and column of each token."""
    rows, columns = (size // 2 for size in latents.shape[-2:])
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1).float()


def call_flux(pipe: Any, given: Arguments) -> Tensor:
    latents, context = given["x"], given["context"]
    more = {}
    if "y" in given:  # Chroma has neither
        more = {"pooled_projections": given["y"], "guidance": given["guidance"]}
    tokens = pipe.transformer(
        packed(latents), encoder_hidden_states=context, timestep=given["timestep"],
        img_ids=places(latents), txt_ids=torch.zeros(context.shape[1], 3), **more,
    ).sample  # fmt: skip
    return unpacked(tokens, latents)


def call_flux2(pipe: Any, given: Arguments) -> Tensor:
    latents, context = given["x"], given["context"]
    pipeline = diffusers.Flux2KleinPipeline
    tokens = pipe.transformer(
        latents.flatten(2).mT, encoder_hidden_states=context, timestep=given["timestep"],
        img_ids=pipeline._prepare_latent_ids(latents), txt_ids=pipeline._prepare_text_ids(context),
    ).sample  # fmt: skip
    return tokens.mT.reshape(latents.shape)


def call_z_image(pipe: Any, given: Arguments) -> Tensor:
    latents = given["x"][0].unsqueeze(1)
    (output,) = pipe.transformer([latents], 1 - given["timesteps"], list(given["context"])).sample
    return -output.squeeze(1)[None]


def call_qwen_image(pipe: Any, given: Arguments) -> Tensor:
    latents, context = given["x"], given["context"]
    tokens = pipe.transformer(
        packed(latents[:, :, 0]), encoder_hidden_states=context, timestep=given["timestep"],
        encoder_hidden_states_mask=torch.ones(context.shape[:2]),
        img_shapes=[[(1, *(size // 2 for size in latents.shape[-2:]))]],
    ).sample  # fmt: skip
    return unpacked(tokens, latents)


def call_krea2(pipe: Any, given: Arguments) -> Tensor:
    latents, context = given["x"], given["context"].unflatten(-1, (-1, TEXT))
    ids = torch.cat([torch.zeros(context.shape[1], 3), places(latents)])
    tokens = pipe.transformer(packed(latents[:, :, 0]), context, given["timesteps"], ids).sample
    return unpacked(tokens, latents)


def call_sd3(pipe: Any, given: Arguments) -> Tensor:
    return pipe.transformer(given["x"], given["context"], given["y"], given["timesteps"]).sample


def call_anima(pipe: Any, given: Arguments) -> Tensor:
    """Text conditioner and transformer, which are one module in the host."""
    latents, told = given["x"], given["hidden"]
    context = pipe.text_conditioner(told, given["t5xxl_ids"][None])
    mask = torch.zeros(1, 1, *latents.shape[-2:])
    return pipe.transformer(latents, given["timesteps"], context, padding_mask=mask).sample


# -- the models ---------------------------------------------------------------------------


def unchanged(module: Any) -> None:
    """For a class that is as small as its settings say."""


def narrow_z_image(module: Any) -> None:
    own = inspect.getmodule(type(module))
    module.t_embedder = own.TimestepEmbedder(256, mid_size=module.dim)  # 1024 in the class


def long_chroma(module: Any) -> None:
    own = inspect.getmodule(type(module))
    # The host has as many rows as the published depth needs, whatever the depth is.
    module.time_text_embed = own.ChromaCombinedTimestepTextProjEmbeddings(16, 344)


def scales(weights: Weights) -> Weights:
    """Norms as the published files call them; the host renames them."""
    norms = r"((?:query|key)_norm|norms\.\d+)\.weight$"
    return {re.sub(norms, r"\1.scale", name): weight for name, weight in weights.items()}


def converted_flux(weights: Weights) -> Weights:
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    return at_our_width(convert)(scales(weights))


def converted_chroma(weights: Weights) -> Weights:
    convert = single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers
    return at_our_width(convert)(scales(weights))


CONDITIONER = "llm_adapter."


def converted_anima(weights: Weights) -> Weights:
    own = {name: w for name, w in weights.items() if not name.startswith(CONDITIONER)}
    return single_file_utils.convert_cosmos_transformer_checkpoint_to_diffusers(own)


def anima_conditioner(weights: Weights) -> dict[str, nn.Module]:
    own = {k.removeprefix(CONDITIONER): w for k, w in weights.items() if k.startswith(CONDITIONER)}
    with torch.device("meta"):
        made = diffusers.AnimaTextConditioner()
    made.load_state_dict(own, assign=True, strict=False)  # a buffer is in no file
    made.rotary_emb = type(made.rotary_emb)(64)
    return {"text_conditioner": made.eval()}


def no_others(weights: Weights) -> dict[str, nn.Module]:
    """For a pipeline that reads LoRAs of the transformer alone."""
    return {}


def by_diffusers(kind: str) -> Callable[[Weights], Weights]:
    def convert(weights: Weights) -> Weights:
        name = f"convert_{kind}_transformer_checkpoint_to_diffusers"
        return getattr(single_file_utils, name)(weights)

    return convert


@dataclass(frozen=True)
class Row:
    """A model in diffusers.

    Attributes:
        name: in the tests' names.
        recipe: of the host's small transformer.
        pipeline: diffusers' class; it holds
        transformer: another one, made with
        settings: as small as the host's.
        converted: the host's weights by the names of that class.
        call: what it predicts for the arguments that the host gave to its own module.
        adapted: changes what of the class is of a fixed size.
        others: makes further parts of the pipeline that LoRAs are for, by name.
        files: the formats of Save LoRA that are read, with the layers that train for each.
    """

    name: str
    recipe: Recipe
    pipeline: str
    transformer: str
    settings: Mapping[str, Any]
    call: Callable[[Any, Arguments], Tensor]
    converted: Callable[[Weights], Weights] = dict
    adapted: Callable[[Any], None] = unchanged
    others: Callable[[Weights], dict[str, nn.Module]] = no_others
    files: Mapping[str, str] = field(default_factory=lambda: {"kohya": ALL, "diffusers": ALL})

    def __str__(self) -> str:
        return self.name

    def made(self, weights: Weights) -> Any:
        """A pipeline around the host's weights, with nothing else in it."""
        transformer: nn.Module = getattr(diffusers, self.transformer)(**self.settings)
        self.adapted(transformer)
        transformer.load_state_dict(self.converted(dict(weights)))
        parts = {"transformer": transformer.eval(), **self.others(weights)}
        kind = getattr(diffusers, self.pipeline)
        if issubclass(kind, diffusers.ModularPipeline):
            pipe = kind()
            pipe.update_components(**parts)
            return pipe
        asked = inspect.signature(kind.__init__).parameters.values()
        missing = [each.name for each in asked if each.default is inspect.Parameter.empty]
        return kind(**{**dict.fromkeys(missing[1:]), **parts})


SMALL = {"num_layers": 2, "num_attention_heads": HEADS}
FLUX = {**SMALL, "num_single_layers": 2, "joint_attention_dim": TEXT}
WIDE = 384  # where diffusers' feed-forward, 8/3 as wide, is as wide as the host's
OF_BLOCKS = {"kohya": BLOCKS, "diffusers": BLOCKS}
ROWS = [
    Row(
        "flux", transformers.FLUX, "FluxPipeline", "FluxTransformer2DModel",
        {**FLUX, "guidance_embeds": True}, call_flux, converted_flux,
        # Of what is around the blocks, its loader drops layers in kohya's spelling.
        files={"kohya": BLOCKS, "diffusers": ALL},
    ),
    Row(
        "klein", transformers.KLEIN, "Flux2KleinPipeline", "Flux2Transformer2DModel",
        {**FLUX, "joint_attention_dim": 3 * TEXT, "guidance_embeds": False}, call_flux2,
        by_diffusers("flux2"), files=OF_BLOCKS,
    ),
    Row(
        "z-image",
        {
            **transformers.Z_IMAGE,
            "unet": {**transformers.Z_IMAGE["unet"], "dim": WIDE, "n_heads": 3, "n_kv_heads": 3},
        },
        "ZImagePipeline", "ZImageTransformer2DModel",
        {"dim": WIDE, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": TEXT},
        call_z_image, by_diffusers("z_image"), narrow_z_image,
    ),
    Row(
        "qwen-image", transformers.QWEN_IMAGE, "QwenImagePipeline", "QwenImageTransformer2DModel",
        {**SMALL, "joint_attention_dim": TEXT}, call_qwen_image,
    ),
    Row(
        "chroma", transformers.CHROMA, "ChromaPipeline", "ChromaTransformer2DModel",
        {**FLUX, "approximator_hidden_dim": WIDTH, "approximator_layers": 2}, call_flux,
        converted_chroma, long_chroma, files=OF_BLOCKS,
    ),
    Row(
        "krea2", transformers.KREA2, "Krea2Pipeline", "Krea2Transformer2DModel",
        {
            **SMALL, "num_key_value_heads": 1, "timestep_embed_dim": 64, "text_hidden_dim": TEXT,
            "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
            "intermediate_size": 768, "text_intermediate_size": 256,
        },
        call_krea2, by_diffusers("krea2"),
    ),
    Row(
        "sd3", {**transformers.SD3, "arguments": {"clip_l": True, "clip_g": False, "t5": False}},
        "StableDiffusion3Pipeline", "SD3Transformer2DModel",
        {
            "num_layers": 4, "num_attention_heads": 4, "caption_projection_dim": WIDTH,
            "pos_embed_max_size": 64, "qk_norm": "rms_norm",
        },
        call_sd3, by_diffusers("sd3"), files={"diffusers": ALL},
    ),
    Row(
        "anima", transformers.ANIMA, "AnimaModularPipeline", "CosmosTransformer3DModel",
        {
            **SMALL, "adaln_lora_dim": 64, "rope_scale": (1.0, 4.0, 4.0),
            "extra_pos_embed_type": None,
        },
        call_anima, converted_anima, others=anima_conditioner,
    ),
]  # fmt: skip
