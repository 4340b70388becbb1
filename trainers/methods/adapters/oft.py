"""Orthogonal finetuning: the outputs of a frozen layer, turned in blocks.

    Q = B - B^T,  R = (I + Q) (I - Q)^-1,  W' = R^T W for each block of outputs; biases stay

(arXiv 2306.07280; LyCORIS' Diag-OFT, arXiv 2309.14859.) These are the blocks B, and the side, that
ComfyUI and LyCORIS read as `oft_blocks`. peft's own OFT turns the inputs, W' = W P. To be S W that
takes S = W P W^-1, which in general is not orthogonal, not in blocks, and needs W to be square. So
no file could hold what peft trains, and the layer is ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class OftLayer(nn.Module):
    """A linear or convolution layer whose outputs are turned.

    Attributes:
        base_layer: the frozen layer.
        oft_blocks: (blocks, size, size), zero at the start, when R is exactly I.
    """

    _disable_adapters = False  # as peft's layers call it

    def __init__(self, base_layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        outputs = len(self.weight)
        size = block_size(outputs, rank)
        blocks = torch.zeros(outputs // size, size, size, device=self.weight.device)
        self.oft_blocks = nn.Parameter(blocks)

    @property
    def weight(self) -> Tensor:
        """The frozen layer's: models ask their layers for its dtype."""
        weight: Tensor = self.base_layer.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's."""
        bias: Tensor | None = self.base_layer.bias
        return bias

    def turn(self) -> Tensor:
        """R - I of each block, (blocks, size, size)."""
        held = self.oft_blocks.float()
        q = held - held.transpose(1, 2)
        identity = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
        # (I + Q) (I - Q)^-1 - I = (I - Q)^-1 2Q, which is exact for the smallest Q too.
        turn: Tensor = torch.linalg.solve(identity - q, 2 * q)
        return turn

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.base_layer(input)
        if self._disable_adapters:
            return output
        channels = -1 if isinstance(self.base_layer, nn.Linear) else 1
        turned = output.movedim(channels, -1)
        if self.bias is not None:
            turned = turned - self.bias.to(output)
        shape = (*turned.shape[:-1], *self.oft_blocks.shape[:2])
        blocks = turned.float().reshape(shape)
        moved = torch.einsum("knm,...kn->...km", self.turn(), blocks).flatten(-2)
        return (output + moved.movedim(-1, channels)).to(output.dtype)


def block_size(outputs: int, rank: int) -> int:
    """The most that is no more than `rank` and the root of `outputs`, and divides `outputs`.

    LyCORIS takes rank as the size of blocks so, and needs it when it reads a file.
    """
    most = min(rank, math.isqrt(outputs))
    return next(size for size in range(most, 0, -1) if outputs % size == 0)


def turn_outputs(module: nn.Module, layers: list[str], rank: int) -> None:
    """Put an OftLayer in the place of each of the `layers` of `module`."""
    for name in layers:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, OftLayer(module.get_submodule(name), rank))
