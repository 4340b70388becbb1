"""What diffusers calls the layers of the host's models, as far as its pipelines read LoRAs."""

from __future__ import annotations

import re
from typing import Any

import comfy.lora
import comfy.utils

from .....trainers.methods.adapters.spelling import OWN, Place, published_places
from .....trainers.models.architectures import (
    ARCHITECTURES,
    PUBLISHED,
    TRANSFORMER,
    Architecture,
)
from ..parts import diffusers_names
from ..support import record_of

THEIRS, WEIGHT = "transformer.", ".weight"
Places = dict[str, list[Place]]


def diffusers_places(model: Any) -> Places:
    """Where diffusers has a denoiser's layers, by each name that a LoRA may have for them.

    Empty where no pipeline of diffusers reads LoRAs of such a model.
    """
    named = {ours: [Place(f"unet.{name}")] for ours, name in diffusers_names(model).items()}
    record = record_of(model)
    if record.diffusers == TRANSFORMER:
        named = _own_names(model)
    elif record.diffusers == PUBLISHED:
        named = _published_names(model, record)
    spelled: Places = {}
    for ours, places in named.items():
        spelled |= dict.fromkeys((f"{OWN}{ours}", _kohya(ours)), places)
        for place in places:  # a LoRA may have their names already
            inner = place.name.split(".", 1)[1]
            for name in (place.name, _kohya(inner)):
                spelled.setdefault(name, [Place(place.name)])
    return spelled


def read_by_diffusers() -> str:
    """The kinds of models whose LoRAs diffusers' pipelines read, in words."""
    *titles, last = (record.title for record in ARCHITECTURES.values() if record.diffusers)
    return f"{', '.join(titles)} or {last}"


def _kohya(layer: str) -> str:
    return f"lora_unet_{layer}".replace(".", "_")


def _own_names(model: Any) -> Places:
    """Layers by the names of diffusers' module, which the host's loader has a map of.

    Of two names for the same outputs the first is taken: others are those of relatives.
    """
    found: Places = {}
    for theirs, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        key, rows, turn = (*((target,) if isinstance(target, str) else target), None, None)[:3]
        known = turn is None or turn is comfy.utils.swap_scale_shift
        if not theirs.startswith(THEIRS) or not key.endswith(WEIGHT) or not known:
            continue
        place = Place(theirs, rows[1:] if rows else None, swapped=turn is not None)
        places = found.setdefault(key.removeprefix(OWN).removesuffix(WEIGHT), [])
        taken = [other.rows for other in places]
        if not taken or (None not in (place.rows, *taken) and place.rows not in taken):
            places.append(place)
    return found


def _published_names(model: Any, record: Architecture) -> Places:
    """Layers by the names of published files, which diffusers' loaders turn into its own."""
    layers = {
        key.removesuffix(WEIGHT): len(weight)
        for key, weight in model.model.diffusion_model.named_parameters()
        if key.endswith(WEIGHT) and weight.ndim > 1
    }
    return {
        layer: published_places(f"{OWN}{layer}", outputs, record)
        for layer, outputs in layers.items()
        if not (record.unread and re.fullmatch(record.unread, layer))
    }
