"""A node pack for tests alone: it measures inside the host what no socket shows.

Every probe is an output node; what it found comes back as JSON in the prompt's history.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import shutil
import sys
import types
from types import ModuleType
from typing import Any

import comfy.model_management
import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import ComfyExtension, io


def pack(module: str) -> ModuleType:
    """A module of the pack under test, by its path inside the pack."""
    name = next(n for n in sys.modules if n.endswith("custom_nodes/personalize"))
    return importlib.import_module(f"{name}.{module}")


def shown(found: dict[str, Any]) -> io.NodeOutput:
    return io.NodeOutput(ui={"found": [json.dumps(found)]})


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def probe(node_id: str, *inputs: io.Input) -> io.Schema:
    return io.Schema(
        node_id=node_id, category="tests", is_output_node=True, inputs=list(inputs), outputs=[],
        not_idempotent=True,
    )  # fmt: skip


@contextlib.contextmanager
def parts_of(model: Any, clip: Any, dtype: torch.dtype = torch.float32):
    """The trainer's twins of both sockets."""
    family = pack("nodes.host.models.twin").family_of(model)
    names = ("denoiser", *family.text_encoders)
    with torch.inference_mode(False), torch.no_grad():
        yield (
            family,
            pack("nodes.host.models.twin").parts_of(
                model, clip, family, names, dict.fromkeys(names, dtype), torch.device("cpu")
            ),
        )


def host_prediction(
    model: Any, noisy: torch.Tensor, timestep: int, text: torch.Tensor
) -> torch.Tensor:
    """What the host's denoiser predicts, as noise: its own calculation run backwards."""
    comfy.model_management.load_models_gpu([model])
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigmas[timestep][None]
    x = noisy * (sigma**2 + 1).sqrt()  # the host scales its input by 1 / sqrt(sigma^2 + 1)
    with torch.inference_mode():
        denoised = model.model.apply_model(x, sigma, c_crossattn=text)
    return (x - denoised) / sigma


class Prediction(io.ComfyNode):
    """The trainer's prediction and text encoding against the host's, for the same sockets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbePrediction",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.Conditioning.Input("conditioning"),
            io.String.Input("text"),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, conditioning: Any, text: str) -> io.NodeOutput:
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        theirs_text = conditioning[0][0][:, :77].clone()  # the trainer reads one prompt window
        theirs = {t: host_prediction(model, noisy, t, theirs_text) for t in (10, 500, 990)}
        comfy.model_management.unload_all_models()
        with parts_of(model, clip) as (family, parts):
            tokens = {k: v[None] for k, v in parts.tokenize(text).items()}
            encoded = family.encode_text(parts, tokens)
            ours = {
                t: family.predict(parts.denoiser, noisy, torch.tensor([t]), encoded) for t in theirs
            }
        return shown({
            "text": relative(encoded["hidden"], theirs_text),
            "prediction": max(relative(ours[t], theirs[t]) for t in theirs),
        })  # fmt: skip


class Trained(io.ComfyNode):
    """The trainer's own modules with a LoRA's numbers in them, against the host with that LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeTrained",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.LoraModel.Input("lora"),
            io.String.Input("variant"),
            io.String.Input("text"),
            io.Model.Input("trained_model"),
            io.Conditioning.Input("conditioning"),
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora: Any, variant: str, text: str, trained_model: Any,
        conditioning: Any,
    ) -> io.NodeOutput:  # fmt: skip
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        theirs_text = conditioning[0][0].clone()
        theirs = host_prediction(trained_model, noisy, 500, theirs_text)
        comfy.model_management.unload_all_models()
        settings = pack("trainers.settings.run")
        config = settings.RunConfig(
            "lora",
            settings.TrainingConfig(),
            settings.ObjectiveConfig(),
            settings.LoraConfig(rank=4, alpha=4.0, variant=variant, train_text_encoder=True),
        )
        with parts_of(model, clip) as (family, parts):
            pack("trainers.methods").METHODS["lora"](parts, family, config)
            for name, module in parts.modules.items():
                fill(module, family.file_prefixes[name], lora)
            tokens = {k: v[None] for k, v in parts.tokenize(text).items()}
            encoded = family.encode_text(parts, tokens)
            ours = family.predict(parts.denoiser, noisy, torch.tensor([500]), encoded)
        return shown({
            "text": relative(encoded["hidden"], theirs_text),
            "prediction": relative(ours, theirs),
        })  # fmt: skip


def fill(module: torch.nn.Module, prefix: str, lora: dict[str, torch.Tensor]) -> None:
    """Put a kohya LoRA's numbers into peft's layers."""
    from peft.tuners.lora import LoraLayer

    spell = pack("trainers.runs.files").kohya_layer_name
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            key = spell(prefix, name)
            layer.lora_A["default"].weight.copy_(lora[f"{key}.lora_down.weight"])
            layer.lora_B["default"].weight.copy_(lora[f"{key}.lora_up.weight"])
            if "default" in layer.lora_magnitude_vector:
                # The file's scale is per length of W; DoRA's own is per length of W + BA.
                weight = layer.get_base_layer().weight.float()
                merged = weight + layer.get_delta_weight("default")
                ratio = merged.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
                magnitude = layer.lora_magnitude_vector["default"].weight
                scale = lora[f"{key}.dora_scale"].flatten() * ratio
                magnitude.copy_(scale.reshape(magnitude.shape))


class Sharing(io.ComfyNode):
    """How many tensors of the twins stand on the host's own storage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeSharing", io.Model.Input("model"), io.Clip.Input("clip"))

    @classmethod
    def execute(cls, model: Any, clip: Any) -> io.NodeOutput:
        found = {}
        comfy.model_management.unload_all_models()
        dtype = next(clip.cond_stage_model.clip_l.transformer.parameters()).dtype
        for name, host, kind in (
            ("denoiser", model.model, torch.float32),
            ("clip_l", clip.cond_stage_model, dtype),
        ):
            addresses = {p.data_ptr() for p in host.parameters()}
            with parts_of(model, clip, kind) as (_, parts):
                pointers = [p.data_ptr() for p in parts.modules[name].parameters()]
            found[name] = [sum(p in addresses for p in pointers), len(pointers)]
        return shown(found)


class Same(io.ComfyNode):
    """The largest difference of two conditionings, pooled output included."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeSame", io.Conditioning.Input("first"), io.Conditioning.Input("second"))

    @classmethod
    def execute(cls, first: Any, second: Any) -> io.NodeOutput:
        (ours, our_facts), (theirs, their_facts) = first[0], second[0]
        pooled = "pooled_output"
        return shown({
            "shape": [list(ours.shape), list(theirs.shape)],
            "equal": bool(
                torch.equal(ours, theirs) and torch.equal(our_facts[pooled], their_facts[pooled])
            ),
            "difference": relative(ours, theirs) if ours.shape == theirs.shape else None,
        })  # fmt: skip


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
                raise torch.OutOfMemoryError("none left")
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


class Probes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Prediction, Trained, Sharing, Same, Previewed, Disk]


async def comfy_entrypoint() -> Probes:
    return Probes()
