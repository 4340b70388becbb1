"""What trains a caption: the text itself, or several that are drawn from it.

    {a|b}                      one of them, at random          (kohya's enable_wildcard)
    caption_prefix             in front of everything, such as a trigger word
    shuffle_caption            the tags, which commas divide, in another order
    keep_tokens                so many tags in front stay where they are, and are never left out
    caption_tag_dropout_rate   the share of the other tags that is left out

Frozen text encoders encode every text once, before training, so there are `caption_variants` of
each caption and not a new one for each sample. Draws depend on the seed and the caption alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from ..settings.objective import ObjectiveConfig
from .noise import generator_for

COMMA = ", "
WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def caption_prompts(
    captions: Iterable[str], settings: ObjectiveConfig, seed: int
) -> dict[str, tuple[str, ...]]:
    """For each caption the texts that train it; the last is the one that is looked at."""
    return {caption: _variants(caption, settings, seed) for caption in dict.fromkeys(captions)}


def _variants(caption: str, settings: ObjectiveConfig, seed: int) -> tuple[str, ...]:
    plain = _told(WILDCARD.sub(_first, caption) if settings.enable_wildcard else caption, settings)
    has_wildcard = settings.enable_wildcard and WILDCARD.search(caption)
    if not (settings.shuffle_caption or settings.caption_tag_dropout_rate or has_wildcard):
        return (plain,)
    generator = generator_for(seed, "caption", caption)
    drawn = (_drawn(caption, settings, generator) for _ in range(settings.caption_variants - 1))
    return (*drawn, plain)


def _first(found: re.Match[str]) -> str:
    return found[1].split("|")[0].strip()


def _drawn(caption: str, settings: ObjectiveConfig, generator: torch.Generator) -> str:
    def choose(found: re.Match[str]) -> str:
        options = found[1].split("|")
        return options[int(torch.randint(len(options), (), generator=generator))].strip()

    if settings.enable_wildcard:
        caption = WILDCARD.sub(choose, caption)
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    kept, others = tags[: settings.keep_tokens], tags[settings.keep_tokens :]
    if settings.shuffle_caption:
        others = [others[place] for place in torch.randperm(len(others), generator=generator)]
    if settings.caption_tag_dropout_rate:
        stay = torch.rand(len(others), generator=generator) >= settings.caption_tag_dropout_rate
        others = [tag for tag, stays in zip(others, stay.tolist(), strict=True) if stays]
    return _told(COMMA.join([*kept, *others]), settings)


def _told(caption: str, settings: ObjectiveConfig) -> str:
    return f"{settings.caption_prefix.strip()} {caption}".strip()
