"""What a MODEL, CLIP or VAE is, in one hash: its weights and all that was patched onto it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...trainers.checkpoint import tensors_fingerprint, weights_fingerprint
from ...trainers.contracts import Family
from .bridge import host_side

DEEPEST = 8  # patches are records in lists in dictionaries; what lies deeper is the host's own


def model_fingerprint(model: Any) -> str:
    """A hash of a MODEL. As for all here, ask the host first to unload its models.

    It writes patches into the weights of loaded ones.
    """
    own = weights_fingerprint({"model": model.model})
    return _hash(own, model.patches, model.object_patches, model.model_options)


def clip_fingerprint(clip: Any, family: Family, prompts: tuple[str, ...]) -> str:
    """A hash of a CLIP and of what it is asked to encode: embeddings in a prompt are files."""
    weights: dict[str, Tensor] = {}
    for name in family.text_encoders:
        facts, _, host_weights, host_key = host_side(None, clip, name)
        # Only what encodes prompts: the host leaves what a checkpoint lacks as memory had it.
        keys = [host_key(key) for key in family.build(name, facts).state_dict()]
        weights |= {key: host_weights[key] for key in keys}
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    return _hash(tensors_fingerprint(weights), clip.patcher.patches, clip.layer_idx, tokens)


def vae_fingerprint(vae: Any) -> str:
    """A hash of a VAE."""
    return _hash(weights_fingerprint({"vae": vae.first_stage_model}))


def _hash(*facts: Any) -> str:
    described = [_described(fact) for fact in facts]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _described(value: Any, depth: int = 0) -> Any:
    """`value` as JSON that is the same in every process: no addresses, no random ids."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return tensors_fingerprint({"": value})
    kind = _kind(value)
    if depth == DEEPEST:
        return kind
    if isinstance(value, nn.Module):
        return [kind, weights_fingerprint({"": value})]
    if isinstance(value, Mapping):
        pairs = [[_described(k, depth + 1), _described(v, depth + 1)] for k, v in value.items()]
        return sorted(pairs, key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_described(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_described(item, depth + 1) for item in value), key=json.dumps)
    return [kind, *_inside(value, depth)]


def _inside(value: Any, depth: int) -> list[Any]:
    if closure := getattr(value, "__closure__", None):
        return [_described(cell.cell_contents, depth + 1) for cell in closure]
    if callable(value):
        return []
    return [_described(getattr(value, "__dict__", {}), depth + 1)]


def _kind(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return " ".join(
        f"{one.__module__}.{one.__qualname__}" for one in getattr(named, "__mro__", (named,))
    )
