"""How the weights of two MODELs or CLIPs differ, one by one: never a second copy of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import comfy.lora
import torch
from torch import Tensor

from .....trainers.errors import AdapterError
from .....trainers.methods.adapters.extract import Difference
from .....trainers.methods.adapters.layers import DOTTED_ENDINGS, KOHYA_ENDINGS, shortened
from .....trainers.methods.lora import layer_name, text_layer_name
from .....trainers.models.architectures import DENOISER, KOHYA, Architecture
from ...status import counted
from ..parts import diffusers_names
from ..support import check_weights, record_of
from ..twin import HOST_DENOISER

ENDING = ".weight"
Patched = Mapping[str, list[Any]]  # each weight with how to widen it, and the patches on it


class _Naming(NamedTuple):
    architecture: Architecture
    diffusers_names: Mapping[str, str]


def differences(model: Any, base: Any, clip: Any, base_clip: Any) -> Iterator[Difference]:
    """Each weight of `model` and `clip` that is not their bases' own, less that of the bases.

    What is patched in counts. Differences are fp32, where the host keeps its weights.

    Args:
        clip, base_clip: None leaves text encoders out.

    Raises:
        AdapterError: the two are not of one kind.
        UnsupportedModelError: quantized weights.
    """
    for socket, one in (("model", model), ("base_model", base)):
        check_weights(socket, one.model.diffusion_model)
    record = record_of(model)
    names = diffusers_names(model) if record.diffusers_names else {}
    naming = _Naming(record, names)
    pairs = [_Pair("model", model, base, HOST_DENOISER)]
    read_as = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        for socket, one in (("clip", clip), ("base_clip", base_clip)):
            check_weights(socket, one.cond_stage_model)
        pairs.append(_Pair("clip", clip.patcher, base_clip.patcher, ""))
        read_as = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, read_as)
    todo = [(pair, key) for pair in pairs for key in pair.differing(record)]
    for pair, key in counted(todo):
        yield Difference(key, pair.difference(key), *_spelled(naming, read_as, key))


class _Pair:
    """The weights of two patchers.

    Raises:
        AdapterError: their weights are not of the same names and shapes.
    """

    def __init__(self, socket: str, one: Any, other: Any, start: str) -> None:
        self._same_module = one.model is other.model
        self._one, self._other = (p.get_key_patches(start or None) for p in (one, other))
        unequal = [
            key
            for key in sorted(self._one.keys() | self._other.keys())
            if _shape(self._one, key) != _shape(self._other, key)
        ]
        if unequal:
            raise AdapterError(
                f"Inputs '{socket}' and 'base_{socket}' are not of one kind: {len(unequal)} weights"
                f" have other names or shapes ({shortened(unequal)}).\n"
                "Wire a trained model and the model that it was trained from."
            )

    def differing(self, record: Architecture) -> list[str]:
        """Keys of the weights that may differ, without those that no file has and nothing reads."""
        return [
            key
            for key, (held, *patches) in self._one.items()
            if held[0].is_floating_point()
            and not (self._same_module and _same(patches, self._other[key][1:]))
            and not re.fullmatch(record.unset_weights, key)
        ]

    def difference(self, key: str) -> Tensor:
        return _patched(self._one[key], key) - _patched(self._other[key], key)


def _shape(weights: Patched, key: str) -> torch.Size | None:
    return weights[key][0][0].shape if key in weights else None


def _same(patches: list[Any], others: list[Any]) -> bool:
    # Clones share the patches themselves; they hold tensors, which == would compare one by one.
    pairs = zip(patches, others, strict=False)
    return len(patches) == len(others) and all(one is other for one, other in pairs)


def _patched(held: list[Any], key: str) -> Tensor:
    """A weight with its patches, in fp32, as the host makes it before it rounds it."""
    (weight, widened), *patches = held
    wide = widened(weight.to(dtype=torch.float32, copy=True), inplace=True)
    patched: Tensor = comfy.lora.calculate_weight(patches, wide, key)
    return patched


def _spelled(naming: _Naming, read_as: Mapping[str, Any], key: str) -> tuple[str, tuple[str, str]]:
    """What a LoRA's file calls a weight's layer, in kohya's spelling if the host reads that."""
    layer = key.removesuffix(ENDING)
    of_denoiser = key.startswith(HOST_DENOISER)
    if naming.architecture.spelling == KOHYA:
        name = _kohya(naming, layer, of_denoiser)
        if name and read_as.get(name) == key:
            return name, KOHYA_ENDINGS
    dotted = layer if of_denoiser else f"text_encoders.{layer}"
    return (dotted if read_as.get(dotted) == key else ""), DOTTED_ENDINGS


def _kohya(naming: _Naming, layer: str, of_denoiser: bool) -> str:
    if of_denoiser:
        inner = layer.removeprefix(HOST_DENOISER)
        known = not naming.architecture.diffusers_names or inner in naming.diffusers_names
        return layer_name(naming, DENOISER, inner) if known else ""
    encoder, _, inner = layer.partition(".")
    return text_layer_name(naming.architecture, encoder, inner)
