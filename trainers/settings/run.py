"""All settings of one run, and where a method wants another default than the shared settings have.

Nothing here imports torch: nodes build their widgets from these fields, scripts read them, and
run.json stores them. Sources: D = diffusers' training scripts, K = kohya sd-scripts,
O = OneTrainer, P = the method's paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingsError
from .dreambooth import DREAMBOOTH_DEFAULTS, DreamBoothConfig
from .field import from_values, raise_problems, settings_of, value_problems
from .lora import LoraConfig
from .objective import ObjectiveConfig
from .store import StoreConfig
from .textual_inversion import TextualInversionConfig
from .training import TrainingConfig
from .validation import ValidationConfig

# Each method's own settings, by its name in METHODS.
METHOD_CONFIGS: dict[str, type[Any]] = {
    "lora": LoraConfig,
    "dreambooth": DreamBoothConfig,
    "textual_inversion": TextualInversionConfig,
}
# Where a method wants another default than the shared settings have.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dreambooth": DREAMBOOTH_DEFAULTS,
    # Adam moves a number by at most about the rate each step, and a row's are about 0.014: K's
    # documented 1e-6 learns nothing in 1600 steps. D 5e-4 x 4 (--scale_lr) for 3000 steps, O 3e-4.
    "textual_inversion": {"learning_rate": 1e-3, "steps": 2000},
}


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run: what run.json stores.

    Attributes:
        method: one of METHODS.
        own: the method's own settings, of its class in METHOD_CONFIGS.
        validation: which pictures are watched, and what follows from it.
        store: how it is kept; nothing in it changes the result.
    """

    method: str
    training: TrainingConfig
    objective: ObjectiveConfig
    own: Any
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    store: StoreConfig = field(default_factory=StoreConfig)

    def __post_init__(self) -> None:
        if isinstance(self.own, DreamBoothConfig):
            loop = self.training
            raise_problems(
                self.own.conflicts(loop.optimizer, loop.gradient_accumulation, loop.precision)
            )

    @property
    def changes_weights(self) -> bool:
        """Whether the base's own weights are trained, so that a method needs copies of them."""
        return isinstance(self.own, DreamBoothConfig)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def config_groups(method: str) -> dict[str, type[Any]]:
    """The classes of a run's settings, by their place in RunConfig."""
    return {
        "training": TrainingConfig,
        "objective": ObjectiveConfig,
        "own": METHOD_CONFIGS[method],
        "validation": ValidationConfig,
        "store": StoreConfig,
    }


def check_values(method: str, values: Mapping[str, Any]) -> None:
    """See that settings are allowed, as far as they are known; all of them, that they go together.

    Raises:
        SettingsError: they are not, or do not; all that is wrong is listed.
    """
    groups = config_groups(method).values()
    if all(name in values for group in groups for name in settings_of(group)):
        run_config(method, values)
    raise_problems([problem for group in groups for problem in value_problems(group, values)])


def run_config(method: str, values: Mapping[str, Any]) -> RunConfig:
    """All settings of a run from one flat mapping, as a node has them.

    Raises:
        SettingsError: one or more values are not allowed; all of every group are listed.
    """
    made: dict[str, Any] = {}
    problems: list[str] = []
    for name, config_class in config_groups(method).items():
        try:
            made[name] = from_values(config_class, METHOD_DEFAULTS[method] | dict(values))
        except SettingsError as error:
            problems += error.problems
    raise_problems(problems)
    return RunConfig(method, **made)
