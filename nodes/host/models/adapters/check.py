"""Whether a LoRA's file does in the host what the LoRA does that was written into it.

The host's own loader reads the file. It has to find a place for each tensor, and what the model
then predicts has to be what it predicts with the LoRA itself: for small latents, at one noise level
in the middle, and for one prompt. The models are asked without the LoRA last, so that they stay
with their own weights.

What the file's dtype takes away is known: of each tensor the relative norm of what was rounded. By
a few times the largest of them, a prediction may differ, relative to what the LoRA changes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from .....trainers.errors import SaveError
from .....trainers.methods.adapters.layers import shortened
from .....trainers.runs.foreign import TEXT
from ...sampling import conditioning
from ..weights import BUNDLED, apply_lora, unread_keys

PROMPT, SEED, SIDE, TOKENS = "a photo", 0, 8, 77
# So many times the largest rounding. Measured on small and full-size SD 1.5: fp32 0, fp16 and bf16
# less than 0.1, DoRA up to 3.5; what fp16 text encoders round by themselves comes on top.
ROUNDINGS = 8
ALIKE = 1e-5  # of the largest number: what sums in another order come to in fp32
# A rounding of these changes the base's own weights with it.
SCALES_WEIGHTS = (".dora_scale", ".set_weight")


def check_lora(
    path: Path, lora: Mapping[str, Tensor], spelled: Mapping[str, Tensor], model: Any, clip: Any
) -> None:
    """See that the host reads a LoRA's file whole, and that it does what the LoRA does.

    Args:
        lora: as it is in the graph.
        spelled: as it is in the file, before it was rounded to the file's dtype.
        model: a MODEL; None leaves all out.
        clip: a CLIP; None leaves the text encoders out.

    Raises:
        SaveError: the host does not read it whole, or something else comes of it.
    """
    if model is None:
        return
    read = _read(path, model, clip)
    rounding = max((_lost(spelled[key], read[key]) for key in spelled), default=0.0)
    whole = any(key.endswith(SCALES_WEIGHTS) for key in lora)
    alone = {key: value for key, value in lora.items() if _is_for(key, clip)}
    live = apply_lora(model, clip, alone, 1.0, 1.0)
    from_file = apply_lora(
        model, clip, {key: value for key, value in read.items() if _is_for(key, clip)}, 1.0, 1.0
    )
    told = _told(model, clip)
    asked = []
    if told is not None:
        models = [live[0], from_file[0], model]
        predictions = [[_prediction(one, told)] for one in models]
        asked.append(("predicts", predictions, _dtype(model.model)))
    if clip is not None and any(TEXT.match(key) for key in lora):
        texts = [_encoding(one) for one in (live[1], from_file[1], clip)]
        asked.append(("encodes a prompt", texts, _dtype(clip.cond_stage_model)))
    for what, (wanted, got, base), held in asked:
        _check_alike(path, what, wanted, got, base, rounding, whole, held)


def _read(path: Path, model: Any, clip: Any) -> dict[str, Tensor]:
    """The tensors of a file, of which the host's loader has a place for each."""
    # Copies: Windows deletes no file that is mapped, and this one may have to go.
    loaded = comfy.utils.load_torch_file(str(path), safe_load=True)
    read = {key: tensor.clone() for key, tensor in loaded.items()}
    del loaded
    try:
        unread = unread_keys(model, clip, read)
    except KeyError as error:  # half of a pair is what the loader does not expect
        raise SaveError(
            f"'{path.name}' was not saved: ComfyUI's loader misses {error.args[0]} in it.\n"
            "Use a LoRA that is whole."
        ) from error
    if unread:
        raise SaveError(
            f"'{path.name}' was not saved: ComfyUI's loader has no place in this model for "
            f"{len(unread)} of its {len(read)} tensors: {shortened(unread)}.\n"
            "Wire in the model and clip that it was made for, or none."
        )
    return read


def _is_for(key: str, clip: Any) -> bool:
    """Whether the host's loader has to do with a key: it would log others as not loaded."""
    return not key.startswith(BUNDLED) and (clip is not None or not TEXT.match(key))


def _lost(wide: Tensor, narrow: Tensor) -> float:
    norm = wide.float().norm()
    return float((wide.float().cpu() - narrow.float()).norm() / norm.cpu()) if norm else 0.0


def _dtype(module: Any) -> torch.dtype:
    dtypes = {parameter.dtype for parameter in module.parameters()}
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    return max(floating, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def _told(model: Any, clip: Any) -> Any:
    """A CONDITIONING: of a prompt, or numbers of that shape; None where nobody knows it."""
    if clip is not None:
        return conditioning(clip, PROMPT)
    config = model.model.model_config.unet_config
    width, pooled = config.get("context_dim"), config.get("adm_in_channels") or 0
    if not isinstance(width, int):
        return None
    noise = torch.Generator().manual_seed(SEED)
    return [[
        torch.randn(1, TOKENS, width, generator=noise),
        {"pooled_output": torch.zeros(1, min(pooled, 1280))},
    ]]  # fmt: skip


def _prediction(model: Any, told: Any) -> Tensor:
    """Denoised small latents, (1, C, 8, 8) or as the model has them, by one call of the host's."""
    latents = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, SIDE, SIDE))
    noise = comfy.sample.prepare_noise(latents, SEED)
    middle = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    denoised: Tensor = comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.sampler_object("euler"),
        torch.tensor([float(middle), 0.0]), told, told, latents, disable_pbar=True, seed=SEED,
    )  # fmt: skip
    return denoised.float().cpu()


def _encoding(clip: Any) -> list[Tensor]:
    """What a prompt becomes: hidden states, and where there is one, the pooled output."""
    (hidden, facts), *_ = conditioning(clip, PROMPT)
    pooled = facts.get("pooled_output")
    return [one.float().cpu() for one in (hidden, pooled) if one is not None]


def _check_alike(
    path: Path, what: str, wanted: Sequence[Tensor], got: Sequence[Tensor], base: Sequence[Tensor],
    rounding: float, whole: bool, held: torch.dtype,
) -> None:  # fmt: skip
    for ours, theirs, without in zip(wanted, got, base, strict=True):
        size, effect = ours.abs().max(), (ours - without).abs().max()
        least = max(ALIKE, torch.finfo(held).eps)
        allowed = ROUNDINGS * rounding * (size if whole else effect) + least * size
        found = (ours - theirs).abs().max()
        if not found <= allowed:  # nor a NaN
            raise SaveError(
                f"'{path.name}' was not saved: with it, ComfyUI {what} otherwise than with the "
                f"LoRA in the graph, by {found / size:.2g} of the largest number; its dtype "
                f"explains {allowed / size:.2g}.\nSave it as fp32, in the other spelling."
            )
