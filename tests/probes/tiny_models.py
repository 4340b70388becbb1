"""Small random models of the host's own classes: MODEL, CLIP and VAE without a file.

A recipe (JSON) names the classes and how small they are:

    model       class of comfy.supported_models
    unet        its configuration, as the host reads it off a checkpoint; without it there is no
                MODEL, for a denoiser from a file
    state       of what a class reads off a checkpoint beside that: shapes by name
    meta        if true, a module without weights, for the pack to refuse
    text        module of comfy.text_encoders, or of comfy behind a dot
    tokenizer   class in it
    encoder     the text encoders' class in it, or a function that gives it
    arguments   of that function
    vocabulary  where the tokenizer looks for its vocabulary, if the host has none for it
    sizes       by text encoder, what is other than in the published model
    quantized   whether the text encoders' layers are held in scaled fp8, as most people load them
    eyes        what is other in the part that looks at pictures; without it, there is none
    vae         "taesd" (pictures, any number of channels), "wan" (a video's one frame), "pixels"
                or "averages" (see stand_ins)
    seed        of the denoiser's weights, 0 where it is left out: others are a sibling's
    dtype       of the denoiser's weights, float32 where it is left out
    held        what the denoiser's layers are quantized as: one of FORMATS as a file has them, or
                gguf as its loader does
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.text_encoders.qwen_vl
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from .packed import pack
from .quantizing import FLOAT8, as_in_file
from .stand_ins import Averages, vocabulary

# The parts of text encoders that look at pictures, which are large.
EYES = "visual"


class Tiny(io.ComfyNode):
    """A model by its recipe; the same recipe gives the same weights.

    With `file` the weights are those that a Save node wrote to output/: of the denoiser, and of
    the text encoders if it holds them.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeTiny",
            category="tests",
            inputs=[io.String.Input("recipe"), io.String.Input("file", optional=True)],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, recipe: str, file: str = "") -> io.NodeOutput:
        told = json.loads(recipe)
        model, clip = model_of(told) if "unet" in told else None, clip_of(told)
        if file:
            saved = os.path.join(folder_paths.get_output_directory(), file)
            weights = comfy.utils.load_torch_file(saved)
            model.model.diffusion_model.load_state_dict(part(weights, "model.diffusion_model."))
            if of_text := part(weights, "text_encoders."):
                missing, _ = clip.cond_stage_model.load_state_dict(of_text, strict=False)
                assert not missing, missing  # beyond them a file holds tokenizers
        return io.NodeOutput(model, clip, vae_of(told))


def part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def model_of(told: dict[str, Any]) -> Any:
    config = getattr(comfy.supported_models, told["model"])(dict(told["unet"]))
    config.unet_config |= told["unet"]  # the class has sizes of its own
    dtype = getattr(torch, told.get("dtype", "float32"))
    # As the host does it: numbers that it does not compute with are cast.
    config.set_inference_dtype(dtype, torch.float32 if dtype in FLOAT8 else None)
    offload = comfy.model_management.unet_offload_device()
    state = {name: torch.zeros(shape) for name, shape in told.get("state", {}).items()}
    meta = told.get("meta", False)
    model = config.get_model(state, "", device="meta" if meta else offload)
    model.diffusion_model.to(dtype)
    if not meta:
        fill(model.diffusion_model, told.get("seed", 0))
    held = told.get("held")
    if held == "gguf":
        pack(model.diffusion_model)
    elif held:
        weights = as_in_file(model.diffusion_model, held)
        config.quant_config = {"mixed_ops": True}
        model = config.get_model(state, "", device=offload)
        model.diffusion_model.load_state_dict(weights, assign=True)
    model.eval()
    device = comfy.model_management.get_torch_device()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=device, offload_device=offload)


def clip_of(told: dict[str, Any]) -> Any:
    arguments = told.get("arguments", {})
    clip = _clip(told, arguments)
    fill(clip.cond_stage_model)
    if told.get("quantized"):
        weights = as_in_file(clip.cond_stage_model, "float8_e4m3fn", everywhere=True)
        arguments = {**arguments, "llama_quantization_metadata": {"mixed_ops": True}}
        clip = _clip(told, arguments, state_dict=weights)
    return clip


def _clip(told: dict[str, Any], arguments: dict[str, Any], **more: Any) -> Any:
    module = importlib.import_module(f".{told['text']}", "comfy.text_encoders")
    encoder = getattr(module, told["encoder"])
    if not isinstance(encoder, type):
        encoder = encoder(**arguments)
    target = comfy.supported_models_base.ClipTarget(getattr(module, told["tokenizer"]), encoder)
    options = {f"{name}_model_config": sizes for name, sizes in told["sizes"].items()}
    folders = folder_paths.get_folder_paths("embeddings")
    data = {told["vocabulary"]: vocabulary()} if "vocabulary" in told else {}
    clip = comfy.sd.CLIP(
        target=target,
        embedding_directory=folders,
        tokenizer_data=data,
        model_options=options,
        **more,
    )
    for name, encoder in clip.cond_stage_model.named_children():
        if hasattr(encoder.transformer, EYES):
            delattr(encoder.transformer, EYES)
        if "eyes" in told:
            setattr(encoder.transformer, EYES, eyes_of(told["eyes"]))
        for spelling in (name, f"clip_{name}"):
            if tokenizer := getattr(clip.tokenizer, spelling, None):
                table = encoder.transformer.get_input_embeddings().weight
                tokenizer.embedding_size = table.shape[1]
    return clip


def eyes_of(told: dict[str, Any]) -> Any:
    return comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer(
        **told, device="cpu", dtype=torch.float32, ops=comfy.ops.manual_cast
    )


def vae_of(told: dict[str, Any]) -> Any:
    latents = getattr(comfy.supported_models, told["model"]).latent_format
    channels = latents.latent_channels
    if told["vae"] == "averages":
        return Averages(latents)
    if told["vae"] == "pixels":
        return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    if told["vae"] == "wan":
        module = comfy.ldm.wan.vae.WanVAE(
            dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], image_channels=3, dropout=0.0,
        )  # fmt: skip
    else:
        module = comfy.taesd.taesd.TAESD(latent_channels=channels)
    fill(module)
    return comfy.sd.VAE(sd=module.state_dict(), metadata={"tae_latent_channels": channels})


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Seeded weights in the scale of trained ones; norms pass on what they get."""
    random = torch.Generator().manual_seed(seed)
    tables = ((n, b) for n, b in module.named_buffers() if n.endswith("pos_embed"))  # of files
    with torch.no_grad():
        for name, parameter in (*module.named_parameters(), *tables):
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 0:
                continue  # a scale
            if parameter.ndim > 1:
                parameter.copy_(0.05 * noise)
            elif "norm" in name.lower() and not name.endswith("bias"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.02 * noise)
