"""The node that captions a folder's pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...trainers.data.listing import folder_state
from ...trainers.settings.dataset import CaptioningConfig
from ...trainers.settings.field import from_values
from ..host.captions.models import WIRED, captioners
from ..host.folders import NO_FOLDER, dataset_folder, dataset_folders, folder_problem
from ..schema import inputs_of


class CaptionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeCaptionImages",
            display_name="Caption Images",
            category="personalize/dataset",
            description=(
                "Has a model describe every picture of a folder: a vision-language text encoder of "
                "ComfyUI, Florence-2, BLIP and others of the transformers library, or a WD14 "
                "tagger. Shows what it says; writes it beside the pictures when asked to, and "
                "never over a caption unless asked to do that too."
            ),
            search_aliases=[
                "auto caption", "captioning", "tagger", "wd14", "florence2", "blip", "qwen vl",
                "joycaption", "interrogate", "describe images", "dataset captions",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=dataset_folders() or [NO_FOLDER],
                    tooltip="A folder in ComfyUI's input folder, as on Training Images (Folder).",
                ),
                io.Combo.Input(
                    "model",
                    options=[WIRED, *captioners()],
                    tooltip="What writes the captions: the text encoder at clip, or a model in "
                    "models/captioners or models/LLM: the folder of one for the transformers "
                    "library, or the ONNX file of a tagger. The help page says which.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    lazy=True,
                    tooltip="A text encoder that can describe a picture, as for Generate Text: "
                    "Qwen3-VL, Gemma 3 and others by Load CLIP. Read where model is "
                    f"'{WIRED}'.",
                ),
                *inputs_of(CaptioningConfig).values(),
            ],
            outputs=[
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="The caption of every picture, a list in the folder's order: new ones, "
                    "and those that there were.",
                ),
                io.Int.Output(display_name="count", tooltip="How many captions are new."),
                io.AnyType.Output(
                    display_name="folder",
                    tooltip="The folder's name, for folder of Training Images (Folder): it then "
                    "reads the captions after they are written.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        return True if folder is None else folder_problem(str(folder)) or True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **settings: Any) -> str | float:
        return float("nan") if folder is None else folder_state(dataset_folder(str(folder)))

    @classmethod
    def check_lazy_status(cls, model: str, **inputs: Any) -> list[str]:
        # None is wired and not there yet; where nothing is wired there is no such input.
        asked = model == WIRED and inputs.get("clip", WIRED) is None
        return ["clip"] if asked else []

    @classmethod
    def execute(cls, folder: str, model: str, clip: Any = None, **settings: Any) -> io.NodeOutput:
        from ..host.captions.captioning import caption_folder, show

        config = from_values(CaptioningConfig, settings)
        done = caption_folder(folder, model, clip, config)
        captions = list(done.captions.values())
        return io.NodeOutput(captions, len(done.made), folder, ui=show(done))
