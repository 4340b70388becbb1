"""What a step is said to hold, beside what it holds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from comfy_api.latest import io

from . import pack, probe, shown


class Plans(io.ComfyNode):
    """The plan of each training, the same measured, and whether the plan left all as it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbePlans",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.Vae.Input("vae"),
            io.Custom("PERSONALIZE_DATASET").Input("dataset"),
            io.String.Input("trainings"),
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, dataset: Any, trainings: str
    ) -> io.NodeOutput:
        runs = "nodes.host.runs"
        sockets = pack(f"{runs}.inputs").Sockets(model, clip, vae, dataset)
        node = pack(f"{runs}.base").GraphNode(None, {})
        configs = {
            name: pack("trainers.settings.run").run_config(method, settings)
            for name, (method, settings) in json.loads(trainings).items()
        }
        with torch.inference_mode(False):
            make_run = pack(f"{runs}.run").make_run
            all_runs = {name: make_run(sockets, config, node) for name, config in configs.items()}
            before = hashes(sockets)
            found: dict[str, Any] = {name: planned(run) for name, run in all_runs.items()}
            untouched = hashes(sockets) == before
            for name, run in all_runs.items():
                if "planned" in found[name]:
                    found[name]["measured"] = dataclasses.asdict(measured(run))
        return shown({"untouched": untouched, "plans": found})


def planned(run: Any) -> dict[str, Any]:
    plan = pack("nodes.host.runs.plan")
    try:
        return {"planned": dataclasses.asdict(plan.plan_memory(run))}
    except plan.NoPlanError as error:
        return {"failed": str(error)}


def measured(run: Any) -> Any:
    """What the run's own job holds, made as ever."""
    memory, loop = pack("trainers.models.memory"), pack("trainers.loop")
    with pack("nodes.host.memory").training_session():
        job = pack("nodes.host.runs.training")._job(run)
        modules, trained = job.parts.modules.values(), job.trainable.parameters
        with memory.Alive(job.parts.device) as alive:
            apart = job.parts.device.type != "cpu"
            return memory.step_memory(alive, modules, trained, lambda: loop.Training(job), apart)


def hashes(sockets: Any) -> list[Any]:
    """Of all that a plan might have changed."""
    modules = {
        "model": sockets.model.model,
        "clip": sockets.clip.cond_stage_model,
        "vae": sockets.vae.first_stage_model,
    }
    weights = pack("trainers.runs.fingerprint").weights_fingerprint(modules)
    layers = [str(module) for module in modules.values()]
    return [weights, layers, torch.get_rng_state().tolist()]
