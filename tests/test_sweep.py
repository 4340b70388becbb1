"""The grid of a sweep, its table and its pictures."""

from __future__ import annotations

import pytest

from trainers.errors import SettingsError
from trainers.settings.sweep import MOST_RUNS, grid_of


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
