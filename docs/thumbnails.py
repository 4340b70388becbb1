"""Makes the pictures of the template browser: what a graph's method came to on the demo base.

    python -m docs.thumbnails

They are cut from docs/images/evidence, whose pictures were measured: see docs/evidence.md. No edit
was, so that graph has a drawing of what pairs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from demo import world
from tests.host import ROOT

EVIDENCE, GRAPHS = ROOT / "docs" / "images" / "evidence", ROOT / "workflows"
TILE_PX, GAP_PX = 128, 2  # of the evidence's sheets
COLUMNS = (0, 3, 4, 1)  # the backgrounds that are shown, as many as there are rows
SHOWN_PX, LABEL_PX, FOOT_PX = 480, 120, 34  # of all pictures together, beside and below them
BACKGROUND, FOREGROUND, FAINT = "#202124", "#e8eaed", "#9aa0a6"
LABELS = ("your\npictures", "before", "after")
FOOT, PAIRS_FOOT = "by the project's small demonstration model", "pairs of pictures, drawn"


class Row(NamedTuple):
    """A row of a sheet of the evidence."""

    sheet: str
    number: int


# The subject, and what the method of each graph made of it, by the number in the graph's title.
AFTER = {
    1: ("star", Row("star", 2)),
    2: ("heart", Row("heart", 2)),
    3: ("star", Row("star", 4)),
    4: ("heart", Row("heart", 4)),
    5: ("square", Row("square", 4)),
    6: ("star", Row("star", 5)),
    7: ("heart", Row("heart", 5)),
    8: ("star", Row("claim_5", 2)),
    9: ("star", Row("claim_4", 2)),
    10: ("star", Row("claim_10", 2)),
    11: ("star", Row("claim_14", 1)),
}

TRANSFORMER = zip(LABELS, (Row("star", 0), Row("claim_15", 0), Row("claim_15", 1)), strict=True)
# Graphs whose thumbnail has rows of its own, with their labels.
ROWS = {
    **dict.fromkeys((13, 14, 15, 16), tuple(TRANSFORMER)),
    12: (
        ("without", Row("star", 1)),
        ("strength\n0.4", Row("claim_9", 0)),
        ("strength\n0.7", Row("claim_9", 1)),
        ("strength\n1.0", Row("claim_9", 2)),
    ),
}


PAIRS = 17  # the graph that trains on them


def tiles(row: Row, number: int) -> list[Image.Image]:
    """So many pictures of a row."""
    with Image.open(EVIDENCE / f"{row.sheet}.png") as sheet:
        step = TILE_PX + GAP_PX
        corners = [(column * step, row.number * step) for column in COLUMNS[:number]]
        boxes = [(x, y, x + TILE_PX, y + TILE_PX) for x, y in corners]
        return [sheet.convert("RGB").crop(box) for box in boxes]


def pairs() -> list[tuple[str, list[Image.Image]]]:
    """A row of control images, and one of the pictures that they become."""
    before, after = [], []
    for shape, background in (("star", "teal"), ("heart", "brown")):
        placed = world.Placement(world.SIZE_PX / 2, world.SIZE_PX / 2, 25, 0)
        look, behind = world.SUBJECTS[shape].look, world.BACKGROUNDS[background]
        before.append(world.draw(shape, world.Look(look.fill), behind, placed))
        after.append(world.draw(shape, look, behind, placed))
    return [("control\nimages", before), ("your\npictures", after)]


def lines_of(graph: int) -> list[tuple[str, list[Image.Image]]]:
    """Labels and rows: training pictures, what the base model made of the prompt, and what the
    trained one did, unless the graph has rows of its own.
    """
    if graph == PAIRS:
        return pairs()
    if graph in ROWS:
        rows = ROWS[graph]
    else:
        subject, after = AFTER[graph]
        rows = tuple(zip(LABELS, (Row(subject, 0), Row(subject, 1), after), strict=True))
    return [(label, tiles(row, len(rows))) for label, row in rows]


def thumbnail(lines: Sequence[tuple[str, list[Image.Image]]], said: str) -> Image.Image:
    """Rows of pictures with their labels, and below what they are."""
    side = SHOWN_PX // len(lines)
    picture = Image.new("RGB", (LABEL_PX + SHOWN_PX, SHOWN_PX + FOOT_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(22), ImageFont.load_default(16)
    for line, (label, row) in enumerate(lines):
        top = line * side
        middle = (LABEL_PX / 2, top + side / 2)
        draw.text(middle, label, FOREGROUND, font, anchor="mm", align="center")
        for column, tile in enumerate(row):
            shown = tile.resize((side - GAP_PX, side - GAP_PX), Image.Resampling.BICUBIC)
            picture.paste(shown, (LABEL_PX + column * side, top))
    foot = (picture.width / 2, picture.height - FOOT_PX / 2)
    draw.text(foot, said, FAINT, small, anchor="mm")
    return picture


def main() -> None:
    for graph in sorted(GRAPHS.glob("*.json")):
        number = int(graph.stem.split()[0])
        picture = thumbnail(lines_of(number), PAIRS_FOOT if number == PAIRS else FOOT)
        picture.save(graph.with_suffix(".jpg"), quality=90, optimize=True)


if __name__ == "__main__":
    main()
