"""What other nodes hand out for a stack, well made or not."""

from __future__ import annotations

import json

import comfy.utils
import folder_paths
from comfy_api.latest import io


class Stack(io.ComfyNode):
    """A LORA_STACK with these entries, given as JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeStack",
            category="tests",
            inputs=[io.String.Input("entries")],
            outputs=[io.Custom("LORA_STACK").Output()],
        )

    @classmethod
    def execute(cls, entries: str) -> io.NodeOutput:
        return io.NodeOutput(json.loads(entries))


class Lora(io.ComfyNode):
    """A LORA_MODEL from a file; the host has no node for that."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeLora",
            category="tests",
            inputs=[io.String.Input("name")],
            outputs=[io.LoraModel.Output()],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", name)
        return io.NodeOutput(comfy.utils.load_torch_file(path, safe_load=True))
