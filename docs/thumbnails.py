"""Makes the pictures of the template browser: what a graph's method came to on the demo base.

    python -m docs.thumbnails

They are cut from docs/images/evidence, whose pictures were measured: see docs/evidence.md.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from tests.host import ROOT

EVIDENCE, GRAPHS = ROOT / "docs" / "images" / "evidence", ROOT / "workflows"
TILE_PX, GAP_PX = 128, 2  # of the evidence's sheets
COLUMNS = (0, 3, 4)  # the backgrounds that are shown
SHOWN_PX, LABEL_PX, FOOT_PX = 160, 120, 34
BACKGROUND, FOREGROUND, FAINT = "#202124", "#e8eaed", "#9aa0a6"
LABELS = ("your\npictures", "before", "after")
FOOT = "by the project's small demonstration model"


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
}


def tiles(row: Row) -> list[Image.Image]:
    """The pictures of a row that are shown."""
    with Image.open(EVIDENCE / f"{row.sheet}.png") as sheet:
        step = TILE_PX + GAP_PX
        corners = [(column * step, row.number * step) for column in COLUMNS]
        boxes = [(x, y, x + TILE_PX, y + TILE_PX) for x, y in corners]
        return [sheet.convert("RGB").crop(box) for box in boxes]


def thumbnail(subject: str, after: Row) -> Image.Image:
    """Training pictures, what the base model made of the prompt, and what the trained one did."""
    width = LABEL_PX + len(COLUMNS) * SHOWN_PX
    picture = Image.new("RGB", (width, 3 * SHOWN_PX + FOOT_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(22), ImageFont.load_default(16)
    for line, row in enumerate((Row(subject, 0), Row(subject, 1), after)):
        top = line * SHOWN_PX
        middle = (LABEL_PX / 2, top + SHOWN_PX / 2)
        draw.text(middle, LABELS[line], FOREGROUND, font, anchor="mm", align="center")
        for column, tile in enumerate(tiles(row)):
            shown = tile.resize((SHOWN_PX - GAP_PX, SHOWN_PX - GAP_PX), Image.Resampling.BICUBIC)
            picture.paste(shown, (LABEL_PX + column * SHOWN_PX, top))
    draw.text((width / 2, picture.height - FOOT_PX / 2), FOOT, FAINT, small, anchor="mm")
    return picture


def main() -> None:
    for graph in sorted(GRAPHS.glob("*.json")):
        subject, after = AFTER[int(graph.stem.split()[0])]
        thumbnail(subject, after).save(graph.with_suffix(".jpg"), quality=90, optimize=True)


if __name__ == "__main__":
    main()
