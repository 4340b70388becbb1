"""The host's model around a twin: what its own sampler would ask of the module.

Conditions are made by the host for each sample by itself, with the shape of that sample's latents
and the size of its picture, and joined as its sampler joins them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ....trainers.contracts import REFERENCES, Size, Text
from ....trainers.optimizers.processes import joined as joined_processes
from .objective import module_timesteps

Conditions = dict[str, Any]  # objects of comfy.conds by argument of the module


class AsGiven:
    """A model_sampling that hands noise and prediction on; the rest is the host's."""

    def __init__(self, sampling: Any) -> None:
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def calculate_input(self, timesteps: Tensor, noisy: Tensor) -> Tensor:
        return noisy

    def timestep(self, timesteps: Tensor) -> Tensor:
        return module_timesteps(self._sampling, timesteps)

    def calculate_denoised(self, timesteps: Tensor, predicted: Tensor, noisy: Tensor) -> Tensor:
        return predicted


class HostDenoiser:
    """A trainers.contracts.Predict for a twin of a MODEL's module.

    Args:
        computes_in: what the module is to get its input in.
        guidance: what a module that was distilled to know it is told; None: what the host says.
    """

    def __init__(
        self, model: Any, twin: nn.Module, computes_in: torch.dtype, guidance: float | None = None
    ) -> None:
        base = model.model
        sampling = model.get_model_object("model_sampling")
        around = copy.copy(base)
        vars(around).update(_modules=dict(base._modules))
        around.diffusion_model = twin
        del around.model_sampling
        around.model_sampling = AsGiven(sampling)
        around.manual_cast_dtype, around.current_patcher = computes_in, None
        self._model = around
        self._told = {} if guidance is None else {"guidance": guidance}

    def __call__(
        self, noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        conditions = [
            self._conditions(noisy[place, None], text, size)
            for place, (text, size) in enumerate(zip(texts, sizes, strict=True))
        ]
        groups = together(conditions)
        predicted: list[tuple[list[int], Tensor]] = []
        for group in [*groups, *_in_vain(groups)]:
            told = joined([conditions[place] for place in group])
            options = {
                "optimized_attention_override": plain_attention,
                "cond_or_uncond": [0] * len(group),
            }
            self._forget()  # what previews left
            output = self._model.apply_model(
                noisy[group], timesteps[group], transformer_options=options, **told
            )
            self._forget()
            predicted.append((group, output))
        made = {
            place: row
            for group, output in predicted[: len(groups)]
            for place, row in zip(group, output, strict=True)
        }
        rows = torch.stack([made[place] for place in range(len(noisy))])
        for _, output in predicted[len(groups) :]:
            rows = rows + 0 * output.sum()  # its backward pass too
        return rows

    def _forget(self) -> None:
        """A module that keeps what it made of a prompt would reuse it with other weights."""
        forget = getattr(self._model.diffusion_model, "clear_kv_cache", None)
        if forget is not None:
            forget()

    def _conditions(self, noisy: Tensor, text: Text, size: Size) -> Conditions:
        # A clip that pools nothing says so, and older hosts ask.
        told: dict[str, Any] = {"pooled_output": None, **self._told, **text}
        if REFERENCES in told:
            told[REFERENCES] = [latents.to(noisy.device) for latents in told[REFERENCES]]
        facts = {**told, **size_facts(size), "model_conds": {}}
        (made,) = comfy.samplers.encode_model_conds(
            self._model.extra_conds, [facts], noisy, noisy.device, "positive"
        )
        conditions: Conditions = made["model_conds"]
        return {k: c.process_cond(batch_size=1, area=None) for k, c in conditions.items()}


def _in_vain(groups: list[list[int]]) -> list[list[int]]:
    """Passes that this process does because another one that puts the blocks together has more."""
    processes = joined_processes()
    return groups[:1] * (processes.most(len(groups)) - len(groups)) if processes.shard else []


def size_facts(size: Size) -> dict[str, int]:
    """What the host's conditioning says of a picture's size (as CLIPTextEncodeSDXL)."""
    return {
        "width": size.width_px,
        "height": size.height_px,
        "crop_w": size.crop_left_px,
        "crop_h": size.crop_top_px,
        "target_width": size.bucket_width_px,
        "target_height": size.bucket_height_px,
    }


def together(conditions: Sequence[Conditions]) -> list[list[int]]:
    """Places of samples whose conditions can share a batch."""
    groups: list[list[int]] = []
    for place, one in enumerate(conditions):
        for group in groups:
            first = conditions[group[0]]
            if one.keys() == first.keys() and all(first[k].can_concat(one[k]) for k in one):
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def joined(conditions: Sequence[Conditions]) -> Mapping[str, Any]:
    """The arguments of the module for several samples at once."""
    first, *others = conditions
    return {k: cond.concat([other[k] for other in others]) for k, cond in first.items()}


def plain_attention(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own attention in the place of the user's choice, which may have no backward pass."""
    attended: Tensor = attention_pytorch(*args, **kwargs)
    return attended
