"""Five drawn pictures of one star, to train on where nobody brought any."""

from __future__ import annotations

from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageDraw

SIZE_PX = 256
BACKGROUNDS = ("teal", "wheat", "gray", "sienna", "navy")


def write_stars(folder: Path) -> None:
    """Writes the star before each background, each time elsewhere and turned."""
    folder.mkdir(parents=True, exist_ok=True)
    for turn, background in enumerate(BACKGROUNDS):
        picture = Image.new("RGB", (SIZE_PX, SIZE_PX), background)
        draw = ImageDraw.Draw(picture)
        x, y = SIZE_PX / 2 + 30 * sin(turn), SIZE_PX / 2 + 30 * cos(2 * turn)
        draw.polygon(_star(x, y, 90.0, turn * pi / 7), fill="deeppink", outline="gold", width=6)
        draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill="gold")
        picture.save(folder / f"star_{background}.png")


def _star(x: float, y: float, reach_px: float, turn: float) -> list[tuple[float, float]]:
    angles = [turn + i * pi / 5 for i in range(10)]
    reaches = [reach_px, 0.45 * reach_px] * 5
    return [(x + r * sin(a), y - r * cos(a)) for a, r in zip(angles, reaches, strict=True)]
