"""The drawn world: pictures of one object before a flat background, with captions.

Everything is a pure function of its arguments and of the generator passed in, so the same seed
draws the same picture on every machine with the same Pillow.
"""

from dataclasses import dataclass
from itertools import product
from math import cos, pi, radians, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

SIZE_PX = 64  # 8 x 8 latents: the cheapest grid on which six silhouettes stay apart
SUPERSAMPLE = 4  # drawn at 256 px and averaged down: 16 levels of edge coverage

COLOURS: dict[str, RGB] = {
    "red": (220, 38, 38),
    "orange": (245, 135, 20),
    "yellow": (250, 220, 40),
    "green": (70, 200, 60),
    "blue": (45, 100, 235),
    "purple": (140, 55, 205),
    "pink": (250, 130, 195),
    "white": (252, 252, 252),
}
BACKGROUNDS: dict[str, RGB] = {
    "teal": (15, 125, 130),
    "cream": (236, 216, 172),
    "gray": (140, 140, 140),
    "brown": (100, 62, 38),
    "navy": (20, 24, 72),
}


def _regular(radii: list[float]) -> list[Point]:
    """A closed outline around the centre, first point up, from one radius a corner."""
    turn = 2 * pi / len(radii)
    return [(r * sin(i * turn), -r * cos(i * turn)) for i, r in enumerate(radii)]


def _heart() -> list[Point]:
    angles = [2 * pi * i / 60 for i in range(60)]
    xs = [16 * sin(a) ** 3 for a in angles]
    ys = [-(13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a)) for a in angles]
    return [(x / 16, (y - 2.5) / 16) for x, y in zip(xs, ys, strict=True)]


_ARM = 0.34  # half the width of a cross's arm
# Outlines in object coordinates: centre (0, 0), x right, y down, reach about 1.
SHAPES: dict[str, list[Point]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -0.95), (1.0, 0.75), (-1.0, 0.75)],
    "star": _regular([1.1, 0.52] * 5),
    "heart": _heart(),
    "cross": [
        (x * sx, y * sy)
        for sx, sy, corner in [(1, -1, 0), (1, 1, 1), (-1, 1, 0), (-1, -1, 1)]
        for x, y in ([(_ARM, 1), (_ARM, _ARM), (1, _ARM)][:: -1 if corner else 1])
    ],
    "ring": _regular([1.0] * 48),
}
RING_HOLE = 0.5  # of the ring's radius: wide enough to survive the autoencoder


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


# What can be painted over an object, in the same coordinates and clipped to its outline.
PATTERNS: dict[str, list[list[Point]]] = {
    "half": [_box(0, -2, 2, 2)],
    "band": [_box(-2, -0.36, 2, 0.36)],
    "dot": [_regular([0.42] * 32)],
    "top": [_box(-2, -2, 2, -0.2)],
    "pole": [_box(-0.3, -2, 0.3, 2)],
    "quarters": [_box(0, -2, 2, 0), _box(-2, 0, 0, 2)],
}


@dataclass(frozen=True)
class Look:
    """What an object's surface looks like: a fill, then patterns painted on in order."""

    fill: RGB
    patterns: tuple[tuple[str, RGB], ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where and how an object lies: centre and reach in pixels, rotation in degrees."""

    x_px: float
    y_px: float
    reach_px: float
    degrees: float


@dataclass(frozen=True)
class Triple:
    """A kind of picture: shape, colour and background by name."""

    shape: str
    colour: str
    background: str


@dataclass(frozen=True)
class Subject:
    """One individual of a shape class that the base model never saw."""

    shape: str
    look: Look


SUBJECTS: dict[str, Subject] = {
    "star": Subject(
        "star", Look((240, 60, 150), (("half", (250, 220, 40)), ("dot", (30, 30, 40))))
    ),
    "heart": Subject(
        "heart", Look((40, 190, 215), (("top", (250, 250, 250)), ("pole", (200, 30, 50))))
    ),
    "square": Subject("square", Look((250, 150, 30), (("quarters", (60, 40, 170)),))),
    "cross": Subject(
        "cross", Look((150, 220, 50), (("band", (120, 30, 140)), ("dot", (250, 250, 250))))
    ),
}
INSTANCE_COUNT = 5  # the fewest pictures the DreamBooth article works with is 3 to 5

ALL_TRIPLES = [Triple(*names) for names in product(SHAPES, COLOURS, BACKGROUNDS)]


def is_held_out(triple: Triple) -> bool:
    """Whether training never sees this triple: 40 of 240, every pair of names still seen."""
    ranks = zip(
        (SHAPES, COLOURS, BACKGROUNDS),
        (triple.shape, triple.colour, triple.background),
        strict=True,
    )
    return sum(list(names).index(name) for names, name in ranks) % len(SHAPES) == 0


TRAIN_TRIPLES = [t for t in ALL_TRIPLES if not is_held_out(t)]
HELD_OUT_TRIPLES = [t for t in ALL_TRIPLES if is_held_out(t)]


def caption(shape: str, colour: str = "", background: str = "") -> str:
    """The caption of a picture; a part that is left out is left free."""
    words = f"a photo of a {colour} {shape}" if colour else f"a photo of a {shape}"
    return f"{words} on a {background} background" if background else words


def random_placement(rng: np.random.Generator) -> Placement:
    """A placement with small changes: 2 px of place, a twelfth of size, 9 degrees.

    Objects nearly fill the picture: what a latent sees is 8 px wide, and shapes are told apart by
    what is left of their corners at that width.
    """
    x_px, y_px = SIZE_PX / 2 + rng.uniform(-2, 2, 2)
    return Placement(x_px, y_px, rng.uniform(23, 27), rng.uniform(-9, 9))


def random_look(rng: np.random.Generator) -> Look:
    """A random surface of any colours with up to two patterns: what an autoencoder must know."""
    palette = list(COLOURS.values()) + [_random_rgb(rng) for _ in range(8)]
    pick = [palette[i] for i in rng.integers(0, len(palette), 3)]
    names = [list(PATTERNS)[i] for i in rng.integers(0, len(PATTERNS), rng.integers(0, 3))]
    return Look(pick[0], tuple(zip(names, pick[1:], strict=False)))


def draw(shape: str, look: Look, background: RGB, placement: Placement) -> Image.Image:
    """Draw one object before a flat background, SIZE_PX square."""
    side = SIZE_PX * SUPERSAMPLE
    surface = Image.new("RGB", (side, side), look.fill)
    brush = ImageDraw.Draw(surface)
    for name, colour in look.patterns:
        for outline in PATTERNS[name]:
            brush.polygon(_to_canvas(outline, placement), fill=colour)
    mask = Image.new("L", (side, side), 0)
    stencil = ImageDraw.Draw(mask)
    stencil.polygon(_to_canvas(SHAPES[shape], placement), fill=255)
    if shape == "ring":
        hole = [(RING_HOLE * x, RING_HOLE * y) for x, y in SHAPES[shape]]
        stencil.polygon(_to_canvas(hole, placement), fill=0)
    canvas = Image.new("RGB", (side, side), background)
    canvas.paste(surface, mask=mask)
    return canvas.reduce(SUPERSAMPLE)


def draw_triple(triple: Triple, rng: np.random.Generator) -> Image.Image:
    """Draw a plain object at a random placement, its two colours off by a few levels."""
    look = Look(_nearby(COLOURS[triple.colour], rng))
    background = _nearby(BACKGROUNDS[triple.background], rng)
    return draw(triple.shape, look, background, random_placement(rng))


def draw_anything(rng: np.random.Generator) -> Image.Image:
    """Draw an object of any surface before any colour, for the autoencoder."""
    shape = list(SHAPES)[rng.integers(len(SHAPES))]
    known = list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))]
    background = known if rng.random() < 0.7 else _random_rgb(rng)
    return draw(shape, random_look(rng), _nearby(background, rng), random_placement(rng))


def draw_subject(name: str, background: str, rng: np.random.Generator) -> Image.Image:
    """Draw a subject before a background at a random placement."""
    subject = SUBJECTS[name]
    return draw(subject.shape, subject.look, BACKGROUNDS[background], random_placement(rng))


def instance_pictures(name: str, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """The subject's training pictures, each before another background, and that background."""
    rng = np.random.Generator(np.random.PCG64([seed, list(SUBJECTS).index(name)]))
    names = list(BACKGROUNDS)[:INSTANCE_COUNT]
    return [(draw_subject(name, background, rng), background) for background in names]


def write_subject(
    name: str, folder: Path, called: str, seed: int = 0, factor: int = 1
) -> list[Path]:
    """Write a subject's training pictures as PNG files, each with its caption beside it.

    Args:
        called: what the captions say for it, such as "sks star".
        factor: enlarges the pictures, for base models of a larger world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture, background in instance_pictures(name, seed):
        paths.append(folder / f"{name}_{background}.png")
        (enlarge(picture, factor) if factor > 1 else picture).save(paths[-1])
        text = caption(called, "", background)
        paths[-1].with_suffix(".txt").write_text(text, encoding="utf-8")
    return paths


def enlarge(picture: Image.Image, factor: int = 4) -> Image.Image:
    """Enlarge a picture for people, smoothly, by a whole factor."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.BICUBIC)


def grid(pictures: list[Image.Image], columns: int, factor: int = 2) -> Image.Image:
    """Lay pictures of one size out in rows, enlarged, with 2 px of white between them."""
    tiles = [enlarge(picture, factor) for picture in pictures]
    width, height = tiles[0].width + 2, tiles[0].height + 2
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width - 2, rows * height - 2), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return sheet


def _to_canvas(outline: list[Point], placement: Placement) -> list[Point]:
    turn = radians(placement.degrees)
    reach = placement.reach_px * SUPERSAMPLE
    x0, y0 = placement.x_px * SUPERSAMPLE, placement.y_px * SUPERSAMPLE
    return [
        (
            x0 + reach * (x * cos(turn) - y * sin(turn)),
            y0 + reach * (x * sin(turn) + y * cos(turn)),
        )
        for x, y in outline
    ]


def _nearby(rgb: RGB, rng: np.random.Generator, levels: int = 6) -> RGB:
    r, g, b = np.clip(np.array(rgb) + rng.integers(-levels, levels + 1, 3), 0, 255).tolist()
    return r, g, b


def _random_rgb(rng: np.random.Generator) -> RGB:
    r, g, b = rng.integers(0, 256, 3).tolist()
    return r, g, b
