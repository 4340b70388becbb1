"""Small models that look at pictures and read prompts: the host's own classes, and files.

The host reads a file's configuration off its shapes, and knows large ones alone; so this tells it.
"""

from __future__ import annotations

import json
import os
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io


def model_folder(name: str) -> str:
    return os.path.join(folder_paths.models_dir, name)


class Judges(io.ComfyNode):
    """The models in a folder of models/: two that look, one that reads, and their config.json."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeJudges",
            category="tests",
            inputs=[io.String.Input("folder"), io.String.Input("text", default="clip.safetensors")],
            outputs=[io.ClipVision.Output(), io.ClipVision.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(cls, folder: str, text: str) -> io.NodeOutput:
        place = model_folder(folder)
        with open(os.path.join(place, "config.json"), encoding="utf-8") as file:
            told = json.load(file)
        looking = [vision_of(place, name, told[name]) for name in ("clip", "dino")]
        clip = comfy.sd.load_clip(
            [os.path.join(place, text)], model_options={"model_config": told["text"]}
        )
        return io.NodeOutput(*looking, clip)


def vision_of(place: str, name: str, config: dict[str, Any]) -> Any:
    path = os.path.join(place, f"{name}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    model = comfy.clip_vision.ClipVisionModel(path)  # older hosts take no dict
    missing, _ = model.load_sd(
        comfy.utils.load_torch_file(os.path.join(place, f"{name}.safetensors"))
    )
    assert not missing, missing
    return model
