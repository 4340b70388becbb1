"""Every kind of adapter: its settings, what its files hold, and the formula they are read by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn

from trainers.contracts import Parts
from trainers.methods.adapters.oft import OftLayer
from trainers.models.architectures import DENOISER

ADAPTED = (LoraLayer, LycorisLayer, OftLayer)
# Each kind of adapter, with what files hold of a layer; a lokr's second factor is whole where it
# is small. LyCORIS' names: its docs/Network-Args.md and modules.
LORA_ENTRIES = {"lora_up.weight", "lora_down.weight", "alpha"}
LOHA_ENTRIES = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"}
LOKR_ENTRIES = {"lokr_w1", "lokr_w2", "alpha"}
KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": ({}, LORA_ENTRIES),
    "pissa": ({"initialization": "pissa"}, LORA_ENTRIES),
    "dora": ({"variant": "dora"}, LORA_ENTRIES | {"dora_scale"}),
    "lokr": ({"variant": "lokr", "rank": 64}, LOKR_ENTRIES),
    "lokr of rank": (
        {"variant": "lokr", "lokr_factor": 2}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"},
    ),
    "loha": ({"variant": "loha"}, LOHA_ENTRIES),
    "oft": ({"variant": "oft", "rank": 4}, {"oft_blocks", "alpha"}),
}  # fmt: skip


def adapted(module: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, ADAPTED)}


OWN = r"\b(lora|hada|lokr)_\w+\.(default|start)|oft_blocks"  # names of adapters' parameters


def is_trained(name: str) -> bool:
    """Whether a parameter's name is that of one which trains."""
    return bool(re.search(OWN, name)) and ".start." not in name


def layers_and_tensors(
    base: Parts, exported: dict[str, Tensor]
) -> Iterator[tuple[str, str, Any, dict[str, Tensor]]]:
    """Each adapted layer with its module's name, its own, and its exported tensors."""
    for name, prefix in {DENOISER: "lora_unet", "clip_l": "lora_te_text_model"}.items():
        for own, layer in adapted(base.modules[name]).items():
            key = f"{prefix}_{own.replace('.', '_')}."
            tensors = {k.removeprefix(key): t for k, t in exported.items() if k.startswith(key)}
            yield name, own, layer, tensors


def merged_weight(weight: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """What ComfyUI and LyCORIS make of a layer's weight, by the tensors of its file.

    W + alpha / rank * up @ down; with a dora_scale, that times dora_scale / |W| for each output;
    alpha / rank of a lokr only where a factor has a rank; each block of outputs times R^T.
    """
    alpha = tensors["alpha"]
    if "oft_blocks" in tensors:
        assert alpha == 0  # no limit
        blocks = tensors["oft_blocks"]
        q, identity = blocks - blocks.mT, torch.eye(blocks.shape[-1])
        turn = torch.block_diag(*((identity + q) @ torch.linalg.inv(identity - q)))
        torch.testing.assert_close(turn @ turn.T, torch.eye(len(turn)), atol=1e-5, rtol=0)
        return (turn.T @ weight.flatten(1)).reshape(weight.shape)
    if "hada_w1_a" in tensors:
        first, second = (tensors[f"hada_{w}_a"] @ tensors[f"hada_{w}_b"] for w in ("w1", "w2"))
        return weight + alpha / len(tensors["hada_w1_b"]) * (first * second).reshape(weight.shape)
    if "lokr_w1" in tensors:
        scale, small = torch.tensor(1.0), tensors.get("lokr_w2")
        if small is None:
            scale, small = (
                alpha / len(tensors["lokr_w2_b"]),
                tensors["lokr_w2_a"] @ tensors["lokr_w2_b"],
            )
        inputs = weight.shape[1] // tensors["lokr_w1"].shape[1]
        small = small.reshape(-1, inputs, *weight.shape[2:])
        large = tensors["lokr_w1"].reshape(*tensors["lokr_w1"].shape, *[1] * (weight.ndim - 2))
        return weight + scale * torch.kron(large, small)
    up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
    scale = alpha / down.shape[0]
    moved = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    if "dora_scale" not in tensors:
        return moved
    dora_scale = tensors["dora_scale"]
    assert dora_scale.shape == (len(weight), *[1] * (weight.ndim - 1))
    return moved * dora_scale / weight.flatten(1).norm(dim=1).reshape(dora_scale.shape)
