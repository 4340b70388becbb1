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
            ],
            outputs=[
                PersonalizePreview.Output(
                    display_name="preview", tooltip="For preview of a training node."
                )
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(PreviewConfig(**values))
