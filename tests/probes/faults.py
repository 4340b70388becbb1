"""What goes wrong in a host, and what is watched of it."""

from __future__ import annotations

import pathlib
import shutil
import types
from typing import Any

import comfy.model_management
import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import io

from . import pack, probe, shown


class Previewed(io.ComfyNode):
    """From now on, the latents of all previews are kept in output/previewed.safetensors.

    With `no_memory` there is none for any preview.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbePreviewed", io.Boolean.Input("no_memory", default=False))

    @classmethod
    def execute(cls, no_memory: bool) -> io.NodeOutput:
        previews, kept = pack("nodes.host.runs.previews"), {}
        sample = pack("nodes.host.sampling").sample

        def recording(*args: Any) -> torch.Tensor:
            if no_memory:
                raise torch.cuda.OutOfMemoryError("none left")
            latents = sample(*args)
            kept[f"{len(kept):04}"] = latents.contiguous()
            path = pathlib.Path(folder_paths.get_output_directory()) / "previewed.safetensors"
            safetensors.torch.save_file(kept, path)
            return latents

        previews.sample = recording
        return shown({})


class Disk(io.ComfyNode):
    """From now on, the pack finds so much room on every disk; 0 is what there is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeDisk", io.Int.Input("free_bytes"))

    @classmethod
    def execute(cls, free_bytes: int) -> io.NodeOutput:
        faked = types.SimpleNamespace(
            disk_usage=lambda path: types.SimpleNamespace(free=free_bytes)
        )
        pack("nodes.host.runs.training").shutil = faked if free_bytes else shutil
        return shown({})


class Free(io.ComfyNode):
    """From now on, the host says that its device has so much free; 0 is what there is."""

    really = staticmethod(comfy.model_management.get_free_memory)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeFree", io.Int.Input("free_bytes"))

    @classmethod
    def execute(cls, free_bytes: int) -> io.NodeOutput:
        def said(device: Any = None, torch_free_too: bool = False) -> Any:
            return (free_bytes, free_bytes) if torch_free_too else free_bytes

        comfy.model_management.get_free_memory = said if free_bytes else cls.really
        return shown({})
