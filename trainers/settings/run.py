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
from .field import from_values, raise_problems, value_problems
from .memory import ALL, AUTO, NONE, RAM, MemoryConfig
from .methods.dreambooth import DREAMBOOTH_DEFAULTS, DreamBoothConfig
from .methods.lora import LoraConfig
from .methods.textual_inversion import TextualInversionConfig
from .objective import ObjectiveConfig
from .store import StoreConfig
from .training import AS_IT_IS, FIND_RATE, TrainingConfig
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

# In which node each setting stands, and in what order. A saved graph stores the values of widgets
# by their place, so new ones only ever come last. Few stand on the training node itself; the others
# are on nodes whose sockets several trainings share, where a method takes those that it has.
#
# On the training nodes, by method; the last four are every method's.
ON_TRAINER: Mapping[str, tuple[str, ...]] = {
    "lora": (
        "steps", "learning_rate", "rank", "alpha", "targets", "train_text_encoder",
        "batch_size", "precision", "gradient_checkpointing", "seed",
    ),
    "dreambooth": (
        "steps", "learning_rate", "train_text_encoder", "weights", "fused_backward",
        "batch_size", "precision", "gradient_checkpointing", "seed",
    ),
    "textual_inversion": (
        "token", "initializer", "vectors", "templates", "steps", "learning_rate",
        "batch_size", "precision", "gradient_checkpointing", "seed",
    ),
}  # fmt: skip
# On nodes of their own, by the training nodes' inputs that take them.
ON_OTHERS: Mapping[str, tuple[str, ...]] = {
    "optimizer_settings": (
        "optimizer", "lr_schedule", "warmup_steps", "weight_decay", "max_grad_norm",
        "gradient_accumulation", "text_encoder_learning_rate", "text_encoder_stop_step",
        "train_token", "token_learning_rate", "ema_decay", "ema_on_cpu", "variant",
        "rank_stabilized", "dropout", "norm_control", "initialization", "lokr_factor",
        "ema_update_step_interval", "adapter_weights",
    ),
    "loss_settings": (
        "min_snr_gamma", "noise_offset", "timestep_min", "timestep_max", "caption_dropout",
        "prior_weight", "prior", "class_prompt", "prior_samples",
        "timestep_sampling", "logit_mean", "logit_std", "discrete_flow_shift", "caption_prefix",
        "shuffle_caption", "keep_tokens", "caption_tag_dropout_rate", "enable_wildcard",
        "caption_variants",
    ),
    "run_settings": (
        "epochs", "held_out", "validate_every", "hand_out", "patience", "if_run_exists",
        "state_every", "keep_states", "old_states_gb", "log_with", "deterministic", "resume_from",
        "resume_step",
    ),
    "memory_settings": (
        "weights_in", "checkpointing", "activations_in", "quantize_base", "compile",
        "tread_selection_ratio", "memory_plan",
    ),
}  # fmt: skip
# Class images would keep what Textual Inversion does not change.
WITHOUT: Mapping[str, tuple[str, ...]] = {
    "textual_inversion": ("prior_weight", "prior", "class_prompt", "prior_samples"),
}


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run: what run.json stores.

    Attributes:
        method: one of METHODS.
        own: the method's own settings, of its class in METHOD_CONFIGS.
        validation: which pictures are watched, and what follows from it.
        store: how it is kept; nothing in it changes the result but the state that it begins with.
        memory: where it keeps what; nothing in it changes the result.
    """

    method: str
    training: TrainingConfig
    objective: ObjectiveConfig
    own: Any
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        found = self._memory_conflicts() + self.training.conflicts(self.own)
        if isinstance(self.own, DreamBoothConfig):
            loop = self.training
            found += self.own.conflicts(loop.optimizer, loop.gradient_accumulation, loop.precision)
        if self.objective.preserves_output and self.method != "lora":
            found.append(
                "prior is 'output preservation', which switches the LoRA off to ask the base, but "
                "this training changes the base's weights themselves; allowed: 'class images' or "
                "'teacher'"
            )
        raise_problems(found)

    @property
    def text_rate(self) -> float:
        """The learning rate of text encoders that train."""
        rate: float = self.own.text_encoder_learning_rate
        tenth = self.method == "lora" and self.training.optimizer not in FIND_RATE
        return rate or self.training.learning_rate * (0.1 if tenth else 1.0)

    @property
    def changes_weights(self) -> bool:
        """Whether the base's own weights are trained, so that a method needs copies of them."""
        return isinstance(self.own, DreamBoothConfig)

    @property
    def checkpointed(self) -> str:
        """Which blocks compute their activations again: one of CHECKPOINTED."""
        if self.memory.checkpointing != AUTO:
            return self.memory.checkpointing
        # Both are of checkpointed blocks.
        in_ram = RAM in (self.memory.weights_in, self.memory.activations_in)
        return ALL if self.training.gradient_checkpointing or in_ram else NONE

    def _memory_conflicts(self) -> list[str]:
        found = []
        memory, training = self.memory, self.training
        if memory.checkpointing == NONE and training.gradient_checkpointing:
            found.append(
                "checkpointing is 'none', but gradient_checkpointing is on; allowed: auto, half or "
                "all, or gradient_checkpointing off"
            )
        if training.compile and memory.weights_in == RAM:
            found.append(
                "compile is on, but weights_in is 'RAM', whose blocks have other weights each time "
                "they run; allowed: compile off, or weights_in auto or device"
            )
        if self.changes_weights and memory.weights_in == RAM:
            found.append(
                "weights_in is 'RAM', but DreamBooth trains all weights, which must be on the "
                "device; allowed: auto or device"
            )
        if self.changes_weights and training.quantize_base != AS_IT_IS:
            found.append(
                f"quantize_base is '{training.quantize_base}', but DreamBooth trains the base's "
                "own weights, which must be plain numbers; allowed: none"
            )
        return found

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
        "memory": MemoryConfig,
    }


def together(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that a training node was given: by its widgets, and by what is wired to it."""
    wired = (given.get(name) or {} for name in ON_OTHERS)
    values = {name: value for settings in wired for name, value in settings.items()}
    for name in WITHOUT.get(method, ()):
        values.pop(name, None)
    return values | {name: given[name] for name in ON_TRAINER[method] if name in given}


def check_queued(method: str, values: Mapping[str, Any]) -> None:
    """See that the settings on a training node are allowed, before those wired to it are known.

    Args:
        values: None for a single setting that is wired.

    Raises:
        SettingsError: they are not, or contradict each other; all that is wrong is listed.
    """
    values = _known(values)
    groups = config_groups(method).values()
    raise_problems([problem for group in groups for problem in value_problems(group, values)])
    if all(name in values for name in ON_TRAINER[method]):
        _together(method, values)


def check_shared(place: str, values: Mapping[str, Any]) -> None:
    """The same for the settings on a node of their own, by their place in ON_OTHERS."""
    values = _known(values)
    groups = (TrainingConfig, ObjectiveConfig, ValidationConfig, StoreConfig, MemoryConfig)
    groups += tuple(METHOD_CONFIGS.values())
    raise_problems({problem for group in groups for problem in value_problems(group, values)})
    if all(name in values for name in ON_OTHERS[place]):
        for group in (*groups[:5], LoraConfig):
            from_values(group, values)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def run_config(method: str, values: Mapping[str, Any]) -> RunConfig:
    """All settings of a run from one flat mapping, as a node has them.

    Raises:
        SettingsError: one or more values are not allowed; all of every group are listed.
    """
    config = _together(method, values)
    raise_problems(config.training.no_rate(config.own))
    return config


def _together(method: str, values: Mapping[str, Any]) -> RunConfig:
    """The same of settings that others may come to, which may find a rate."""
    made: dict[str, Any] = {}
    problems: list[str] = []
    for name, config_class in config_groups(method).items():
        try:
            made[name] = from_values(config_class, METHOD_DEFAULTS[method] | dict(values))
        except SettingsError as error:
            problems += error.problems
    raise_problems(problems)
    return RunConfig(method, **made)
