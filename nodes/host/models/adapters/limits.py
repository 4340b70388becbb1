"""A LoRA limited to blocks of the denoiser and to a part of sampling, by the host's own means.

The host's loader says which weight gets which patch. Those of one block weight go on together: as
patches at that part of the strength, or as a weight hook of the host with keyframes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.hooks

from .....trainers.methods.adapters.blocks import BASE, Blocks
from ..twin import HOST_DENOISER

Patches = dict[tuple[Any, ...], Any]  # by (key, offset, function), as the host's patchers take them


class Portion(NamedTuple):
    """What of a LoRA has one block weight.

    Attributes:
        weight: what strengths are multiplied by.
        of_model: patches of the denoiser.
        of_clip: patches of the text encoders.
    """

    weight: float
    of_model: Patches
    of_clip: Patches


def blocks_of(model: Any) -> Blocks:
    """The blocks of a MODEL's denoiser."""
    return Blocks(name for name, _ in model.model.diffusion_model.named_parameters())


def portions(
    before: tuple[Any, Any],
    patched: tuple[Any, Any],
    weights: Mapping[str, float],
    blocks: Blocks,
) -> list[Portion]:
    """What the host's loader added to MODEL and CLIP, by block weight; nothing of those that are 0.

    Args:
        before, patched: MODEL and CLIP without and with the LoRA; None stays out.
        weights: of BASE and each block.
    """
    found: dict[float, Portion] = {}

    def portion(block: str) -> Portion:
        weight = weights[block]
        return found.setdefault(weight, Portion(weight, {}, {}))

    for place, patch in _added(before[0], patched[0]).items():
        block = blocks.of(place[0].removeprefix(HOST_DENOISER))
        portion(block).of_model[place] = patch
    portion(BASE).of_clip.update(_added(before[1], patched[1]))
    return [one for weight, one in found.items() if weight]


def _added(before: Any, patched: Any) -> Patches:
    """The patches that a MODEL or CLIP has more, without their strength."""
    if before is None:
        return {}
    was, now = (getattr(one, "patcher", one).patches for one in (before, patched))
    return {
        (key, offset, function): patch
        for key, found in now.items()
        for _, patch, _, offset, function in found[len(was.get(key, ())) :]
    }


def with_portions(
    model: Any, clip: Any, parts: Sequence[Portion], strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """(MODEL, CLIP) with what of a LoRA is left, each part at its weight; None stays None."""
    model, clip = (None if one is None else one.clone() for one in (model, clip))
    for part in parts:
        if model is not None:
            model.add_patches(part.of_model, strength_model * part.weight)
        if clip is not None:
            clip.add_patches(part.of_clip, strength_clip * part.weight)
    return model, clip


def hooks_of(
    parts: Sequence[Portion], strengths: tuple[float, float], start: float, end: float
) -> Any:
    """The host's hooks that have a LoRA's parts in force from `start` to `end` of sampling.

    Args:
        strengths: of the denoiser's part and of the text encoders'.
        start, end: 0 is the first step, 1 the end.
    """
    group = comfy.hooks.HookGroup()
    for part in parts:
        hook = comfy.hooks.WeightHook(*(strength * part.weight for strength in strengths))
        hook.weights, hook.weights_clip = part.of_model, part.of_clip
        hook.need_weight_init = False  # they are named as the model's weights are
        group.add(hook)
    before = [(0.0, 0.0)] if start > 0 else []
    behind = [(0.0, end)] if end < 1 else []
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, percent in (*before, (1.0, start), *behind):
        frames.add(comfy.hooks.HookKeyframe(strength, percent))
    group.set_keyframes_on_hooks(frames)
    return group


def with_hooks(clip: Any, hooks: Any) -> Any:
    """A clone of `clip` as the host's Set CLIP Hooks makes it, beside the hooks that it has.

    What is encoded with it carries the hooks. The text encoders have them at full strength.
    """
    clip = clip.clone(disable_dynamic=True)  # as the host's own: hooks need weights to swap
    on_clip = hooks.clone()
    on_clip.set_keyframes_on_hooks(None)
    clip.apply_hooks_to_conds = _combined(clip.apply_hooks_to_conds, hooks)
    clip.patcher.forced_hooks = _combined(clip.patcher.forced_hooks, on_clip)
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Clip)
    clip.patcher.register_all_hook_patches(clip.patcher.forced_hooks, target)
    return clip


def _combined(first: Any, second: Any) -> Any:
    return second if first is None else first.clone_and_combine(second)
