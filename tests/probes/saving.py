"""What happens to a LoRA's file between writing and checking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from comfy_api.latest import io

from . import pack, probe, shown

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_v"
Tensors = dict[str, torch.Tensor]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_number(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    tensors[max(tensors)].view(-1)[0] += 1
    safetensors.torch.save_file(tensors, path, metadata)


class Tamper(io.ComfyNode):
    """From now on, Save LoRA's files are tampered with; "no" is as it was.

    "cut" and "number" do so to what is written; "scale", "half" and "name" to what is to be.
    """

    kept: tuple[Any, Any] | None = None

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeTamper", io.String.Input("how"))

    @classmethod
    def execute(cls, how: str) -> io.NodeOutput:
        files = pack("nodes.host.files")
        if Tamper.kept is None:
            Tamper.kept = (files.save_tensors, files.diffusers_spelling)
        save, spelling = files.save_tensors, files.diffusers_spelling = Tamper.kept

        def saved(path: Path, *args: Any) -> None:
            save(path, *args)
            {"cut": cut, "number": other_number}[how](path)

        def spelled(*args: Any) -> Tensors:
            tensors = spelling(*args)
            up, down = (f"{LAYER}_lora.{end}.weight" for end in ("up", "down"))
            if how == "scale":
                tensors[down] = tensors[down] * 1.5
            elif how == "half":
                del tensors[down]
            elif how == "name":
                tensors |= {key.replace("_v_", "_w_"): tensors.pop(key) for key in (up, down)}
            return tensors

        if how in ("cut", "number"):
            files.save_tensors = saved
        elif how != "no":
            files.diffusers_spelling = spelled
        return shown({})
