"""The node that says which pictures a training makes on its way."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.settings.preview import PreviewConfig
from .host.sampling import SAMPLERS, SCHEDULERS
from .schema import inputs_of
from .sockets import PersonalizePreview


class PreviewSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = inputs_of(PreviewConfig)
        seed = settings.pop("seed")
        return io.Schema(
            node_id="PersonalizePreview",
            display_name="Preview Settings",
            category="personalize/train",
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
