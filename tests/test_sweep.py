"""The grid of a sweep, its table and its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor, PngImagePlugin

from trainers.errors import SettingsError
from trainers.runs.catalog.sweep import (
    HELD_OUT,
    TRAINED,
    SweptRun,
    best_of,
    judged_by,
    swept_run,
    table,
    warning,
)
from trainers.runs.pictures.grid import MARK
from trainers.runs.pictures.plot import smooth
from trainers.runs.pictures.sweep import CURVE_PX, draw_sheet, draw_sweep
from trainers.settings.sweep import MOST_RUNS, Grid, grid_of


def test_grid_makes_each_combination_the_last_line_fastest() -> None:
    grid = grid_of("learning_rate: 1e-4, 5e-5\n# a remark\n\nrank: 4, 16\nseed: 7\n", "lora")
    assert grid.axes == {"learning_rate": (1e-4, 5e-5), "rank": (4, 16)}
    assert [cell.label for cell in grid.cells] == [
        "learning_rate 0.0001, rank 4", "learning_rate 0.0001, rank 16",
        "learning_rate 5e-05, rank 4", "learning_rate 5e-05, rank 16",
    ]  # fmt: skip
    assert grid.cells[3].values == {"learning_rate": 5e-5, "rank": 16, "seed": 7}
    assert {cell.method for cell in grid.cells} == {"lora"}


def test_values_have_the_types_of_their_settings() -> None:
    text = 'steps: 1e3, 20\nprecision: fp32\nclass_prompt: "a dog, sitting", a cat\n'
    values = grid_of(text + "train_text_encoder: on, off\nweight_decay: 0", "lora").cells[0].values
    assert values == {
        "steps": 20, "precision": "fp32", "class_prompt": "a dog, sitting",
        "train_text_encoder": True, "weight_decay": 0.0,
    }  # fmt: skip
    assert type(values["steps"]) is int
    assert type(values["weight_decay"]) is float


def test_a_method_takes_the_settings_that_it_has() -> None:
    grid = grid_of("method: lora, textual_inversion\nrank: 4, 8", "dreambooth")
    assert [(cell.method, dict(cell.values)) for cell in grid.cells] == [
        ("lora", {"rank": 4}), ("lora", {"rank": 8}), ("textual_inversion", {}),
    ]  # fmt: skip
    assert grid.cells[2].label == "method textual_inversion"


def test_all_that_is_wrong_is_told_at_once() -> None:
    text = (
        "lerning_rate: 1e-4\nrank: 0, 4, four\nsteps 5\nseed: 1, 1\nstate_every: 1, 2\n"
        "train_text_encoder: maybe\nprecision: fp8\nalpha: 1\nalpha: 2"
    )
    with pytest.raises(SettingsError) as error:
        grid_of(text, "lora")
    for problem in (
        "'lerning_rate' is no setting; allowed: those of lora such as learning_rate",
        "rank is 0; allowed: 1 to 1024",
        "rank is 'four'; allowed: a value of type int",
        "settings has the line 'steps 5'; allowed: a line for each setting, such as",
        "seed has 1 twice",
        "state_every has 2 values, but it does not change what a run learns; allowed: one value",
        "train_text_encoder is 'maybe'; allowed: on or off",
        "precision is 'fp8'; allowed: auto",
        "alpha has two lines in settings",
    ):
        assert problem in str(error.value)
    assert len(error.value.problems) == 9


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "settings is empty; allowed: a line for each setting"),
        ("method: lora, nothing", "method is 'nothing'; allowed: lora, dreambooth, textual_inv"),
        (f"seed: {', '.join(map(str, range(MOST_RUNS + 1)))}", "settings makes 65 runs; allowed"),
        ("prior_weight: 1", "'prior_weight' is no setting; allowed: those of textual_inversion"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        grid_of(text, "textual_inversion")
    assert problem in str(error.value)


def test_a_contradiction_is_told_with_the_runs_that_have_it() -> None:
    with pytest.raises(SettingsError, match=r"precision is 'fp16'.*\(with precision fp16\)"):
        grid_of("weights: bf16\nprecision: fp16, bf16", "dreambooth")


# -- what they came to --------------------------------------------------------


def swept(*validation: float | None) -> tuple[Grid, list[SweptRun]]:
    """Two rates and two ranks; the losses of the third fall to the lowest."""
    grid = grid_of("learning_rate: 1e-4, 5e-5\nrank: 4, 16", "lora")
    levels = (0.4, 0.3, 0.1, 0.2)
    runs = []
    for number, (cell, level) in enumerate(zip(grid.cells, levels, strict=True)):
        watched = [(2, v) for v in validation[number : number + 1] if v is not None]
        loss_map = {"loss": [1.0, *[level] * 30], "validation": watched}
        runs.append(swept_run(cell, f"lora-dog-{number}", 31, loss_map, False))
    return grid, runs


def test_the_best_has_the_lowest_held_out_loss_or_else_the_lowest_smoothed_one() -> None:
    grid, runs = swept()
    assert (best_of(runs), judged_by(runs)) == (runs[2], TRAINED)
    assert runs[2].loss == pytest.approx(smooth(np.array(runs[2].losses))[-1])
    _, runs = swept(0.5, 0.2, 0.3, 0.4)
    assert (best_of(runs), judged_by(runs)) == (runs[1], HELD_OUT)
    _, runs = swept(0.5, 0.2, None, 0.4)
    assert (best_of(runs), judged_by(runs)) == (runs[2], TRAINED)
    failed = [SweptRun(cell, problem="The loss is nan") for cell in grid.cells]
    assert best_of(failed) is None
    assert "The loss is nan" in table(failed, grid.axes)


def test_what_is_handed_out_is_judged() -> None:
    cell = grid_of("seed: 1", "lora").cells[0]
    told = {"loss": [1.0], "validation": [(1, 0.2), (2, 0.3)]}
    assert swept_run(cell, "a", 1, told, False).validation == 0.3
    assert swept_run(cell, "a", 1, told, True).validation == 0.2


def test_table_has_a_line_for_each_run_and_marks_the_best() -> None:
    grid, runs = swept(0.5, 0.25, 0.75, 0.4)
    lines = table(runs, grid.axes).splitlines()
    cells = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "learning_rate", "rank", "steps", "loss", "held-out loss", "run"]
    assert cells[3][:4] == ["2 best", "0.0001", "16", "31"]
    assert cells[3][5:] == ["0.25", "lora-dog-1"]
    assert len(cells) == 6
    assert len({len(line) for line in lines}) == 1


def test_reasons_of_failed_runs_stand_below_the_table_each_once() -> None:
    grid, runs = swept()
    for place, problem in ((0, "Too large.\nLower rank."), (1, "Is nan."), (3, "Is nan.")):
        runs[place] = SweptRun(grid.cells[place], problem=problem)
    *rows, empty, first, second = table(runs, grid.axes).splitlines()
    assert [row.strip("| ").split()[-1] for row in rows[2:]] == [
        "failed", "failed", runs[2].run, "failed",
    ]  # fmt: skip
    assert len({len(row) for row in rows}) == 1
    assert (empty, first) == ("", "1 failed: Too large. Lower rank.")
    assert second == "2, 4 failed: Is nan."


def test_losses_that_do_not_compare_are_told() -> None:
    assert warning({"rank": (4, 8)}) == ""
    assert "min_snr_gamma changes what is measured" in warning({"min_snr_gamma": (0.0, 5.0)})


def test_sheet_has_the_last_previews_where_their_settings_are(tmp_path: Path) -> None:
    grid, runs = swept()
    for number, run in enumerate(runs):
        folder = tmp_path / run.run / "previews"
        folder.mkdir(parents=True)
        for step, shade in ((10, 250), (30, 60 * number), (99, 255)):  # a longer run made the last
            facts = PngImagePlugin.PngInfo()
            facts.add_itxt("prompt", "a dog")
            colour = (shade, 0, 200)
            file = folder / f"step_{step:08}_0.png"
            Image.new("RGB", (64, 64), colour).save(file, pnginfo=facts)
    sheet = draw_sheet(runs, grid.axes, tmp_path)
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(60 * number, 0, 200) for number in range(4)} <= colours
    assert not {(250, 0, 200), (255, 0, 200)} & colours
    at = {c: (x, y) for x in range(0, sheet.width, 8) for y in range(0, sheet.height, 8)
          for c in [sheet.getpixel((x, y))] if c[2] == 200}  # fmt: skip
    assert at[0, 0, 200][0] < at[60, 0, 200][0]  # ranks from left to right
    assert at[0, 0, 200][1] == at[60, 0, 200][1] < at[120, 0, 200][1]


@pytest.mark.parametrize("line", ["", "\noptimizer: adamw, lion"])
def test_sheet_frames_the_best_run(tmp_path: Path, line: str) -> None:
    grid = grid_of("learning_rate: 1e-4, 5e-5\nrank: 4, 16" + line, "lora")
    runs = [SweptRun(cell, f"run-{n}", 1, (float(n != 1),)) for n, cell in enumerate(grid.cells)]
    runs[0] = SweptRun(grid.cells[0], problem="Is nan.")
    sheet = draw_sheet(runs, grid.axes, tmp_path)
    marked = np.argwhere((np.asarray(sheet) == ImageColor.getrgb(MARK)).all(-1))
    (top, left), (bottom, right) = marked.min(0), marked.max(0)
    assert (right - left) / (bottom - top) == pytest.approx(CURVE_PX[0] / CURVE_PX[1], abs=0.05)
    assert left > 0.55 * sheet.width, "its column is the second"
    assert bottom < 0.65 * sheet.height, "its row is the first"


def test_a_sweep_without_previews_shows_its_losses(tmp_path: Path) -> None:
    grid, runs = swept()
    assert draw_sheet(runs, grid.axes, tmp_path).width > 2 * 480
    assert draw_sweep(runs).size == (960, 540)
