"""What trains a caption: the text itself, or several that are drawn from it.

    several lines              one of them, at random          (kohya's enable_wildcard)
    {a|b}                      one of them, at random          (the same; {{ and }} are braces)
    caption_prefix             in front of everything, such as a trigger word
    shuffle_caption            the tags, which commas divide, in another order
    keep_tokens                so many tags in front stay where they are, and are never left out
    caption_tag_dropout_rate   the share of the other tags that is left out

Without enable_wildcard the lines are joined.

Frozen text encoders encode every text once, before training, so there are `caption_variants` of
each caption and not a new one for each sample. Draws depend on the seed and the caption alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch

from ..settings.objective import ObjectiveConfig
from .noise import generator_for

COMMA = ", "
LINE_END = "\n"
WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]*\|[^{}]*)\}")
Choose = Callable[[Sequence[str]], str]


def caption_prompts(
    captions: Iterable[str], settings: ObjectiveConfig, seed: int
) -> dict[str, tuple[str, ...]]:
    """For each caption the texts that train it; the last is the one that is looked at."""
    return {caption: _variants(caption, settings, seed) for caption in dict.fromkeys(captions)}


def _variants(caption: str, settings: ObjectiveConfig, seed: int) -> tuple[str, ...]:
    choices = []

    def first(options: Sequence[str]) -> str:
        choices.append(options)
        return options[0]

    plain = _told(_line(caption, settings, first), settings)
    if not (settings.shuffle_caption or settings.caption_tag_dropout_rate or choices):
        return (plain,)
    generator = generator_for(seed, "caption", caption)
    drawn = (_drawn(caption, settings, generator) for _ in range(settings.caption_variants - 1))
    return (*drawn, plain)


def _line(caption: str, settings: ObjectiveConfig, choose: Choose) -> str:
    """A caption as one line, its wildcards chosen; `choose` is asked only where it can."""
    if not settings.enable_wildcard:
        return caption.replace(LINE_END, " ")

    def put(found: re.Match[str]) -> str:
        braces, options = found[0], found[1]
        return braces[0] if options is None else choose(options.split("|")).strip()

    lines = caption.split(LINE_END)
    return WILDCARD.sub(put, choose(lines) if len(lines) > 1 else caption)


def _drawn(caption: str, settings: ObjectiveConfig, generator: torch.Generator) -> str:
    def choose(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=generator))]

    line = _line(caption, settings, choose)
    tags = [tag for tag in map(str.strip, line.split(",")) if tag]
    kept, others = tags[: settings.keep_tokens], tags[settings.keep_tokens :]
    if settings.shuffle_caption:
        others = [others[place] for place in torch.randperm(len(others), generator=generator)]
    if settings.caption_tag_dropout_rate:
        stay = torch.rand(len(others), generator=generator) >= settings.caption_tag_dropout_rate
        others = [tag for tag, stays in zip(others, stay.tolist(), strict=True) if stays]
    return _told(COMMA.join([*kept, *others]), settings)


def _told(caption: str, settings: ObjectiveConfig) -> str:
    return f"{settings.caption_prefix.strip()} {caption}".strip()
