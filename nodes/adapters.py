"""Nodes that put adapters to use."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}


class ApplyLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeApplyLora",
            display_name="Apply LoRA",
            category="personalize/adapters",
            description="Applies a LoRA that is in the graph to a model and its clip.",
            search_aliases=["load lora", "lora strength", "lora model and clip"],
            inputs=[
                io.Model.Input("model", tooltip="The model to apply it to; stays as it is."),
                io.Clip.Input("clip", tooltip="The clip to apply it to; stays as it is."),
                io.LoraModel.Input("lora", tooltip="From Train LoRA, or any node that makes one."),
                io.Float.Input(
                    "strength_model", tooltip="How strongly the model is changed.", **STRENGTH
                ),
                io.Float.Input(
                    "strength_clip",
                    tooltip="How strongly the clip is changed, if the LoRA has a part for it.",
                    **STRENGTH,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the LoRA."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora: Any, strength_model: float, strength_clip: float
    ) -> io.NodeOutput:
        from .host.apply import apply_lora

        return io.NodeOutput(*apply_lora(model, clip, lora, strength_model, strength_clip))
