"""What a MODEL, CLIP or VAE is, in one hash: its weights and all that was patched onto it.

The host writes patches into the weights of models that it has loaded, so all are asked to leave
before weights are read. What weights hash to is remembered for as long as they are in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .....trainers.models.architectures import Architecture
from .....trainers.runs.fingerprint import tensors_fingerprint, weights_fingerprint
from ...memory import make_room
from . import gguf

DEEPEST = 8  # patches are records in lists in dictionaries; what lies deeper is the host's own


def model_fingerprint(model: Any) -> str:
    """A hash of a MODEL."""
    own = _remembered(model.model, lambda: _module_fingerprint("model", model.model))
    wrappers = getattr(model, "wrappers", {})
    carried = (model.patches, model.object_patches, model.model_options, wrappers)
    return _hash(own, *carried)


def clip_fingerprint(clip: Any, architecture: Architecture, prompts: tuple[str, ...]) -> str:
    """A hash of a CLIP and of what it is asked to encode: embeddings in a prompt are files."""
    own = _remembered(
        clip.cond_stage_model, lambda: tensors_fingerprint(_prompt_weights(clip, architecture))
    )
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    return _hash(own, clip.patcher.patches, clip.layer_idx, tokens)


def vae_fingerprint(vae: Any) -> str:
    """A hash of a VAE."""
    module = vae.first_stage_model
    return _hash(_remembered(module, lambda: weights_fingerprint({"vae": module})))


def _module_fingerprint(name: str, module: nn.Module) -> str:
    packed = {key: w for key, w in module.named_parameters() if gguf.is_packed(w)}
    if not packed:
        return weights_fingerprint({name: module})
    # Such layers give no weights to a state_dict, but stand-ins for them.
    told = {key: str(getattr(weight, "tensor_type", "")) for key, weight in packed.items()}
    held = {key: gguf.packed(w) if key in packed else w for key, w in module.named_parameters()}
    return _hash(told, tensors_fingerprint(held), tensors_fingerprint(dict(module.named_buffers())))


def _prompt_weights(clip: Any, architecture: Architecture) -> dict[str, Tensor]:
    """Only what encodes prompts: the host leaves what a checkpoint lacks as memory had it."""
    module = clip.cond_stage_model
    weights = dict(module.named_parameters())
    if any(gguf.is_packed(weight) for weight in weights.values()):
        weights = {name: gguf.packed(weight) for name, weight in weights.items()}
    elif any("Quantized" in type(weight.data).__name__ for weight in weights.values()):
        weights = module.state_dict()  # there the host takes them apart
    return {n: w for n, w in weights.items() if not re.fullmatch(architecture.unset_weights, n)}


_known: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def _remembered(module: nn.Module, hash_it: Callable[[], str]) -> str:
    if module not in _known:
        make_room()
        _known[module] = hash_it()
    return _known[module]


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
