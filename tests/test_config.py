"""Settings: what each field says of itself, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import typing
from typing import Any

import pytest

from tests.host import ROOT
from trainers.errors import SettingsError
from trainers.settings import run
from trainers.settings.dataset import CAPTION_SOURCES, MASK_SOURCES, DatasetConfig
from trainers.settings.field import Setting, from_values, settings_of
from trainers.settings.methods.dreambooth import DreamBoothConfig
from trainers.settings.methods.lora import LORA_TARGETS, LORA_VARIANTS, LoraConfig
from trainers.settings.methods.textual_inversion import TextualInversionConfig
from trainers.settings.objective import ObjectiveConfig
from trainers.settings.training import LR_SCHEDULES, OPTIMIZERS, PRECISIONS, TrainingConfig

KINDS = (
    DatasetConfig,
    TrainingConfig,
    ObjectiveConfig,
    LoraConfig,
    DreamBoothConfig,
    TextualInversionConfig,
)
FIELDS = {
    f"{kind.__name__}.{name}": (kind, name, facts)
    for kind in KINDS
    for name, (_, facts) in settings_of(kind).items()
}
fields = pytest.mark.parametrize(("kind", "name", "facts"), FIELDS.values(), ids=FIELDS)
NUMBERS = {label: field for label, field in FIELDS.items() if field[2].min is not None}
numbers = pytest.mark.parametrize(("kind", "name", "facts"), NUMBERS.values(), ids=NUMBERS)


def refusal(kind: type[Any], **values: Any) -> str:
    with pytest.raises(SettingsError) as error:
        kind(**values)
    return str(error.value)


def type_of(kind: type[Any], name: str) -> Any:
    return typing.get_type_hints(kind)[name]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_a_setting(kind: type[Any]) -> None:
    assert settings_of(kind).keys() == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_allowed_and_frozen(kind: type[Any]) -> None:
    made = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(kind)[0].name, 1)


@fields
def test_setting_explains_itself(kind: type[Any], name: str, facts: Setting) -> None:
    assert len(facts.help) > 20
    assert facts.help.endswith(".")


@fields
def test_setting_number_has_bounds(kind: type[Any], name: str, facts: Setting) -> None:
    is_number = type_of(kind, name) in (int, float)
    assert is_number == (facts.min is not None) == (facts.max is not None)


@numbers
def test_setting_bounds_are_allowed(kind: type[Any], name: str, facts: Setting) -> None:
    assert facts.problem_with(facts.min) is None
    assert facts.problem_with(facts.max) is None


@numbers
def test_setting_number_out_of_bounds(kind: type[Any], name: str, facts: Setting) -> None:
    assert facts.min is not None
    assert facts.max is not None
    number = type_of(kind, name)
    for wrong in (facts.min - 1, facts.max + 1):
        message = refusal(kind, **{name: number(wrong)})
        assert f"{name} is {number(wrong)}; allowed: {facts.min} to {facts.max}" in message


@fields
def test_setting_wrong_type(kind: type[Any], name: str, facts: Setting) -> None:
    wrongs: list[Any] = ["1", None, [1]] if type_of(kind, name) is not str else [1, None, True]
    for wrong in wrongs:
        message = refusal(kind, **{name: wrong})
        assert f"{name} is {wrong!r}; allowed" in message


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (TrainingConfig, "steps", 1.5),
        (TrainingConfig, "steps", True),
        (TrainingConfig, "learning_rate", True),
        (TrainingConfig, "gradient_checkpointing", 1),
        (TrainingConfig, "learning_rate", math.nan),
        (TrainingConfig, "learning_rate", math.inf),
        (TrainingConfig, "learning_rate", -math.inf),
    ],
)
def test_setting_almost_right(kind: type[Any], name: str, wrong: Any) -> None:
    assert f"{name} is {wrong}" in refusal(kind, **{name: wrong})


@pytest.mark.parametrize(
    ("kind", "name", "allowed"),
    [
        (DatasetConfig, "captions", CAPTION_SOURCES),
        (DatasetConfig, "masks", MASK_SOURCES),
        (TrainingConfig, "lr_schedule", LR_SCHEDULES),
        (TrainingConfig, "optimizer", OPTIMIZERS),
        (TrainingConfig, "precision", PRECISIONS),
        (LoraConfig, "targets", LORA_TARGETS),
        (LoraConfig, "variant", LORA_VARIANTS),
    ],
)
def test_choice_not_offered(kind: type[Any], name: str, allowed: tuple[str, ...]) -> None:
    assert f"{name} is 'Adam'; allowed: {', '.join(allowed)}" in refusal(kind, **{name: "Adam"})
    for choice in allowed:
        assert getattr(kind(**{name: choice}), name) == choice


def test_integer_is_a_fine_float() -> None:
    assert LoraConfig(alpha=8).alpha == 8


def test_steps_and_batch_of_zero_listed_together() -> None:
    message = refusal(TrainingConfig, steps=0, batch_size=0, precision="fp8", learning_rate="x")
    first, second = message.split("\n")
    for name in ("steps is 0", "batch_size is 0", "precision is 'fp8'", "learning_rate is 'x'"):
        assert first.count(name) == 1
    assert second == "Change them on the node and queue again."


def test_rank_of_zero() -> None:
    assert "rank is 0; allowed: 1 to 1024" in refusal(LoraConfig, rank=0)


def test_warmup_with_constant_schedule() -> None:
    assert "constant_with_warmup" in refusal(TrainingConfig, warmup_steps=10)
    assert TrainingConfig(warmup_steps=10, lr_schedule="cosine").warmup_steps == 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variant": "loha", "dropout": 0.1}, "dropout is 0.1, but variant 'loha' has none"),
        ({"variant": "oft", "rank_stabilized": True}, "allowed: False, or variant lora or dora"),
        ({"variant": "dora", "initialization": "pissa"}, "but variant is 'dora'; allowed: default"),
        ({"variant": "lokr", "lokr_factor": 0}, "lokr_factor is 0; allowed: -1, or 1 and more"),
    ],
)
def test_what_a_variant_has_not(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        LoraConfig(**settings)


def test_timestep_range_upside_down() -> None:
    message = refusal(ObjectiveConfig, timestep_min=500, timestep_max=499)
    assert "timestep_min is 500" in message
    assert "timestep_max 499" in message
    assert ObjectiveConfig(timestep_min=500, timestep_max=500).timestep_max == 500


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timestep_sampling": "uniform", "logit_std": 2.0}, "logit_mean or logit_std is set"),
        ({"discrete_flow_shift": 3.0}, "discrete_flow_shift is 3, but timestep_sampling 'auto'"),
    ],
)
def test_timestep_settings_that_contradict(settings: dict[str, Any], says: str) -> None:
    assert says in refusal(ObjectiveConfig, **settings)


def test_from_values_ignores_foreign_names() -> None:
    made = from_values(LoraConfig, {"rank": 4, "steps": 0, "model": object()})
    assert made == LoraConfig(rank=4)


def test_from_values_refuses_what_the_class_refuses() -> None:
    with pytest.raises(SettingsError, match="rank is 0"):
        from_values(LoraConfig, {"rank": 0})


@pytest.mark.parametrize("method", run.METHOD_CONFIGS)
def test_setting_names_differ_between_parts_of_a_run(method: str) -> None:
    # A node has all of them side by side.
    names = [n for kind in run.config_groups(method).values() for n in settings_of(kind)]
    assert len(names) == len(set(names))


def test_run_config_as_dict_holds_every_setting() -> None:
    made = run.RunConfig("lora", TrainingConfig(steps=7), ObjectiveConfig(), LoraConfig())
    stored = made.as_dict()
    assert stored["method"] == "lora"
    assert stored["training"]["steps"] == 7
    assert stored["objective"] == dataclasses.asdict(ObjectiveConfig())
    assert stored["own"].keys() == settings_of(LoraConfig).keys()


def test_config_imports_no_torch() -> None:
    check = "import sys, trainers.settings.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


def test_run_config_lists_the_problems_of_all_groups() -> None:
    with pytest.raises(SettingsError) as raised:
        run.run_config("lora", {"steps": 0, "rank": 0, "noise_offset": 2.0})
    assert [problem.split()[0] for problem in raised.value.problems] == [
        "steps", "noise_offset", "rank",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("lora", {"weights_in": "RAM", "checkpointing": "none"}, "needs every block computed"),
        ("lora", {"weights_in": "RAM", "checkpointing": "half"}, "needs every block computed"),
        ("lora", {"activations_in": "RAM", "checkpointing": "none"}, "keeps what blocks compute"),
        ("lora", {"checkpointing": "none", "gradient_checkpointing": True}, "checkpointing is on"),
        ("dreambooth", {"weights_in": "RAM"}, "DreamBooth trains all weights"),
    ],
)
def test_memory_settings_that_contradict(method: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        run.run_config(method, settings)


@pytest.mark.parametrize(
    ("settings", "which"),
    [
        ({}, "none"),
        ({"gradient_checkpointing": True}, "all"),
        ({"weights_in": "RAM"}, "all"),
        ({"activations_in": "RAM"}, "all"),
        ({"activations_in": "RAM", "checkpointing": "half"}, "half"),
        ({"checkpointing": "half", "gradient_checkpointing": True}, "half"),
    ],
)
def test_which_blocks_are_checkpointed(settings: dict[str, Any], which: str) -> None:
    assert run.run_config("lora", settings).checkpointed == which
