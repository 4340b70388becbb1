"""Twins: trainable copies of the host's modules on the host's own storage.

A twin is a deep copy of a module whose parameters and buffers stand on the tensors that the host
holds. Copied, once, is only what training changes (DreamBooth), what patches wired in before
touch, and what has to change its device or dtype. A copy that need only be wider is not made: such
layers widen their weights when they run (trainers/models/recast.py).

The host runs nodes in inference mode and its weights are inference tensors, which autograd
refuses; `alias` gives a normal tensor on the same storage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.lora
import torch
from torch import Tensor, nn

from ....trainers.models.checkpointing import guard_norms
from ....trainers.models.convolution import use_small_map_convolutions
from ....trainers.models.recast import NARROW, Scratch, compute_wide

HOST_DENOISER = "diffusion_model."  # what the host's keys of its weights start with
# What the host notes on a layer while it streams or patches that layer's weights: GPU memory,
# pinned RAM and who else has some, which no copy may hold or even follow.
NOTES = (
    "_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch", "_pin", "_pins", "_pin_state",
    "seed_key", "weight_lowvram_function", "bias_lowvram_function",
    "weight_function", "bias_function",
)  # fmt: skip
WIDENED = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Placement(NamedTuple):
    """How a twin's weights are held.

    Attributes:
        computes_in: the dtype of its arithmetic.
        changed_in: the dtype of private copies where a method changes the weights; or None.
        waits_on: where the weights are at first, if not on the device.
    """

    device: torch.device
    computes_in: torch.dtype
    changed_in: torch.dtype | None = None
    waits_on: torch.device | None = None

    def held_in(self, stored: torch.dtype) -> torch.dtype:
        """The dtype of a weight that the host stores in `stored`."""
        if self.changed_in is not None:
            return self.changed_in
        widens = self.computes_in == torch.float32 and stored in NARROW
        return stored if widens else self.computes_in


def twin_of(
    module: nn.Module,
    patcher: Any,
    prefix: str,
    placement: Placement,
    frozen: tuple[str, ...] = (),
) -> nn.Module:
    """A twin of a module that `patcher` keeps.

    Call it in `torch.inference_mode(False)`, after models were asked to leave the device.

    Args:
        prefix: what the patcher's keys have before the module's own.
        frozen: names of children that no method changes, whatever the placement says.
    """
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = {}
        for name, parameter in module.named_parameters():
            key = f"{prefix}{name}"
            weight = _weight(parameter, patcher.patches.get(key), key, placement.device)
            own = placement
            if name.split(".")[0] in frozen:
                own = placement._replace(changed_in=None)
            dtype = own.held_in(weight.dtype) if weight.is_floating_point() else weight.dtype
            place = own.waits_on or own.device
            weight = weight.to(place, dtype, copy=own.changed_in is not None)
            memo[id(parameter)] = nn.Parameter(weight, requires_grad=False)
        for buffer in module.buffers():
            memo[id(buffer)] = alias(buffer).to(placement.waits_on or placement.device)
        with _without_notes(module):
            twin = copy.deepcopy(module, memo)
    _plain(twin, placement)
    guard_norms(twin)
    return twin


def hollow(module: nn.Module, like: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the host's module that has what `like` makes of each weight in its place."""
    with torch.inference_mode(False):
        weights = (*module.parameters(), *module.buffers())
        memo: dict[int, Any] = {id(weight): like(weight) for weight in weights}
        with _without_notes(module):
            return copy.deepcopy(module, memo)


@contextmanager
def _without_notes(module: nn.Module) -> Iterator[None]:
    """The host's layers without its notes on them; they are back afterwards."""
    aside = []
    for layer in module.modules():
        own = vars(layer)
        aside.append((own, {note: own.pop(note) for note in NOTES if note in own}))
    try:
        yield
    finally:
        for own, notes in aside:
            own.update(notes)


def _weight(parameter: Tensor, patches: Any, key: str, device: torch.device) -> Tensor:
    """A parameter as the host would compute with it, patches included."""
    weight = alias(parameter)
    if not patches:
        return weight
    # In fp32 as the host does, and always a copy, since patching works in place; the host rounds a
    # patched weight to its own dtype before it computes with it.
    wide = weight.to(device, torch.float32, copy=True)
    patched: Tensor = comfy.lora.calculate_weight(patches, wide, key)
    return patched.to(weight.dtype)


def _plain(twin: nn.Module, placement: Placement) -> None:
    """Rid the layers of the host's casting: the twin's weights are in their place."""
    layer: Any
    for layer in twin.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = isinstance(layer, nn.Embedding)  # they cast what they give
            layer.weight_function = layer.bias_function = []
    if placement.device.type == "cpu":
        use_small_map_convolutions(twin)
    if placement.computes_in == torch.float32:
        scratch = Scratch(torch.float32)
        for layer in twin.modules():
            if isinstance(layer, WIDENED):
                compute_wide(layer, scratch)


def alias(tensor: Tensor) -> Tensor:
    """A normal tensor (autograd accepts it) on the storage of an inference tensor. No copy."""
    with torch.inference_mode(False):
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
