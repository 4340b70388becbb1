"""What a LoRA keeps of each layer as a picture: the rank that was taken, the residual that is lost.

Layers stand side by side in the order of the model, several hundred of them, so they are named by
the parts of the model that they lie in, where there is room for the name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...methods.adapters.low_rank import Kept, total_residual
from .plot import DESIGN_PX, FONT_PX, LOOKS, TICK_PX, Look, blank_figure, picture_of, style_axes

LEFT, RIGHT, BELOW, ABOVE, BETWEEN = 0.088, 0.02, 0.075, 0.1, 0.055  # of the picture
LETTER_PX = 0.6 * TICK_PX
NUM_TICKS = 5
# After what all layers of a denoiser or a text encoder begin with, two words: "down_blocks",
# "mid_block", "text_model", "double_blocks".
PART = re.compile(
    r"(?:lora_unet_|lora_te\d?_|diffusion_model\.|text_encoders\.)?([a-zA-Z]+(?:[._][a-zA-Z]+)?)"
)
FLAT_PERCENT = 0.1  # of a layer; below it, the axis says that next to nothing is lost


class Part(NamedTuple):
    """Layers in a row whose names begin alike.

    Attributes:
        first, end: places among the layers, from `first` up to `end`.
    """

    name: str
    first: int
    end: int


def draw_layers(
    layers: Sequence[Kept],
    width_px: int = DESIGN_PX[0],
    height_px: int = DESIGN_PX[1],
    theme: str = "dark",
) -> Image.Image:
    """An RGB picture: the rank of each layer above, the share of its change that is lost below.

    Weights that no LoRA can hold count in the total of the title and have no place of their own.

    Args:
        layers: in the order of the model.
        theme: one of LOOKS.
    """
    look, inside = LOOKS[theme], [layer for layer in layers if layer.rank]
    figure = blank_figure(width_px, height_px, look)
    height = (1 - BELOW - ABOVE - BETWEEN) / 2
    parts = parts_of([layer.name for layer in inside])
    lower, upper = (
        figure.add_axes((LEFT, bottom, 1 - LEFT - RIGHT, height), facecolor=look.panel)
        for bottom in (BELOW, BELOW + height + BETWEEN)
    )
    ranks = [layer.rank for layer in inside]
    lost = [100 * layer.residual for layer in inside]
    _draw_steps(upper, ranks, parts, "rank", look.smooth, look)
    _draw_steps(lower, lost, parts, "lost, % of the layer", look.validation, look)
    upper.locator_params("y", nbins=NUM_TICKS, integer=True)
    lower.locator_params("y", nbins=NUM_TICKS)
    lower.set_ylim(0, max(FLAT_PERCENT, 1.08 * max(lost, default=0)))
    _name_parts(lower, parts, width_px * (1 - LEFT - RIGHT) / max(1, len(inside)), look)
    figure.text(LEFT, 1 - ABOVE / 2, title(layers), color=look.text, fontsize=FONT_PX, va="center")
    return picture_of(figure)


def title(layers: Sequence[Kept]) -> str:
    """Layers, ranks and the total residual, in a line."""
    ranks = [layer.rank for layer in layers if layer.rank]
    line = f"{100 * total_residual(layers):.2g} % of the change is lost    {len(ranks)} layers"
    if ranks and min(ranks) == max(ranks):
        line += f", rank {ranks[0]}"
    elif ranks:
        mean = sum(ranks) / len(ranks)
        line += f", rank {min(ranks)} to {max(ranks)}, {mean:.0f} on average"
    outside = len([layer for layer in layers if not layer.rank and layer.norm])
    return line + (f"    not drawn: {outside} norms and biases" if outside else "")


def parts_of(names: Sequence[str]) -> list[Part]:
    """Rows of layers by the words that PART finds in their names."""
    parts, first = [], 0
    for name, row in itertools.groupby(names, _part_name):
        end = first + len(list(row))
        parts.append(Part(name, first, end))
        first = end
    return parts


def _part_name(layer: str) -> str:
    found = PART.match(layer)
    return found[1] if found else layer


def _draw_steps(
    axes: Any, values: Sequence[float], parts: Sequence[Part], says: str, colour: str, look: Look
) -> None:
    """A column for each layer without gaps between, so that any number of them is a clear shape."""
    axes.stairs(values, np.arange(len(values) + 1), fill=True, color=colour, linewidth=0)
    axes.set_xlim(0, max(1, len(values)))
    style_axes(axes, look)
    axes.grid(visible=False, axis="x")
    axes.set_xticks([])
    axes.vlines([part.first for part in parts[1:]], 0, 1, transform=axes.get_xaxis_transform(),
                color=look.background, linewidth=1)  # fmt: skip
    axes.set_ylabel(says, color=look.text, fontsize=FONT_PX)


def _name_parts(axes: Any, parts: Sequence[Part], layer_px: float, look: Look) -> None:
    """The names of the parts that are wide enough for them, in the middle below."""
    for part in parts:
        if (part.end - part.first) * layer_px >= len(part.name) * LETTER_PX:
            axes.text(
                (part.first + part.end) / 2, -0.04, part.name, transform=axes.get_xaxis_transform(),
                color=look.faint, fontsize=TICK_PX, ha="center", va="top",
            )  # fmt: skip
