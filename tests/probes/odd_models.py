"""Models that no small file gives, for the trainer to refuse."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_api.latest import io


class GGMLTensor(torch.Tensor):
    """As ComfyUI-GGUF holds weights: packed bytes that say of what kind they are."""

    tensor_type = 2

    def detach(self) -> GGMLTensor:
        return self


class OfClass(io.ComfyNode):
    """A MODEL of one of the host's classes in comfy.supported_models, a few layers large.

    With `gguf` the first of its weights is as a GGUF file has it; with `experts` it has a layer of
    several quantized matrices. `latents` names another of the host's latent formats than its own.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeOfClass",
            category="tests",
            inputs=[
                io.String.Input("name"),
                io.Boolean.Input("gguf", default=False),
                io.String.Input("latents", optional=True),
                io.Boolean.Input("experts", optional=True),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, name: str, gguf: bool, latents: str = "", experts: bool = False
    ) -> io.NodeOutput:
        kind = getattr(comfy.supported_models, name)
        told = {key: value for key, value in kind.unet_config.items() if key in TOLD}
        model = kind({**SMALL, **told}).get_model({})
        if latents:
            model.latent_format = getattr(comfy.latent_formats, latents)()
        if gguf:
            with torch.inference_mode(False):
                packed = torch.zeros(64, dtype=torch.uint8).as_subclass(GGMLTensor)
                weight = torch.nn.Parameter(packed, requires_grad=False)
            model.diffusion_model.input_blocks[0][0].weight = weight
        if experts:
            layer = comfy.ops.mixed_precision_ops({}, torch.float32).MoEExperts(2, 64, 64)
            codes = QuantizedTensor.from_float(
                torch.ones(2, 64, 64), "TensorCoreFP8E4M3Layout", scale="recalculate"
            )
            layer.weight = torch.nn.Parameter(codes, requires_grad=False)
            model.diffusion_model.experts = layer
        cpu = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(model, cpu, cpu))


SMALL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "legacy": False,
    "num_res_blocks": [1], "channel_mult": [1], "use_spatial_transformer": True,
    "transformer_depth": [0], "transformer_depth_output": [0, 0], "transformer_depth_middle": -2,
    "num_classes": "sequential", "adm_in_channels": 64, "video_kernel_size": [3, 1, 1],
    "merge_strategy": "learned_with_images",
}  # fmt: skip
TOLD = ("in_channels", "context_dim", "use_temporal_resblock")
