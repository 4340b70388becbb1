"""Nodes that keep what a training made in files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sockets import PersonalizeEmbedding

# The words of saved graphs; "kohya" is the spelling of the model's community, whichever that is.
KOHYA, DIFFUSERS = "kohya", "diffusers"
FORMATS = tuple(
    f"{name} {dtype}" for name in (KOHYA, DIFFUSERS) for dtype in ("fp32", "fp16", "bf16")
)


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSaveLora",
            display_name="Save LoRA",
            category="personalize/results",
            description=(
                "Saves a LoRA for ComfyUI, A1111, Forge and diffusers, with its settings and "
                "trigger phrase. Files in output/loras can be picked in Load LoRA at once."
            ),
            search_aliases=["export lora", "lora file", "safetensors"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Train LoRA, or any node that makes one."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/%dataset%",
                    tooltip=(
                        "Folder and beginning of the file's name, inside output/. %dataset% "
                        "becomes the name of the pictures' folder."
                    ),
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    tooltip=(
                        "Spelling of the keys and type of the numbers. kohya is that of the "
                        "model's community, which ComfyUI, A1111 and Forge read; diffusers what "
                        "its pipelines, peft and ComfyUI read (with model wired in; no DoRA). "
                        "fp32 is exact; fp16 and bf16 make half the file."
                    ),
                ),
                *_choices(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(
        cls,
        lora: Any,
        filename_prefix: str,
        format: str,
        bundle_embedding: bool = False,
        captions: bool = False,
        thumbnail: bool = True,
        workflow: bool = False,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        from ..host.files import Choices, save_lora

        graph = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        spelling, dtype = format.split()
        choices = Choices(
            diffusers=spelling == DIFFUSERS,
            bundle=bundle_embedding,
            captions=captions,
            thumbnail=thumbnail,
            graph=graph if workflow else {},
        )
        path = save_lora(lora, filename_prefix, dtype, choices, model, clip)
        return io.NodeOutput(str(path), ui={"text": [str(path)]})


def _choices() -> list[io.Input]:
    """What a LoRA's file is to hold, and what it is to be checked with."""
    return [
        io.Boolean.Input(
            "bundle_embedding",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Put the learned token that the captions have into the file, for A1111 and "
                "Forge (bundle_emb). There must be exactly one."
            ),
        ),
        io.Boolean.Input(
            "captions",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Put captions, the trigger phrase and the name of the pictures' folder "
                "into the file, for everyone who gets it."
            ),
        ),
        io.Boolean.Input(
            "thumbnail",
            default=True,
            optional=True,
            advanced=True,
            tooltip=(
                "Put the last preview of the training beside the file, as a picture of "
                "the same name, where LoRA managers look for it."
            ),
        ),
        io.Boolean.Input(
            "workflow",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Put this graph into the file, as ComfyUI does with its own; it names "
                "your folders and prompts."
            ),
        ),
        io.Model.Input(
            "model",
            optional=True,
            tooltip=(
                "The base model: the file is read back for it, and kept only if ComfyUI reads all "
                "of it and then predicts what it does with the LoRA in the graph."
            ),
        ),
        io.Clip.Input("clip", optional=True, tooltip="Its clip, for the same check."),
    ]


class SaveEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSaveEmbedding",
            display_name="Save Embedding",
            category="personalize/results",
            description=(
                "Saves a learned token for ComfyUI, A1111, Forge and diffusers. Files in "
                "output/embeddings can be used in prompts at once, as embedding:name."
            ),
            search_aliases=["export embedding", "textual inversion file", "save token"],
            is_output_node=True,
            inputs=[
                PersonalizeEmbedding.Input("embedding", tooltip="From Train Textual Inversion."),
                io.String.Input(
                    "filename_prefix",
                    default="embeddings/%token%",
                    tooltip=(
                        "Folder and beginning of the file's name, inside output/. %token% becomes "
                        "the token's letters and digits."
                    ),
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, embedding: Any, filename_prefix: str) -> io.NodeOutput:
        from ..host.files import save_embedding

        path = save_embedding(embedding, filename_prefix)
        return io.NodeOutput(str(path), ui={"text": [str(path)]})
