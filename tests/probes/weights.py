"""What becomes of the host's weights: shared by twins, moved, counted before they are saved."""

from __future__ import annotations

import gc
import threading
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy_api.latest import io

from . import pack, parts_of, probe, shown


class Sharing(io.ComfyNode):
    """How many tensors of the twins stand on the host's own storage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeSharing", io.Model.Input("model"), io.Clip.Input("clip"))

    @classmethod
    def execute(cls, model: Any, clip: Any) -> io.NodeOutput:
        found = {}
        hosts = {"denoiser": model.model.diffusion_model, "text": clip.cond_stage_model}
        with parts_of(model, clip) as parts:
            for name, module in parts.modules.items():
                host = hosts["denoiser" if name == "denoiser" else "text"]
                addresses = {p.data_ptr() for p in host.parameters()}
                pointers = [p.data_ptr() for p in module.parameters()]
                found[name] = [sum(p in addresses for p in pointers), len(pointers)]
        return shown(found)


class Streamed(io.ComfyNode):
    """A twin of a denoiser whose layers have notes on them, as when its host streams weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeStreamed", io.Model.Input("model"), io.Clip.Input("clip"))

    @classmethod
    def execute(cls, model: Any, clip: Any) -> io.NodeOutput:
        layer = model.model.diffusion_model.out[2]
        notes = {"_v_weight": torch.ones(2, 2), "_pin_state": threading.Lock()}  # has no copy
        vars(layer).update(notes)
        try:
            with parts_of(model, clip) as parts:
                twin = parts.denoiser.out[2]
                return shown({
                    "twin": [note for note in notes if note in vars(twin)],
                    "host": [note for note in notes if vars(layer).get(note) is notes[note]],
                })  # fmt: skip
        finally:
            for note in notes:
                vars(layer).pop(note, None)


class Alive(io.ComfyNode):
    """How many buffers for weights that wait in RAM are left."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeAlive")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        kind = pack("trainers.models.streaming").Stream
        # Without a collection: a training has made one at its end.
        streams = [one for one in gc.get_objects() if type(one) is kind]  # none looks closer
        return shown({"buffers": sum(len(stream.buffers) for stream in streams)})


class Room(io.ComfyNode):
    """How many models stay loaded where a host runs them on the CPU beside its GPU."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeRoom", io.Clip.Input("clip"))

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        management = comfy.model_management
        management.load_models_gpu([clip.patcher])
        before, unload_all = len(management.current_loaded_models), management.unload_all_models
        management.unload_all_models = lambda: None  # of a GPU, which has none
        try:
            pack("nodes.host.memory").make_room()
        finally:
            management.unload_all_models = unload_all
        return shown({"before": before, "after": len(management.current_loaded_models)})


class GivenUp(io.ComfyNode):
    """How many models stay loaded where one that was given up is found while room is made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeGivenUp")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        management, make_room = comfy.model_management, pack("nodes.host.memory").make_room
        make_room()
        gc.disable()
        try:
            lost, kept = _patcher(2), _patcher(1)  # the smaller one leaves first
            management.load_models_gpu([lost])
            management.load_models_gpu([kept])
            event = comfy.patcher_extension.CallbacksMP.ON_DETACH
            kept.add_callback(event, lambda *_: gc.collect())
            lost.model.circle = lost
            del lost
            make_room()
        finally:
            gc.enable()
        return shown({"after": len(management.current_loaded_models)})


def _patcher(width: int) -> Any:
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(torch.nn.Linear(width, width), cpu, cpu)


class Saved(io.ComfyNode):
    """How many bytes a DreamBooth that trains the text encoders is said to write, and has to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeSaved",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.String.Input("trained", tooltip="Names of text encoders with commas between."),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, trained: str) -> io.NodeOutput:
        encoders = (getattr(clip.cond_stage_model, name) for name in trained.split(","))
        weights = [p for m in (model.model.diffusion_model, *encoders) for p in m.parameters()]
        return shown({
            "said": pack("nodes.host.models.weights").weights_bytes(model, clip, True),
            "needed": sum(weight.numel() * weight.element_size() for weight in weights),
        })  # fmt: skip
