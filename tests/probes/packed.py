"""Layers that hold weights as ComfyUI-GGUF's do: an interface of its own, with one kind of packing.

A block of 32 numbers is a scale in fp16 and 32 bytes, as GGUF's Q8_0 has it.
"""

from __future__ import annotations

import re
from typing import Any

import comfy.ops
import torch

BLOCK, Q8_0 = 32, 8
BLOCKS = re.compile(r".*\.\d+\..*")


class GGMLTensor(torch.Tensor):
    """Packed bytes that say of what kind they are, and what shape they stand for."""

    def __new__(cls, data: Any, *, tensor_type: Any, tensor_shape: Any, patches: Any = ()) -> Any:
        return super().__new__(cls, data)

    def __init__(self, data: Any, *, tensor_type: Any, tensor_shape: Any, patches: Any = ()):
        self.tensor_type, self.tensor_shape, self.patches = tensor_type, tensor_shape, patches

    def detach(self) -> GGMLTensor:
        return self

    @property
    def shape(self) -> Any:
        return self.tensor_shape


class Linear(comfy.ops.manual_cast.Linear):
    """A layer that unpacks its weight each time it runs."""

    def get_weight(self, tensor: Any, dtype: torch.dtype) -> torch.Tensor:
        blocks = tensor.as_subclass(torch.Tensor).reshape(-1, BLOCK + 2)
        scale = blocks[:, :2].contiguous().view(torch.float16).to(dtype)
        weight = blocks[:, 2:].contiguous().view(torch.int8).to(dtype) * scale
        assert not tensor.patches
        return weight.reshape(tuple(tensor.tensor_shape))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.get_weight(self.weight, input.dtype)
        return torch.nn.functional.linear(input, weight, self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = torch.zeros(self.weight.shape, device="meta")


def pack(module: torch.nn.Module) -> None:
    """Let the linear layers in the blocks of `module` hold their weights so; in place."""
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and BLOCKS.fullmatch(path):
            layer.__class__ = Linear
            layer.weight = torch.nn.Parameter(packed(layer.weight), requires_grad=False)


def packed(weight: torch.Tensor) -> GGMLTensor:
    with torch.inference_mode(False):
        blocks = weight.detach().float().clone().reshape(-1, BLOCK)
        scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
        codes = (blocks / scale.float()).round().to(torch.int8)
        data = torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], dim=1)
        return GGMLTensor(data, tensor_type=Q8_0, tensor_shape=torch.Size(weight.shape))
