"""PiSSA: a LoRA that starts as the principal part of each weight (arXiv 2404.02948).

    s B0 A0 = the nearest matrix of that rank to W,   h = W x + s B A x - s B0 A0 x

The method's frozen weight is W - s B0 A0. The base's weights are shared and stay as they are, so
what the LoRA starts with is a second, frozen one, which is taken away; a file holds both as one
LoRA of twice the rank, [B, -B0] and [A; A0], for the untouched base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

START = "start"  # peft's name for the frozen one
MORE, ROUNDS = 8, 4  # vectors beyond the rank, and power iterations: peft's "pissa_niter_4"


def start_from_principal(module: nn.Module, layers: list[str], adapter: str, rank: int) -> None:
    """Give peft's LoRA layers of `module` their start, and take it away again.

    The decomposition is done on the CPU and draws from its default generator.
    """
    import peft

    for layer in lora_layers(module):
        principal = _principal(layer.get_base_layer().weight, rank)
        scale = layer.scaling[adapter]
        _fill(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, *principal, scale)
    config = peft.LoraConfig(r=rank, target_modules="|".join(map(re.escape, layers)))
    del module.peft_config  # what peft warns of when there are two
    peft.inject_adapter_in_model(config, module, adapter_name=START)
    for layer in lora_layers(module):
        layer.scaling[START] = layer.scaling[adapter]
        layer.set_adapter([adapter, START])
        for factors, sign in ((layer.lora_A, 1), (layer.lora_B, -1)):
            start = factors[START].weight.requires_grad_(False)
            start.data = sign * factors[adapter].weight.detach().float()


def lora_layers(module: nn.Module) -> Iterator[Any]:
    """peft's LoRA layers in `module`."""
    from peft.tuners.lora import LoraLayer

    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))


def starts(module: nn.Module) -> list[nn.Parameter]:
    """What is taken away: A0 and -B0 of each layer."""
    return [
        factors[START].weight
        for layer in lora_layers(module)
        for factors in (layer.lora_A, layer.lora_B)
        if START in factors
    ]


def _principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Left (out, r) and right (r, in * kernel), r at most `rank`, whose product is nearest."""
    matrix = weight.detach().flatten(1).to("cpu", torch.float32)
    left, values, right = torch.svd_lowrank(matrix, min(rank + MORE, *matrix.shape), niter=ROUNDS)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, (right[:, :rank] * root).T


def _fill(a: Tensor, b: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    # Small layers have fewer singular values than the rank: the rest starts as in any LoRA.
    solid = len(right)
    with torch.no_grad():
        b[:, :solid] = (left / scale**0.5).reshape(b[:, :solid].shape)
        a[:solid] = (right / scale**0.5).reshape(a[:solid].shape)
