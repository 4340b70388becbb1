"""What auto chooses, and what a training is told that cannot fit."""

from __future__ import annotations

from typing import Any

import pytest

from trainers.errors import SettingsError
from trainers.models.fitting import (
    KERNELS_BYTES,
    Asked,
    NoPlanError,
    Room,
    cheapest,
    choose,
    without_auto,
)
from trainers.models.memory import StepMemory
from trainers.settings.run import RunConfig, run_config

OF_BLOCKS = {"none": 100, "half": 60, "all": 20}
OF_STATES = {"adamw": 8, "adamw_8bit": 2, "adafactor": 1}


class Plans:
    """A base of 100 bytes of weights in bf16, and what was asked of it."""

    def __init__(self, refused: str = "", unknown: str = "") -> None:
        self.refused, self.unknown = refused, unknown
        self.made: list[Asked] = []

    def __call__(self, asked: Asked) -> StepMemory:
        self.made.append(asked)
        config, training = asked.config, asked.config.training
        settings = str(config)
        if self.refused and self.refused in settings:
            raise SettingsError((self.refused,))
        if self.unknown and self.unknown in settings:
            raise NoPlanError(self.unknown)
        pixels = training.batch_size * asked.resolution_px
        activations = OF_BLOCKS[config.checkpointed] * pixels // 1024
        if config.memory.activations_in == "RAM":
            activations //= 2
        if config.changes_weights:
            trained = 100 if config.own.weights == "bf16" else 200
            gradients = 0 if config.own.fused_backward else trained
            states = trained * OF_STATES[training.optimizer] // 4
            return StepMemory(0, trained, gradients, states, activations, 0, 1)
        frozen = 50 if training.quantize_base == "int8" else 100
        frozen = 10 if config.memory.weights_in == "RAM" else frozen
        return StepMemory(frozen, 4, 4, 8, activations, 0, 1)


def room(free_bytes: int) -> Room:
    """Of a device that has memory of its own."""
    return Room(free_bytes, "xpu")


def chosen(free_bytes: int, plans: Plans | None = None, **settings: Any) -> tuple[str, bool]:
    """weights_in and checkpointing as auto has them, and whether that fits."""
    asked = Asked(run_config("lora", settings), 1024)
    found, fits = choose(asked, room(free_bytes), plans or Plans())
    memory = found.asked.config.memory
    return f"{memory.weights_in} {memory.checkpointing}", fits


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [(228, "device none"), (226, "device half"), (185, "device half"), (143, "device all"),
     (142, "RAM all"), (49, "RAM all")],
)  # fmt: skip
def test_auto_takes_the_device_then_checkpoints_then_ram(free_bytes: int, expected: str) -> None:
    assert chosen(free_bytes) == (expected, True)


def test_auto_that_fits_nowhere_takes_the_least() -> None:
    assert chosen(40) == ("RAM all", False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gradient_checkpointing": True}, "device all"),
        ({"checkpointing": "half"}, "device half"),
        ({"weights_in": "RAM"}, "RAM all"),
        ({"weights_in": "RAM", "checkpointing": "all"}, "RAM all"),
        ({"activations_in": "RAM"}, "device all"),  # of checkpointed blocks
        ({"activations_in": "RAM", "checkpointing": "half"}, "device half"),
    ],
)
def test_auto_leaves_what_is_said(settings: dict[str, Any], expected: str) -> None:
    assert chosen(1000, **settings) == (expected, True)


def test_auto_never_streams_what_trains() -> None:
    config = run_config("dreambooth", {"weights": "bf16"})
    found, fits = choose(Asked(config, 1024), room(50), Plans())
    assert (found.asked.config.memory.weights_in, fits) == ("device", False)


def test_where_ram_is_the_device_nothing_waits_there() -> None:
    plans = Plans()
    found, fits = choose(Asked(run_config("lora", {}), 1024), Room(100, "cpu"), plans)
    assert (found.asked.config.memory.weights_in, fits) == ("device", False)
    other, fits = cheapest(found, Room(100, "cpu"), plans)
    assert (other.changed, fits) == ("quantize_base 'int8', checkpointing 'all'", True)
    cheapest(found, Room(20, "cpu"), plans)
    assert not [one for one in plans.made if "RAM" in str(one.config.memory)]


def test_auto_plans_no_more_than_it_takes() -> None:
    plans = Plans()
    chosen(1000, plans)
    assert len(plans.made) == 1
    plans = Plans()
    chosen(60, plans)  # the weights alone are more than that
    assert [one.config.memory.weights_in for one in plans.made] == ["device", "RAM"]


def test_without_a_plan_auto_means_the_device() -> None:
    config = without_auto(run_config("lora", {}))
    assert (config.memory.weights_in, config.memory.checkpointing) == ("device", "none")
    config = without_auto(run_config("lora", {"gradient_checkpointing": True}))
    assert config.memory.checkpointing == "all"


def test_auto_passes_over_what_cannot_be_told_but_for_the_first() -> None:
    assert chosen(143, Plans(unknown="weights_in='RAM'")) == ("device all", True)
    assert chosen(60, Plans(unknown="weights_in='RAM'")) == ("device none", False)
    with pytest.raises(NoPlanError):
        chosen(1000, Plans(unknown="weights_in='device'"))


def proposed(
    method: str, free_bytes: int, plans: Plans | None = None, **settings: Any
) -> tuple[str, int, bool]:
    """Asked without auto: what is proposed, what that needs, whether it fits."""
    config: RunConfig = without_auto(run_config(method, settings))
    start, fits = choose(Asked(config, 1024), room(free_bytes), plans or Plans())
    assert not fits
    found, fits = cheapest(start, room(free_bytes), plans or Plans())
    assert fits == (found.needed_bytes <= free_bytes)
    return found.changed, found.needed_bytes, fits


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [
        (190, "checkpointing 'half'"),
        (150, "checkpointing 'all'"),
        (100, "weights_in 'RAM', checkpointing 'all'"),
        (40, "weights_in 'RAM', checkpointing 'all', activations_in 'RAM'"),
    ],
)
def test_the_first_change_that_fits_is_proposed(free_bytes: int, expected: str) -> None:
    changed, needed_bytes, fits = proposed("lora", free_bytes)
    assert (sorted(changed.split(", ")), fits) == (sorted(expected.split(", ")), True)
    assert needed_bytes <= free_bytes


def test_what_a_training_would_refuse_is_not_proposed() -> None:
    plans = Plans(refused="weights_in='RAM'")
    changed, _, fits = proposed("lora", 100, plans)
    assert (changed, fits) == ("quantize_base 'int8', checkpointing 'all'", True)


@pytest.mark.parametrize(
    ("free_bytes", "settings", "expected"),
    [
        (910, {}, "checkpointing 'half'"),
        (600, {}, "weights 'bf16'"),
        (425, {"weights": "bf16"}, "fused_backward on"),
        (350, {"weights": "bf16", "checkpointing": "all"}, "fused_backward on"),
        (290, {"weights": "bf16", "checkpointing": "all"}, "optimizer 'adamw_8bit'"),
        (180, {"weights": "bf16", "checkpointing": "all"},
         "fused_backward on, optimizer 'adamw_8bit'"),
    ],
)  # fmt: skip
def test_dreambooth_may_hold_its_weights_otherwise(
    free_bytes: int, settings: dict[str, Any], expected: str
) -> None:
    changed, _, fits = proposed("dreambooth", free_bytes, **settings)
    assert (sorted(changed.split(", ")), fits) == (sorted(expected.split(", ")), True)


def test_fewer_pixels_come_last() -> None:
    small = {"weights": "bf16", "optimizer": "adafactor", "checkpointing": "all", "batch_size": 4}
    changed, _, fits = proposed("dreambooth", 160, fused_backward=True, **small)
    assert (changed, fits) == ("batch_size 1", True)  # no sum with a fused backward pass
    small = {"weights_in": "RAM", "activations_in": "RAM", "batch_size": 4}
    changed, _, fits = proposed("lora", 39, **small)
    assert (changed, fits) == ("batch_size 1, gradient_accumulation 4", True)


def test_what_still_does_not_fit_is_told() -> None:
    changed, needed_bytes, fits = proposed("lora", 20)
    assert not fits
    assert "weights_in 'RAM'" in changed
    assert changed.endswith("resolution 512")
    assert 20 < needed_bytes < 50


def test_a_gpu_needs_room_beside_the_plan() -> None:
    assert room(1050).holds(1000)
    assert not room(1049).holds(1000)
    assert Room(1050 + KERNELS_BYTES, "cuda").holds(1000)
    assert not Room(1049 + KERNELS_BYTES, "cuda").holds(1000)
