"""Twins: trainable copies of the host's modules on the host's own storage.

A twin is a deep copy of a module whose parameters and buffers stand on the tensors that the host
holds. Copied, once, is only what training changes (DreamBooth), what patches wired in before
touch, and what has to change its device or dtype. A copy that need only be wider is not made: such
layers widen their weights when they run (trainers/models/recast.py), and so do quantized ones
(trainers/models/quantized.py).

The host runs nodes in inference mode and its weights are inference tensors, which autograd
refuses; `alias` gives a normal tensor on the same storage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.lora
import torch
from torch import Tensor, nn

from ....trainers.errors import SettingsError
from ....trainers.models.checkpointing import guard_norms
from ....trainers.models.convolution import use_small_map_convolutions
from ....trainers.models.quantized import Stored, as_it_is
from ....trainers.models.recast import NARROW, Scratch, compute_wide
from ....trainers.settings.training import AS_IT_IS
from .stored import gguf
from .stored.quantized import (
    FLOAT8,
    alike,
    check_quantizes,
    frozen_layer,
    is_of_host_alone,
    is_quantized,
    model_dtype,
    quantized_as,
    stored_weight,
    to_quantize,
)
from .stored.storage import alias

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
        quantized: one of QUANTIZED: what large layers of a plain base are held in.
    """

    device: torch.device
    computes_in: torch.dtype
    changed_in: torch.dtype | None = None
    waits_on: torch.device | None = None
    quantized: str = AS_IT_IS

    @property
    def at_first(self) -> torch.device:
        """Where the weights are until the training begins."""
        return self.waits_on or self.device

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
        patches = {
            key.removeprefix(prefix): found
            for key, found in patcher.patches.items()
            if key.startswith(prefix)
        }
        memo: dict[int, Any] = {}
        if placement.changed_in is None:
            memo |= {id(old): new for old, new in _stand_ins(module, patches, placement)}
        for path, layer in module.named_modules():
            own = placement
            if path.split(".")[0] in frozen:
                own = placement._replace(changed_in=None)
            for name, parameter in layer.named_parameters(recurse=False):
                if id(layer) not in memo and id(parameter) not in memo:
                    weight = _weight(layer, path, name, patches, own)
                    memo[id(parameter)] = nn.Parameter(weight, requires_grad=False)
        for buffer in module.buffers():
            memo[id(buffer)] = alias(buffer).to(placement.at_first)
        with _without_notes(module):
            twin = copy.deepcopy(module, memo)
    _plain(twin, placement)
    guard_norms(twin)
    return twin


def _stand_ins(
    module: nn.Module, patches: Mapping[str, Any], placement: Placement
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each layer whose weight is quantized, or is to be, and what the twin has in its place.

    A quantized weight that is patched becomes a widened copy, as the host computes it, and so takes
    two or four times its memory; with `placement.quantized` it is quantized again.
    """
    wanted, device = placement.quantized, placement.at_first
    quantizes_plain = wanted != AS_IT_IS and not is_quantized(module)
    for path, layer in module.named_modules():
        weight = stored_weight(layer)
        patched = patches.get(f"{path}.weight")
        to_wanted = to_quantize(path, layer)
        if weight is None and (is_of_host_alone(layer) or (quantizes_plain and to_wanted)):
            weight = as_it_is(alias(layer.weight))
            to_wanted &= quantizes_plain
        elif weight is not None:
            to_wanted &= bool(patched) and wanted != AS_IT_IS
        if weight is None:
            continue
        weight = weight.on(device)
        if patched:
            weight = _patched(weight, patched, f"{path}.weight", placement)
        if to_wanted:
            weight = quantized_as(wanted, weight.weight(torch.float32))
        bias = None
        if getattr(layer, "bias", None) is not None:
            bias = _weight(layer, path, "bias", patches, placement)
        yield layer, frozen_layer(layer, weight, bias, placement.computes_in)


def check_quantize_base(quantized: str, model: Any) -> None:
    """See that a MODEL has weights to quantize, and that this host can.

    Args:
        quantized: one of QUANTIZED.

    Raises:
        SettingsError: its weights are quantized already.
        UnavailableError: this host cannot.
    """
    check_quantizes(quantized)
    denoiser = model.model.diffusion_model
    if quantized == AS_IT_IS or not is_quantized(denoiser):
        return
    if not any(  # a copy is made of what is patched
        f"{HOST_DENOISER}{path}.weight" in model.patches
        for path, layer in denoiser.named_modules()
        if to_quantize(path, layer) and stored_weight(layer) is not None
    ):
        raise SettingsError(
            (f"quantize_base is '{quantized}', but the base that is wired in is quantized already; "
             "allowed: none",)
        )  # fmt: skip


def hollow(module: nn.Module, like: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the host's module that has what `like` makes of each weight in its place."""
    with torch.inference_mode(False):
        weights = (*module.parameters(), *module.buffers())
        memo: dict[int, Any] = {id(weight): alike(weight, like) for weight in weights}
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


def _weight(
    layer: nn.Module, path: str, name: str, patches: Mapping[str, Any], placement: Placement
) -> Tensor:
    """A layer's parameter as the host would compute with it, patches included, where it is held."""
    parameter = getattr(layer, name)
    if gguf.is_packed(parameter):
        weight = gguf.unpacked(layer, parameter, torch.float32)
    else:
        weight = alias(parameter)
    if (dtype := model_dtype(layer, name)) in FLOAT8:
        weight = weight.to(dtype)
    key = f"{path}.{name}" if path else name
    if patched := patches.get(key):
        # In fp32 as the host does, and always a copy, since patching works in place; the host
        # rounds a patched weight to its own dtype before it computes with it.
        wide = weight.to(placement.device, torch.float32, copy=True)
        weight = comfy.lora.calculate_weight(patched, wide, key).to(weight.dtype)
    held_in = placement.held_in(weight.dtype) if weight.is_floating_point() else weight.dtype
    return weight.to(placement.at_first, held_in, copy=placement.changed_in is not None)


def _patched(stored: Stored, patches: Any, path: str, placement: Placement) -> Stored:
    """A stored weight with patches, as a widened copy."""
    wide = stored.on(placement.device).weight(torch.float32)
    patched: Tensor = comfy.lora.calculate_weight(patches, wide, path)
    return as_it_is(patched.to(placement.at_first, placement.computes_in))


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
