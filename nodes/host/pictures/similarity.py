"""CLIP-I, CLIP-T and DINO through the host's own models of models/clip_vision and text encoders.

A picture becomes numbers as in the host's CLIP Vision Encode. A prompt is embedded by the text
encoder's own projection, which is what makes the two halves of a CLIP comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.utils
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor, nn

from ....trainers.data.dataset import Dataset
from ....trainers.errors import SettingsError, UnsupportedModelError
from ....trainers.runs.pictures.similarity import (
    CLIP_I,
    DINO,
    Metric,
    Report,
    picture_metric,
    subject_alone,
    text_metric,
)
from ....trainers.settings.preview import SimilarityConfig
from ..memory import check_interrupt
from ..models.tokenizer import encoder_names, literal, token_key
from ..status import running_node, show_text

CLIP_KIND, DINO_KIND = "clip_vision_model", "dino"  # how the host's own names begin
PROJECTION = "text_projection"
WHOLE_CLIP = (
    "Load the text half of the same CLIP with Load CLIP, from a file that has its text_projection: "
    "the whole model, such as openai/clip-vit-large-patch14 for CLIP ViT-L/14."
)


@dataclass(frozen=True)
class Judges:
    """What measures: CLIP_VISION and CLIP sockets; None where nothing is wired."""

    clip_vision: Any = None
    dino: Any = None
    clip: Any = None


@dataclass(frozen=True)
class Samples:
    """What is measured: (M, H, W, C) in 0..1, and masks (1 or M, H, W), 1 on the subject."""

    images: Tensor
    masks: Tensor | None = None


def similarity(
    dataset: Dataset, samples: Samples, judges: Judges, config: SimilarityConfig
) -> Report:
    """What each model that is wired says of the samples beside the dataset's pictures.

    Raises:
        SettingsError: prompts, labels, rows or masks do not fit the images.
        UnsupportedModelError: a model cannot measure what it is wired for.
        DatasetError: a picture of the dataset is gone or was damaged.
    """
    rows = config.rows(len(samples.images))
    labels = config.labels(len(rows))
    prompts = _checked(dataset, samples, judges, config)
    judging = [
        (name, judge)
        for name, judge in ((CLIP_I, judges.clip_vision), (DINO, judges.dino))
        if judge is not None
    ]
    metrics: list[Metric] = []
    bar = comfy.utils.ProgressBar(len(judging) * (len(dataset) + len(samples.images)))
    for name, judge in judging:
        real, made = (
            torch.cat([_embedded(judge, name, one, whole, config, bar) for one, whole in pictures])
            for pictures in (_real(dataset, config), _made(samples))
        )
        metrics.append(picture_metric(name, real, made))
        if name == CLIP_I and prompts:
            metrics.append(text_metric(_texts(judges.clip, made.shape[1], prompts), made))
    report = Report(tuple(metrics), labels, rows)
    show_text(report.best_line(), running_node())
    return report


def numbers(report: Report, names: Sequence[str]) -> Iterator[Any]:
    """The mean of each measure for an output; what was not measured stops what is wired to it."""
    for name in names:
        mean = report.mean(name)
        missing = f"{name} was not measured: wire what it needs into Subject Similarity."
        yield ExecutionBlocker(missing) if mean is None else mean


def _checked(
    dataset: Dataset, samples: Samples, judges: Judges, config: SimilarityConfig
) -> list[str]:
    """The prompt of each sample, none where CLIP-T is not asked for."""
    problems = []
    if judges.clip_vision is None and judges.dino is None:
        problems.append("neither clip_vision nor dino is wired; allowed: one of them, or both")
    if judges.clip is not None and judges.clip_vision is None:
        problems.append("clip is wired but not clip_vision; allowed: both halves of one CLIP")
    if judges.clip is not None and not config.lines:
        problems.append("clip is wired but prompts is empty; allowed: one prompt a line")
    if config.dataset_masks and not any(picture.has_mask for picture in dataset.pictures):
        problems.append(
            "dataset_masks is on but no picture of the dataset has a mask; allowed: masks that "
            "Training Images takes (its setting masks), or dataset_masks off"
        )
    if samples.masks is not None:
        problems += _mask_problems(samples.images, samples.masks)
    if problems:
        raise SettingsError(tuple(problems))
    _check_kinds(judges)
    return config.prompts_of(len(samples.images)) if judges.clip is not None else []


def _mask_problems(images: Tensor, masks: Tensor) -> Iterator[str]:
    count, size = len(images), tuple(images.shape[1:3])
    if len(masks) not in (1, count) or tuple(masks.shape[1:3]) != size:
        given = " x ".join(map(str, masks.shape))
        yield f"masks is {given}; allowed: one or {count} of {size[0]} x {size[1]}, as images"
    elif black := [n for n, mask in enumerate(masks, start=1) if not bool(mask.max() > 0)]:
        yield f"masks has no subject in no. {', '.join(map(str, black[:6]))}; allowed: some white"


def _check_kinds(judges: Judges) -> None:
    kind = getattr(judges.clip_vision, "model_type", CLIP_KIND)
    if kind != CLIP_KIND or getattr(judges.clip_vision, "config", {}).get("projector_type"):
        raise UnsupportedModelError(
            f"clip_vision is a '{kind}' without the projection of a CLIP; allowed: CLIP ViT-L/14, "
            "ViT-H/14 and ViT-bigG/14.\nLoad one of those with Load CLIP Vision; a DINO goes into "
            "dino."
        )
    kind = getattr(judges.dino, "model_type", DINO_KIND)
    if not kind.startswith(DINO_KIND):
        raise UnsupportedModelError(
            f"dino is a '{kind}'; allowed: DINOv2 and DINOv3 as Load CLIP Vision reads them.\n"
            "Load one of those; a CLIP goes into clip_vision."
        )


# -- pictures -----------------------------------------------------------------

Picture = tuple[Tensor, bool]  # (H, W, 3), and whether it is cut as the config says


def _real(dataset: Dataset, config: SimilarityConfig) -> Iterator[Picture]:
    for place in range(len(dataset)):
        mask = dataset.mask(place) if config.dataset_masks else None
        yield _shown(dataset.pixels(place), mask)


def _made(samples: Samples) -> Iterator[Picture]:
    for place, image in enumerate(samples.images[..., :3]):
        masks = samples.masks
        yield _shown(image, None if masks is None else masks[place % len(masks)])


def _shown(pixels: Tensor, mask: Tensor | None) -> Picture:
    return (pixels, True) if mask is None else (subject_alone(pixels, mask.to(pixels)), False)


def _embedded(
    judge: Any, name: str, pixels: Tensor, may_crop: bool, config: SimilarityConfig, bar: Any
) -> Tensor:
    """What a model makes of a picture, fp32 (1, D) on the CPU."""
    check_interrupt()
    crop = may_crop and config.crop == "center"
    with torch.inference_mode():
        found: Tensor = judge.encode_image(pixels[None], crop=crop)["image_embeds"]
    bar.update(1)
    return _sound(found.float().cpu(), f"the {name} model")


def _sound(embeddings: Tensor, whose: str) -> Tensor:
    """Embeddings (B, D) that can be compared."""
    is_one_each = embeddings.ndim == 2
    if is_one_each and torch.isfinite(embeddings).all() and embeddings.norm(dim=-1).min() > 0:
        return embeddings
    raise UnsupportedModelError(
        f"{whose} gives no embedding that can be compared, as files without the projection, or "
        "damaged ones, do; allowed: one vector a picture or prompt, not zero.\nLoad a whole file "
        "of such a model."
    )


# -- prompts ------------------------------------------------------------------


def _texts(clip: Any, width: int, prompts: Sequence[str]) -> Tensor:
    """The projected embedding of each prompt, fp32 (M, D) on the CPU.

    Args:
        width: D, of the pictures' embeddings.
    """
    name, module = _text_half(clip, width)
    reader = literal(clip)
    known: dict[str, Tensor] = {}
    for prompt in dict.fromkeys(prompts):
        check_interrupt()
        known[prompt] = _sound(_text(reader, name, module, prompt), "the text encoder")
    return torch.cat([known[prompt] for prompt in prompts])


def _text(clip: Any, name: str, module: Any, prompt: str) -> Tensor:
    """Of a prompt longer than a window, the first window: a CLIP sees no more of a text."""
    tokens = clip.tokenize(prompt)
    with torch.inference_mode():
        clip.cond_stage_model.reset_clip_options()
        clip.load_model(tokens)
        options = {"projected_pooled": True, "execution_device": clip.patcher.load_device}
        clip.cond_stage_model.set_clip_options(options)
        try:
            pooled: Tensor = module.encode_token_weights(tokens[token_key(name)][:1])[1]
        finally:
            clip.cond_stage_model.reset_clip_options()
    return pooled.float().cpu()


def _text_half(clip: Any, width: int) -> tuple[str, nn.Module]:
    """The text encoder of `clip` whose embeddings are as wide as the pictures', by its name.

    Raises:
        UnsupportedModelError: there is none, or its projection is not the one of its CLIP.
    """
    modules = {name: getattr(clip.cond_stage_model, name) for name in encoder_names(clip)}
    fitting = [(name, m) for name, m in modules.items() if _projected_width(m) == width]
    if not fitting:
        raise UnsupportedModelError(
            f"clip has {', '.join(modules) or 'no text encoder'}, none of which embeds texts in "
            f"{width} numbers, as clip_vision embeds pictures; allowed: clip_l with ViT-L/14 "
            f"(768), clip_h with ViT-H/14 (1024), clip_g with ViT-bigG/14 (1280).\n{WHOLE_CLIP}"
        )
    if clip.patcher.patches:
        raise UnsupportedModelError(
            "clip carries a LoRA or trained weights, which measure by another rule than the CLIP "
            "of clip_vision.\nWire clip of the loader itself."
        )
    if not any((width, width) in _projections(file) for file in _files(clip)):
        raise UnsupportedModelError(
            f"The file of clip holds no text_projection of {width} x {width}: SD 1.5 checkpoints "
            f"and files of clip_l alone leave it out, and ComfyUI has no values for it.\n"
            f"{WHOLE_CLIP}"
        )
    return fitting[0]


def _projected_width(module: Any) -> int | None:
    projection = getattr(getattr(module, "transformer", None), PROJECTION, None)
    return getattr(projection, "out_features", None)


def _files(clip: Any) -> list[Path]:
    """The files that the host made `clip` from; it notes them to load them again."""
    noted: tuple[Callable[..., Any], tuple[Any, ...]] | None
    noted = getattr(clip.patcher, "cached_patcher_init", None)
    if noted is None:
        raise UnsupportedModelError(
            "Which file clip comes from is not known, so neither is whether it holds the "
            f"text_projection.\n{WHOLE_CLIP}"
        )
    given = noted[1][0]
    return [Path(file) for file in ([given] if isinstance(given, str) else given)]


def _projections(file: Path) -> set[tuple[int, ...]]:
    """The shapes of all text projections in a file."""
    weights = comfy.utils.load_torch_file(str(file), safe_load=True)  # mapped, not read
    endings = (PROJECTION, f"{PROJECTION}.weight")
    return {tuple(tensor.shape) for key, tensor in weights.items() if key.endswith(endings)}
