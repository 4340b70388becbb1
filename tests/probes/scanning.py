"""For docs.scan: which kinds of models the host knows, and what a training made of one."""

from __future__ import annotations

import math
from typing import Any

import comfy.supported_models
import torch
from aiohttp import web
from comfy_api.latest import io
from server import PromptServer

from . import host_prediction, noisy_latents, probe, relative, shown

ENDINGS = (".lora_B.weight", ".lora_up.weight")  # of what starts at zero


@PromptServer.instance.routes.get("/probes/models")
async def models(request: web.Request) -> web.Response:
    """The classes that the host reads a checkpoint as."""
    return web.json_response({"models": [kind.__name__ for kind in comfy.supported_models.models]})


class Kind(io.ComfyNode):
    """What the host says that a MODEL predicts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeKind", io.Model.Input("model"))

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return shown({"predicts": model.model.model_type.name})


class Learned(io.ComfyNode):
    """How many adapters of a LoRA have moved, and whether all numbers are finite."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeLearned", io.LoraModel.Input("lora"), io.LossMap.Input("loss_map"))

    @classmethod
    def execute(cls, lora: Any, loss_map: Any) -> io.NodeOutput:
        ends = [tensor for name, tensor in lora.items() if name.endswith(ENDINGS)]
        finite = [bool(torch.isfinite(tensor).all()) for tensor in lora.values()]
        losses = loss_map["loss"]
        return shown({
            "adapters": len(ends),
            "moved": sum(bool(tensor.any()) for tensor in ends),
            "finite": all(finite) and all(math.isfinite(loss) for loss in losses),
            "steps": len(losses),
        })  # fmt: skip


class Loaded(io.ComfyNode):
    """The host's prediction with a LoRA from the socket and from a file, and without."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = [io.Model.Input(name) for name in ("base", "trained", "loaded")]
        return probe("ProbeLoaded", *models, io.Conditioning.Input("conditioning"))

    @classmethod
    def execute(cls, base: Any, trained: Any, loaded: Any, conditioning: Any) -> io.NodeOutput:
        noisy = noisy_latents(base)
        before, ours, theirs = (
            host_prediction(model, noisy, 500, conditioning) for model in (base, trained, loaded)
        )
        return shown({"changed": relative(ours, before), "away": relative(theirs, ours)})
