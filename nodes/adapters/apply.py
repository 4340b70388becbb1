"""Nodes that put adapters to use."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sockets import PersonalizeEmbedding

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
                io.Hooks.Output(
                    display_name="hooks",
                    tooltip=(
                        "The LoRA at these strengths for ComfyUI's hook nodes, which schedule and "
                        "mask it. Sample with the untouched model then, or it counts twice."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora: Any, strength_model: float, strength_clip: float
    ) -> io.NodeOutput:
        from ..host.models.weights import apply_lora, lora_hooks

        patched = apply_lora(model, clip, lora, strength_model, strength_clip)
        return io.NodeOutput(*patched, lora_hooks(lora, strength_model, strength_clip))


class ApplyEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeApplyEmbedding",
            display_name="Apply Embedding",
            category="personalize/adapters",
            description="Teaches a clip a token that was learned in the graph, without a file.",
            search_aliases=["load embedding", "textual inversion", "use token"],
            inputs=[
                io.Clip.Input("clip", tooltip="The clip to teach it; stays as it is."),
                PersonalizeEmbedding.Input("embedding", tooltip="From Train Textual Inversion."),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Knows the token: write it in prompts as it is, or as embedding:token.",
                )
            ],
        )

    @classmethod
    def execute(cls, clip: Any, embedding: Any) -> io.NodeOutput:
        from ..host.models.tokenizer import with_embedding

        return io.NodeOutput(with_embedding(clip, embedding))
