"""Models that no small file gives, for the trainer to refuse."""

from __future__ import annotations

import copy
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import io


class GGMLTensor(torch.Tensor):
    """As ComfyUI-GGUF holds weights: packed bytes that say of what kind they are."""

    tensor_type = 2

    def detach(self) -> GGMLTensor:
        return self


class Gguf(io.ComfyNode):
    """A copy of a MODEL with one weight as a GGUF file has it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _giver("ProbeGguf", io.Model.Input("model"))

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        packed = model.clone()
        packed.model = copy.deepcopy(model.model)
        layer = packed.model.diffusion_model.input_blocks[0][0]
        with torch.inference_mode(False):
            weight = torch.zeros(64, dtype=torch.uint8).as_subclass(GGMLTensor)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return io.NodeOutput(packed)


class Refiner(io.ComfyNode):
    """A MODEL of the host's class for the SDXL refiner, a few layers large."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _giver("ProbeRefiner")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        config = comfy.supported_models.SDXLRefiner({
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
            "num_res_blocks": [1], "channel_mult": [1], "use_spatial_transformer": True,
            "transformer_depth": [0], "transformer_depth_output": [0, 0],
            "transformer_depth_middle": -2, "num_classes": "sequential",
            "context_dim": 1280, "adm_in_channels": 2560, "num_head_channels": 32,
        })  # fmt: skip
        cpu = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(config.get_model({}), cpu, cpu))


def _giver(node_id: str, *inputs: io.Input) -> io.Schema:
    return io.Schema(
        node_id=node_id, category="tests", inputs=list(inputs), outputs=[io.Model.Output()]
    )
