"""Every number and choice the user can set: default, bounds, help and source, written once.

Nothing here imports torch: nodes build their widgets from these fields, scripts read them, and
run.json stores them. Sources: D = diffusers' training scripts, K = kohya sd-scripts,
O = OneTrainer, P = the method's paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .dreambooth_settings import DREAMBOOTH_DEFAULTS, DreamBoothConfig
from .errors import SettingsError
from .inversion_settings import TextualInversionConfig, token_learning_rate, train_token
from .settings import check, from_values, raise_problems, setting
from .store_settings import StoreConfig
from .validation_settings import ValidationConfig

CAPTION_SOURCES = (
    "auto", "txt", "caption", "metadata.jsonl", "file name", "prompt",
)  # fmt: skip
MASK_SOURCES = ("none", "auto", "alpha", "file")


@dataclass(frozen=True)
class DatasetConfig:
    """How a folder or a batch of pictures becomes a dataset."""

    prompt: str = setting(
        "a photo of sks",
        "The caption of every picture that has none of its own: what the subject is, with a rare "
        "word for its name, as in 'a photo of sks dog'.",
        advanced=False,
    )
    resolution: int = setting(
        512,
        "Training size in pixels: pictures keep their shape, with about this much squared of area. "
        "512 for Stable Diffusion 1.5. Smaller is faster and needs less memory.",
        min=64, max=2048, step=64, advanced=False,
        source="SD1.5 was trained at 512",
    )  # fmt: skip
    captions: str = setting(
        "auto",
        "Where captions come from. auto takes the first of: metadata.jsonl, .txt, .caption files; "
        "else the prompt. The node says what it found.",
        choices=CAPTION_SOURCES,
    )
    masks: str = setting(
        "none",
        "What limits the loss to a part of each picture: nothing, the picture's alpha channel, or "
        "a file beside it (name.mask.png or name-masklabel.png; white is trained). auto takes a "
        "mask file if there is one, else the alpha channel if there is one.",
        choices=MASK_SOURCES,
    )
    buckets: bool = setting(
        True,
        "Group pictures by shape (sides are multiples of 64, area at most the resolution squared) "
        "so that little is cut off. Off: every picture is cut to a square.",
    )
    max_aspect_ratio: float = setting(
        4.0,
        "The longest side over the shortest that a picture may have with buckets on.",
        min=1.0, max=16.0, step=0.1,
    )  # fmt: skip
    upscale: bool = setting(
        False,
        "Enlarge pictures that are smaller than the resolution. Off: they train at their own "
        "size, which keeps them sharp.",
        source="K bucket_no_upscale",
    )

    def __post_init__(self) -> None:
        check(self)


LR_SCHEDULES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
)  # fmt: skip
OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor", "prodigy", "lion")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True)
class TrainingConfig:
    """The loop: how long, how fast, with what optimizer, in what precision."""

    steps: int = setting(
        500,
        "Optimizer updates. 500 is a start for a handful of pictures; too many copy them.",
        min=1, max=1_000_000, advanced=False, source="D LoRA 500",
    )  # fmt: skip
    batch_size: int = setting(
        1,
        "Pictures in one forward pass. More is steadier and needs more memory.",
        min=1, max=256, advanced=False, source="D, K: 1",
    )  # fmt: skip
    learning_rate: float = setting(
        1e-4,
        "How far each update goes. LoRA: 1e-4 (D), up to 3e-4 (O). Textual Inversion: 3e-4 (O) to "
        "2e-3 (D). Prodigy wants 1.0.",
        min=0.0, max=10.0, step=1e-6, advanced=False, source="D 1e-4",
    )  # fmt: skip
    epochs: int = setting(
        0,
        "Passes over the whole dataset; 0 uses steps instead, any other number replaces steps.",
        min=0, max=100_000,
    )  # fmt: skip
    gradient_accumulation: int = setting(
        1,
        "Forward passes that are summed into one update: a larger batch without its memory.",
        min=1, max=1024,
    )  # fmt: skip
    lr_schedule: str = setting(
        "constant", "How the learning rate changes over the run (diffusers' schedules).",
        choices=LR_SCHEDULES, source="D constant",
    )  # fmt: skip
    warmup_steps: int = setting(
        0,
        "Updates over which the learning rate rises from zero; the schedule must not be constant.",
        min=0, max=100_000, source="D LoRA 0",
    )  # fmt: skip
    optimizer: str = setting(
        "adamw",
        "adamw: fused AdamW of PyTorch. adamw_8bit: a quarter of its state, needs bitsandbytes. "
        "adafactor: the least state. prodigy: finds its own rate, needs prodigyopt. lion: half of "
        "AdamW's state, wants a tenth of its rate, needs bitsandbytes.",
        choices=OPTIMIZERS,
    )
    weight_decay: float = setting(
        1e-2, "Pull of the trained weights towards zero, per update, times the learning rate.",
        min=0.0, max=1.0, step=1e-4, source="D 1e-2",
    )  # fmt: skip
    max_grad_norm: float = setting(
        1.0, "Gradients longer than this are shortened to it; 0 turns clipping off.",
        min=0.0, max=1000.0, step=0.1, source="D, K, O: 1.0",
    )  # fmt: skip
    precision: str = setting(
        "auto",
        "Arithmetic of the frozen weights and activations; what is trained is always fp32. auto: "
        "bf16 where the device has it, else fp16 on CUDA, else fp32.",
        choices=PRECISIONS,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute activations in the backward pass: about a third slower, far less memory.",
    )
    seed: int = setting(
        0,
        "Start of every random draw: the same seed and settings give the same result.",
        min=0, max=2**63 - 1, advanced=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        if self.warmup_steps and self.lr_schedule == "constant":
            raise_problems(
                [f"warmup_steps is {self.warmup_steps} but lr_schedule 'constant' has no warm-up; "
                 "allowed: 0, or lr_schedule 'constant_with_warmup'"]
            )  # fmt: skip


PRIORS = ("class images", "teacher")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss: noise, timesteps, weights."""

    min_snr_gamma: float = setting(
        0.0,
        "Caps the weight of timesteps with little noise (min-SNR); 5 is the paper's choice, 0 is "
        "off.",
        min=0.0, max=100.0, step=0.1, source="P arXiv 2303.09556",
    )  # fmt: skip
    noise_offset: float = setting(
        0.0,
        "Adds a little noise that is constant over each channel, so that very dark and very "
        "bright pictures can be learned; 0.05 is usual.",
        min=0.0, max=1.0, step=0.005, source="K 0.0357 for SDXL",
    )  # fmt: skip
    caption_dropout: float = setting(
        0.0,
        "Share of samples trained with an empty caption; keeps guidance (CFG) working in long "
        "runs.",
        min=0.0, max=1.0, step=0.01,
    )  # fmt: skip
    timestep_min: int = setting(
        0, "Lowest timestep that is trained (0 is almost no noise).", min=0, max=999,
    )  # fmt: skip
    timestep_max: int = setting(
        999, "Highest timestep that is trained (999 is almost only noise).", min=0, max=999,
    )  # fmt: skip
    prior_weight: float = setting(
        1.0,
        "Weight of the class images in the loss, if there are any (prior preservation); 0 leaves "
        "them out.",
        min=0.0, max=100.0, step=0.05, source="P DreamBooth arXiv 2208.12242; D, K 1.0",
    )  # fmt: skip

    prior: str = setting(
        "class images",
        "Where prior preservation comes from. class images: the class_dataset, if one is wired. "
        "teacher: no pictures; before training, the base model itself says what it predicts for "
        "the class prompt, and training holds on to that.",
        choices=PRIORS,
    )  # fmt: skip
    class_prompt: str = setting(
        "", "What the teacher keeps as it is, such as 'a photo of a dog'. Only for prior teacher.",
    )  # fmt: skip
    prior_samples: int = setting(
        100,
        "Predictions that the teacher makes before training: each costs one forward pass, and "
        "memory for two latents.",
        min=1, max=100_000, source="D 100 class images",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        problems = []
        if self.timestep_min > self.timestep_max:
            problems.append(
                f"timestep_min is {self.timestep_min}, above timestep_max {self.timestep_max}; "
                "allowed: 0 <= timestep_min <= timestep_max <= 999"
            )
        if self.uses_teacher and not self.class_prompt.strip():
            problems.append(
                "class_prompt is empty, but prior 'teacher' needs one; "
                "allowed: any text, such as 'a photo of a dog'"
            )
        raise_problems(problems)

    @property
    def uses_teacher(self) -> bool:
        return self.prior == "teacher" and self.prior_weight > 0


LORA_TARGETS = ("attention", "attention and feed-forward", "all with convolutions")
LORA_VARIANTS = ("lora", "dora")


@dataclass(frozen=True)
class LoraConfig:
    """The adapter: which layers, how large, of what kind."""

    rank: int = setting(
        16, "Size of the adapter: more learns more detail and makes a larger file.",
        min=1, max=1024, advanced=False, source="O 16; D 4",
    )  # fmt: skip
    alpha: float = setting(
        16.0, "Strength of the adapter at rank equal to alpha; alpha / rank scales it.",
        min=0.01, max=4096.0, step=0.5, advanced=False, source="D alpha = rank",
    )  # fmt: skip
    train_text_encoder: bool = setting(
        False,
        "Train a LoRA of the text encoder too: better faces and prompts, more memory and time.",
        advanced=False,
    )
    text_encoder_learning_rate: float = setting(
        1e-5, "Learning rate of the text encoder's LoRA, if it is trained. Prodigy wants 1.0.",
        min=0.0, max=10.0, step=1e-6, source="K 1e-5; D 5e-6",
    )  # fmt: skip
    targets: str = setting(
        "attention",
        "Layers that get an adapter. attention is small and the usual choice; feed-forward and "
        "convolutions learn texture and style better and make larger files.",
        choices=LORA_TARGETS, source="D attention",
    )  # fmt: skip
    variant: str = setting(
        "lora",
        "lora, or dora: the direction and the length of each weight are learned apart, closer to "
        "full training and slower.",
        choices=LORA_VARIANTS, source="P DoRA arXiv 2402.09353",
    )  # fmt: skip
    rank_stabilized: bool = setting(
        False, "Scale by alpha / sqrt(rank) instead of alpha / rank, so that high ranks keep up.",
        source="P rsLoRA arXiv 2312.03732",
    )  # fmt: skip
    dropout: float = setting(
        0.0, "Share of adapter inputs set to zero in training, against overfitting.",
        min=0.0, max=0.9, step=0.05,
    )  # fmt: skip
    train_token: bool = train_token()
    token_learning_rate: float = token_learning_rate()

    def __post_init__(self) -> None:
        check(self)

    @property
    def trains_text(self) -> bool:
        return self.train_text_encoder or self.train_token


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
