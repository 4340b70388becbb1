"""Sheets of pictures, and cells on disk, without a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFont

from trainers.errors import SettingsError
from trainers.runs.pictures import grid
from trainers.runs.pictures.cells import CellFolder, read_cell, write_cell
from trainers.runs.pictures.grid import Label, draw_grid, wrapped
from trainers.settings.preview import CompareConfig

RED, BLUE = (255, 0, 0), (0, 0, 255)
BACKGROUND = (0x20, 0x21, 0x24)


def sheet(
    rows: int, columns: int, size: tuple[int, int] = (64, 64), text: str = "a photo"
) -> Image.Image:
    cells = [
        [Image.new("RGB", size, (row, column, 99)) for column in range(columns)]
        for row in range(rows)
    ]
    return draw_grid(cells, [Label(text, "0.5")] * rows, [text] * columns)


def inked(picture: Image.Image) -> bool:
    """Whether something is written there."""
    return len(picture.getcolors(1 << 20) or []) > 1


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (1024, 640)])
def test_cells_keep_their_pixels_and_places(size: tuple[int, int]) -> None:
    drawn = sheet(2, 3, size)
    plan = grid._plan(size, 2, 3)
    assert (plan.width, plan.height) == size
    for row in range(2):
        for column in range(3):
            left = plan.side + column * (size[0] + plan.gap)
            top = plan.top + row * (size[1] + plan.gap)
            cell = drawn.crop((left, top, left + size[0], top + size[1]))
            assert cell.getcolors() == [(size[0] * size[1], (row, column, 99))]
            assert inked(drawn.crop((left, 0, left + size[0], plan.top)))
        assert inked(drawn.crop((0, top, plan.side, top + size[1])))
    assert drawn.getpixel((0, 0)) == BACKGROUND


def test_words_grow_with_the_cells() -> None:
    assert [grid._plan((side, side), 1, 1).font for side in (64, 512, 1024)] == [10, 26, 51]


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [(40, 10, (1024, 1024)), (1, 400, (64, 64)), (400, 1, (64, 64)), (1, 90, (2048, 64))],
)
def test_large_grids_are_made_smaller(rows: int, columns: int, size: tuple[int, int]) -> None:
    drawn = sheet(rows, columns, size)
    assert max(drawn.size) <= grid.MOST_SIDE_PX
    assert drawn.width * drawn.height <= grid.MOST_PIXELS
    assert max(drawn.size) > 0.9 * grid.MOST_SIDE_PX or (
        drawn.width * drawn.height > 0.9 * grid.MOST_PIXELS
    )


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a\nb\tc", "写真 一匹の犬", "صورة كلب", "תמונה של כלב", "фото собаки", "\ud800",
        "a\0b", "\u202ea\u200d", "🐕" * 50, "x" * 10_000, "long " * 5_000,
        "e\u0301" * 40, "\ue000<sks>",
    ],
)  # fmt: skip
def test_any_text_is_drawn(text: str) -> None:
    assert sheet(1, 1, text=text).size == sheet(1, 1).size


def test_text_is_wrapped_and_cut() -> None:
    font = ImageFont.truetype(grid._font_file(), 20)
    text = "a photo of a very large dog in front of the old town hall of a small city"
    lines = wrapped(text, font, 200, 3)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 200 for line in lines)
    assert text.startswith(" ".join(lines).removesuffix("…"))
    assert lines[-1].endswith("…")
    assert " ".join(wrapped(text, font, 200, 9)) == text
    assert wrapped("two words", font, 200, 3) == ["two words"]
    file = wrapped("a_name_without_any_blank_of_a_file_v12", font, 120, 9)
    assert "".join(file) == "a_name_without_any_blank_of_a_file_v12"
    assert len(file) > 1


def test_strength_stays_where_a_name_is_long() -> None:
    cells = [[Image.new("RGB", (64, 64))]]
    with_strength = draw_grid(cells, [Label("name " * 90, "0.75")], ["p"])
    other = draw_grid(cells, [Label("name " * 90, "1")], ["p"])
    assert with_strength.size == other.size
    assert with_strength.tobytes() != other.tobytes()


# -- cells on disk ------------------------------------------------------------


def test_cell_is_found_by_what_it_is(tmp_path: Path) -> None:
    key, own = {"model": "a", "seed": 1}, {"prompt": "a dog", "adapter": "b", "strength": 1.0}
    folder = CellFolder.open(tmp_path, "sd15", key)
    assert folder.path.name.startswith("sd15-")
    assert json.loads((folder.path / "key.json").read_text()) == key
    file = folder.file(own)
    assert read_cell(file) is None
    write_cell(file, Image.new("RGB", (8, 8), RED), {"prompt": "a <dog>\0 \ud800 写"})
    assert CellFolder.open(tmp_path, "sd15", dict(reversed(key.items()))) == folder
    assert folder.file(dict(reversed(own.items()))) == file
    assert read_cell(file).getcolors() == [(64, RED)]  # type: ignore[union-attr]
    with Image.open(file) as picture:
        assert picture.info["prompt"] == "a <dog>  ? 写"
    others = {folder.file({**own, **changed}) for changed in ({"prompt": "a"}, {"strength": 0.5})}
    assert len({file, *others}) == 3
    assert CellFolder.open(tmp_path, "sd15", {**key, "seed": 2}) != folder


@pytest.mark.parametrize("content", [b"", b"no picture", b"cut"])
def test_damaged_cell_is_made_again(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.png"
    write_cell(file, Image.effect_noise((64, 64), 50).convert("RGB"), {})
    file.write_bytes(file.read_bytes()[:-2000] if content == b"cut" else content)
    assert read_cell(file) is None


# -- what is asked ------------------------------------------------------------


def test_strengths_and_prompts_are_read() -> None:
    config = CompareConfig(strengths=" 1, .5,-1.0 , 1.0,", prompts="a dog\n\n b <sks> \na dog\n")
    assert config.strength_values == [1.0, 0.5, -1.0]
    assert config.lines == ["a dog", "b <sks>"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strengths": ""}, "strengths has nothing; allowed: numbers from -10 to 10"),
        ({"strengths": "0.5, high"}, "strengths has 'high'; allowed"),
        ({"strengths": "0.5; 1"}, "strengths has '0.5; 1'"),
        ({"strengths": "nan, 1e9, inf"}, "'nan', '1e9', 'inf'"),
        ({"prompts": " \n "}, "prompts is empty"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        CompareConfig(**wrong)


def test_too_many_cells_are_refused() -> None:
    config = CompareConfig(prompts="\n".join(map(str, range(10))))
    config.check_cells(40)
    with pytest.raises(SettingsError, match="41 rows by 10 prompts are 410 cells; allowed: 400 of"):
        config.check_cells(41)
    large = CompareConfig(prompts="a", width=1024, height=1024)
    large.check_cells(200)
    with pytest.raises(SettingsError, match="allowed: 200 of 1024 x 1024 px"):
        large.check_cells(201)
