"""What comes out of a node, in hashes of every bit; and losses to plot."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from . import pack, probe, shown

Embedding = io.Custom("PERSONALIZE_EMBEDDING")


class Outputs(io.ComfyNode):
    """Hashes of what is wired in; a clip with what it makes of a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeOutputs",
            io.Model.Input("model", optional=True),
            io.Clip.Input("clip", optional=True),
            io.LoraModel.Input("lora", optional=True),
            Embedding.Input("embedding", optional=True),
            io.LossMap.Input("loss_map", optional=True),
            io.String.Input("run", force_input=True, optional=True),
            io.String.Input("prompt", default="a photo of <sks> dog", optional=True),
            io.Image.Input("images", optional=True),
        )

    @classmethod
    def execute(cls, prompt: str = "", **given: Any) -> io.NodeOutput:
        identity = pack("nodes.host.models.stored.identity")
        sd15 = pack("trainers.models.architectures").ARCHITECTURES["sd15"]
        tensors = pack("trainers.runs.fingerprint").tensors_fingerprint
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name == "model":
                found[name] = [len(value.patches), identity.model_fingerprint(value)]
            elif name == "clip":
                hashed = identity.clip_fingerprint(value, sd15, (prompt,))
                found[name] = [len(value.patcher.patches), hashed]
            elif name == "lora":
                needs = [[e.token, e.fingerprint()] for e in value.needs]
                preview = value.preview and value.preview.name
                found[name] = [tensors(dict(sorted(value.items()))), needs, preview, value.metadata]
            elif name == "images":  # each with its shape
                found[name] = [[*one.shape, tensors({"": one.contiguous()})] for one in value]
            elif name == "embedding":
                found[name] = [value.token, value.fingerprint(), dict(value.metadata)]
            else:
                found[name] = value
        return shown(found)


class Losses(io.ComfyNode):
    """A loss map, as JSON has it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeLosses",
            category="tests",
            inputs=[io.String.Input("text", multiline=True)],
            outputs=[io.LossMap.Output()],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(json.loads(text))
