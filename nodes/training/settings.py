"""Nodes with settings that several trainings can share, and the pictures they make on their way."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io

from ...trainers.settings.preview import PreviewConfig
from ...trainers.settings.run import check_shared
from ..host.sampling import SAMPLERS, SCHEDULERS
from ..schema import inputs_of, shared_inputs
from ..sockets import (
    PersonalizeLoss,
    PersonalizeMemory,
    PersonalizeOptimizer,
    PersonalizePreview,
    PersonalizeRun,
)

CATEGORY = "personalize/train"
EACH = "A training takes those that its method has. What is not wired has its defaults."


class SettingsNode(io.ComfyNode):
    """What these nodes share.

    Attributes:
        PLACE: the training nodes' input that takes the settings.
    """

    PLACE: ClassVar[str]

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        check_shared(cls.PLACE, values)
        return True

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(values)


class OptimizerSettings(SettingsNode):
    PLACE = "optimizer_settings"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeOptimizer",
            display_name="Optimizer Settings",
            category=CATEGORY,
            description=(
                "How a training updates weights: optimizer, schedule, accumulation, the text "
                f"encoder's rate, averages, kinds of LoRA. {EACH}"
            ),
            search_aliases=[
                "adamw", "adafactor", "prodigy", "scheduler", "warmup", "ema", "dora", "rslora",
                "gradient accumulation", "pivotal tuning", "lycoris", "lokr", "loha", "oft",
                "pissa", "schedule free", "came", "muon",
            ],
            inputs=shared_inputs(cls.PLACE),
            outputs=[
                PersonalizeOptimizer.Output(
                    display_name="optimizer_settings",
                    tooltip="For optimizer_settings of a training node.",
                )
            ],
        )  # fmt: skip


class LossSettings(SettingsNode):
    PLACE = "loss_settings"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeLoss",
            display_name="Loss Settings",
            category=CATEGORY,
            description=(
                "What a training minimizes: weights of timesteps, noise, dropped captions, prior "
                f"preservation. {EACH}"
            ),
            search_aliases=[
                "min snr", "noise offset", "timesteps", "caption dropout", "prior preservation",
                "regularization",
            ],
            inputs=shared_inputs(cls.PLACE),
            outputs=[
                PersonalizeLoss.Output(
                    display_name="loss_settings", tooltip="For loss_settings of a training node."
                )
            ],
        )  # fmt: skip


class RunSettings(SettingsNode):
    PLACE = "run_settings"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeRun",
            display_name="Run Settings",
            category=CATEGORY,
            description=(
                "How long a training goes, which pictures it watches, and what is kept of it on "
                f"disk. {EACH}"
            ),
            search_aliases=[
                "epochs", "validation", "early stopping", "resume", "checkpoints", "tensorboard",
            ],
            inputs=shared_inputs(cls.PLACE),
            outputs=[
                PersonalizeRun.Output(
                    display_name="run_settings", tooltip="For run_settings of a training node."
                )
            ],
        )  # fmt: skip


class MemorySettings(SettingsNode):
    PLACE = "memory_settings"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeMemory",
            display_name="Memory and Speed Settings",
            category=CATEGORY,
            description=(
                "For models that are large for the GPU: weights and activations in RAM, "
                f"checkpointing, 8-bit bases, a plan of memory; and what makes steps faster. {EACH}"
            ),
            search_aliases=[
                "block swap", "blocks to swap", "offload", "low vram", "fp8 base", "quantize",
                "gradient checkpointing", "torch compile", "tread",
            ],
            inputs=shared_inputs(cls.PLACE),
            outputs=[
                PersonalizeMemory.Output(
                    display_name="memory_settings",
                    tooltip="For memory_settings of a training node.",
                )
            ],
        )  # fmt: skip


class PreviewSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = inputs_of(PreviewConfig)
        seed = settings.pop("seed")
        return io.Schema(
            node_id="PersonalizePreview",
            display_name="Preview Settings",
            category=CATEGORY,
            description=(
                "Pictures that a training makes every so many steps, with the model as it is "
                "then: the same prompts and seed each time. They do not change what is learned."
            ),
            search_aliases=["sample images while training", "validation prompts", "samples"],
            inputs=[
                *settings.values(),
                io.Combo.Input(
                    "sampler_name", options=SAMPLERS, default="euler", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=SCHEDULERS, default="normal", tooltip="As in KSampler."
                ),
                seed,
                io.Image.Input(
                    "control_images",
                    optional=True,
                    tooltip="For edit models: what the pictures are made from. As many as each "
                    "picture of the dataset has, for all prompts; or a batch with as many for each "
                    "prompt, in the order of the prompts.",
                ),
            ],
            outputs=[
                PersonalizePreview.Output(
                    display_name="preview", tooltip="For preview of a training node."
                )
            ],
        )

    @classmethod
    def execute(cls, control_images: Any = None, **values: Any) -> io.NodeOutput:
        shown = () if control_images is None else tuple(control_images)
        return io.NodeOutput(PreviewConfig(**values, control_images=shown))
