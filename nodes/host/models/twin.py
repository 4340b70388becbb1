"""From the host's MODEL and CLIP to modules that can be trained, without a copy of the weights.

A module of diffusers or transformers is made empty (on the meta device) and given the host's own
tensors. Where dtype and device already fit, nothing is copied: both modules stand on the same
storage. So they do where training computes in fp32 on a file in fp16 or bf16: its weights are
widened layer by layer (trainers/families/widening.py). Elsewhere, or where training changes the
weights themselves (DreamBooth), exactly one copy is made, on the training device. Patches wired in
before training (a LoRA, a merge) are computed into the tensors they touch, and only into those.

The host runs nodes in inference mode and its weights are inference tensors, which autograd
refuses; `alias` gives a normal tensor on the same storage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import comfy.lora
import comfy.model_sampling
import comfy.utils
import torch
from torch import Tensor, nn

from ....trainers.contracts import DENOISER, Family, LearnedIds, Parts, Tokens
from ....trainers.errors import DatasetError, UnsupportedModelError
from ....trainers.methods.table import add_token
from ....trainers.models import FAMILIES
from ....trainers.models.widening import NARROW, widen
from ....trainers.noise import Diffusion
from .tokenizer import embeddings_of, speaking_ids

log = logging.getLogger(__name__)

# The host's class for a checkpoint -> our family.
_FAMILY_OF = {"SD15": "sd15"}
_PREDICTION_OF = {comfy.model_sampling.EPS: "epsilon", comfy.model_sampling.V_PREDICTION: "v"}
PLAIN_CHANNELS = 4  # inpainting and image-conditioned variants take more

Dtypes = Mapping[str, torch.dtype]


def family_of(model: Any) -> Family:
    """The family of a MODEL.

    Raises:
        UnsupportedModelError: none can train it; the message names it and the supported ones.
    """
    config = model.model.model_config
    kind = type(config).__name__
    supported = ", ".join(family.title for family in FAMILIES.values())
    if kind not in _FAMILY_OF:
        raise UnsupportedModelError(
            f"Input 'model' is a {kind}, which cannot be trained here.\n"
            f"Supported: {supported}. Load a checkpoint of one of these."
        )
    channels = config.unet_config.get("in_channels", PLAIN_CHANNELS)
    if channels != PLAIN_CHANNELS:
        raise UnsupportedModelError(
            f"Input 'model' is a {kind} with {channels} input channels (inpainting or image-"
            f"conditioned), which cannot be trained here.\nSupported: plain {supported}."
        )
    return FAMILIES[_FAMILY_OF[kind]]


def check_clip(clip: Any, family: Family) -> None:
    """Raise UnsupportedModelError unless `clip` has exactly the text encoders of `family`."""
    if clip is None:
        raise UnsupportedModelError(
            "Input 'clip' is empty: the checkpoint holds no text encoder.\n"
            "Wire the clip of a checkpoint that has one, or of Load CLIP."
        )
    host = clip.cond_stage_model
    names = ("clip_l", "clip_g", "clip_h", "t5xxl", "t5")
    found = tuple(name for name in names if hasattr(host, name))
    if found != family.text_encoders:
        raise UnsupportedModelError(
            f"Input 'clip' has the text encoders {', '.join(found) or type(host).__name__}, "
            f"but 'model' is {family.title}, which has {', '.join(family.text_encoders)}.\n"
            "Wire model and clip from the same checkpoint."
        )


def parts_of(
    model: Any,
    clip: Any,
    family: Family,
    names: tuple[str, ...],
    dtypes: Dtypes,
    device: torch.device,
    private: Dtypes = MappingProxyType({}),
) -> Parts:
    """Trainable twins of what the sockets carry.

    Call it in `torch.inference_mode(False)`, after other models were asked to leave the device.

    Args:
        names: which modules to make: "denoiser" and names of text encoders.
        dtypes: what each of them computes in.
        private: what weights that will be changed are held in; they never share the host's storage.
    """
    modules = {}
    for name in names:
        facts, patcher, weights, keys = host_side(model, clip, name)
        twin = family.build(name, facts)
        place = (dtypes[name], device, private.get(name))
        state = _state(twin, keys, patcher, weights, place)
        twin.load_state_dict(state, assign=True)
        if any(weight.dtype != dtypes[name] for weight in state.values()):
            widen(twin, dtypes[name])
        modules[name] = twin.to(device).requires_grad_(False)
    parts = Parts(
        modules=modules,
        tokenizer=tokenizer_of(clip, family),
        objective=objective_of(model),
        device=device,
        clip_skip=clip.layer_idx,
    )
    if set(family.text_encoders) <= set(names):
        for embedding in embeddings_of(clip):
            add_token(parts, embedding.token, embedding.rows)
    return parts


# (facts for Family.build, patcher, its weights by host key, twin key -> host key)
HostSide = tuple[dict[str, Any], Any, dict[str, Tensor], Callable[[str], str]]


def host_side(model: Any, clip: Any, name: str) -> HostSide:
    """What the host has of one module; see HostSide."""
    if name == DENOISER:
        facts = model.model.model_config.unet_config
        to_host = comfy.utils.unet_to_diffusers(facts)
        return (
            dict(facts),
            model,
            dict(model.model.named_parameters()),
            lambda key: f"diffusion_model.{to_host[key]}",
        )
    prefix = f"{name}.transformer."
    weights = dict(clip.cond_stage_model.named_parameters())
    # transformers 4 has "text_model." in its keys, as the host; transformers 5 dropped it.
    inner = f"{prefix}text_model."
    return {}, clip.patcher, weights, lambda key: inner + key.removeprefix("text_model.")


def _state(
    twin: nn.Module,
    host_key: Callable[[str], str],
    patcher: Any,
    weights: dict[str, Tensor],
    place: tuple[torch.dtype, torch.device, torch.dtype | None],
) -> dict[str, Tensor]:
    """The twin's state dict: each tensor on the host's own storage wherever that is possible.

    Args:
        place: what it computes in, its device, and what a private copy is held in, if one is made.
    """
    computes_in, device, private = place
    state = {}
    for key in twin.state_dict():
        name = host_key(key)
        weight = alias(weights[name])
        if name in patcher.patches:
            # float32 as the host does, and always a copy: patching works in place.
            weight = weight.to(device, torch.float32, copy=True)
            weight = comfy.lora.calculate_weight(patcher.patches[name], weight, name)
            # The host rounds a patched weight to its own dtype before it computes with it.
            weight = weight.to(weights[name].dtype)
        as_it_is = computes_in == torch.float32 and weight.dtype in NARROW
        dtype = private or (weight.dtype if as_it_is else computes_in)
        state[key] = weight.to(device, dtype, copy=private is not None)
    return state


def alias(tensor: Tensor) -> Tensor:
    """A normal tensor (autograd accepts it) on the storage of an inference tensor. No copy."""
    with torch.inference_mode(False):
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )


def objective_of(model: Any) -> Diffusion:
    """What `model` predicts and its noise schedule, as sampling nodes before us may have set it.

    Raises:
        UnsupportedModelError: it predicts neither noise nor velocity.
    """
    sampling = model.get_model_object("model_sampling")
    # The direct bases say it: a schedule and a prediction; other predictions inherit from these.
    bases = type(sampling).__bases__
    prediction = next((_PREDICTION_OF[base] for base in bases if base in _PREDICTION_OF), None)
    if prediction is None or not hasattr(sampling, "sigmas"):
        raise UnsupportedModelError(
            f"Input 'model' samples as {type(sampling).__name__}, which cannot be trained here.\n"
            "Supported: epsilon and v prediction. Remove the sampling node before the trainer."
        )
    sigmas = alias(sampling.sigmas).double().cpu()
    return Diffusion(prediction, (1 / (1 + sigmas**2)).float())


def tokenizer_of(clip: Any, family: Family) -> Callable[[str, Mapping[str, LearnedIds]], Tokens]:
    """The host's tokenizer for one prompt window of each text encoder.

    Captions are taken literally: parentheses are text, not weights. What does not fit into the
    window is cut off, with a warning that quotes it, once a caption.
    """
    warned: set[str] = set()

    def tokenize(caption: str, learned: Mapping[str, LearnedIds]) -> Tokens:
        by_encoder = speaking_ids(clip, learned).tokenize(caption, disable_weights=True)
        tokens = {}
        for name in family.text_encoders:
            windows = by_encoder[name.removeprefix("clip_")]
            if len(windows) > 1 and caption not in warned:
                warned.add(caption)
                _warn_of_cut(caption, windows, getattr(clip.tokenizer, name))
            tokens[name] = torch.tensor([_id(token, caption) for token, *_ in windows[0]])
        return tokens

    return tokenize


def _id(token: Any, caption: str) -> int:
    if isinstance(token, Tensor) and token.numel() > 1:
        raise DatasetError(
            f"The caption '{caption}' names an embedding's file, which training does not read.\n"
            "Write the words themselves, or wire in a clip that knows the token (Train Textual "
            "Inversion, Apply Embedding) and write the token."
        )
    return int(token)


def _warn_of_cut(caption: str, windows: list[list[tuple[int, float]]], tokenizer: Any) -> None:
    special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}
    rest = [int(token) for window in windows[1:] for token, *_ in window]
    # A learned token has no text in the vocabulary.
    words = [token for token in rest if token not in special and token in tokenizer.inv_vocab]
    lost = tokenizer.tokenizer.decode(words).strip()
    log.warning(
        "Personalize: a caption has more than %d tokens; the rest is cut off: '%s' (caption: '%s')",
        len(windows[0]), lost, caption,
    )  # fmt: skip
