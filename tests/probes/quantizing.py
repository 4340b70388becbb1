"""Weights as files of quantized models have them, and what the trainer makes of those."""

from __future__ import annotations

import json
import re
import weakref
from typing import Any

import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_api.latest import io

from . import noisy_latents, pack, parts_of, predicted, probe, relative, shown, told
from .filling import fill

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALED = {"scale": "recalculate"}
ROTATED = {"convrot": True, "per_channel": True, "convrot_groupsize": 64}
# By the tests' names: the host's format, options of its kernels, and what a file says beside it.
FORMATS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "float8_e4m3fn": ("float8_e4m3fn", SCALED, {}),
    "float8_e5m2": ("float8_e5m2", SCALED, {}),
    "mxfp8": ("mxfp8", {}, {}),
    "nvfp4": ("nvfp4", {}, {}),
    "nvfp4, smoothed": ("nvfp4", {}, {}),
    "int8": ("int8_tensorwise", {}, {}),
    "int8, by rows": ("int8_tensorwise", {"per_channel": True}, {}),
    "int8, rotated": ("int8_tensorwise", ROTATED, {"convrot": True, "convrot_groupsize": 64}),
    "int4, rotated": ("convrot_w4a4", {"convrot_groupsize": 64}, {"convrot_groupsize": 64}),
}
BLOCKS = re.compile(r".*\.\d+\..*")


def as_in_file(
    module: torch.nn.Module, name: str, everywhere: bool = False
) -> dict[str, torch.Tensor]:
    """The weights of `module` with its linear layers as a file in one of FORMATS has them.

    Args:
        everywhere: those too that stand in no block.
    """
    held, options, more = FORMATS[name]
    layout = QUANT_ALGOS[held]["comfy_tensor_layout"]
    said = list(json.dumps({"format": held, **more}).encode())
    weights = dict(module.state_dict())
    for path, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Linear) or not (everywhere or BLOCKS.fullmatch(path)):
            continue
        key = f"{path}.weight"
        weight = weights.pop(key).float()
        if "smoothed" in name:
            scale = torch.linspace(0.5, 2, weight.shape[1])
            weights[f"{path}.pre_quant_scale"] = scale
            weight = weight / scale
        weights |= QuantizedTensor.from_float(weight, layout, **options).state_dict(key)
        weights[f"{path}.comfy_quant"] = torch.tensor(said, dtype=torch.uint8)
    return weights


class Quantized(io.ComfyNode):
    """A LoRA's gradients beside a MODEL's quantized layers, and beside the same layers widened.

    Also how many bytes the twin holds of the denoiser and the host has of it, and how much of
    widened weights is there at most, in layers of the largest size.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeQuantized",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.String.Input("name"),
            io.String.Input("settings"),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, name: str, settings: str) -> io.NodeOutput:
        values = {"rank": 2, "alpha": 2.0, "seed": 3, **json.loads(settings)}
        config = pack("trainers.settings.run").run_config("lora", values)
        found, facts = gradients(model, clip, config)
        wide, _ = gradients(model, clip, config, widened=True)
        lengths = torch.stack([gradient.norm() for gradient in wide.values()])
        least = 1e-3 * lengths.square().mean().sqrt()
        away = max(
            float((found[key] - gradient).norm() / gradient.norm().clamp(min=least))
            for key, gradient in wide.items()
        )
        return shown({name: {"difference": away, "trained": len(found), **facts}})


class NoKitchen(io.ComfyNode):
    """What is said of quantize_base where this host has no comfy_kitchen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe("ProbeNoKitchen")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        quantized, said = pack("nodes.host.models.stored.quantized"), {}
        without = {"get_layout_class": lambda name: None}  # as the host has it then
        with pack("nodes.host.models.training_mode").replaced(quantized, **without):
            for name in ("none", "int8", "fp8"):
                try:
                    quantized.check_quantizes(name)
                except pack("trainers.errors").UnavailableError as error:
                    said[name] = str(error)
        return shown(said)


class Patched(io.ComfyNode):
    """The trainer's module of a MODEL with a LoRA patched in, and of one beside which it trains."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbePatched",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.LoraModel.Input("lora"),
            io.Model.Input("patched"),
            io.String.Input("name"),
            io.String.Input("settings"),
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora: Any, patched: Any, name: str, settings: str
    ) -> io.NodeOutput:
        values = {"rank": 4, "alpha": 4.0, **json.loads(settings)}
        config = pack("trainers.settings.run").run_config("lora", values)
        made = []
        for one in (model, patched):
            with parts_of(one, clip) as parts:
                if one is model:
                    pack("trainers.methods").METHODS["lora"](parts, config)
                    named = pack("trainers.methods.lora").layer_name
                    fill(parts, "denoiser", lora, named)
                said = told(parts, "a photo of a dog", None)
                made.append(predicted(parts, noisy_latents(model), 500, said))
        return shown({name: {"patched": relative(made[1], made[0])}})


def gradients(
    model: Any, clip: Any, config: Any, widened: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    random = torch.Generator().manual_seed(1)
    with parts_of(model, clip, quantized=config.training.quantize_base) as parts:
        layers = stored_layers(parts.modules)
        facts = {"kinds": sorted(map(str, kinds(layers)))}
        facts["held"] = sum(held_bytes(parts.denoiser))
        facts["file"] = sum(t.nbytes for t in model.model.diffusion_model.state_dict().values())
        alive = Alive()
        for layer in layers:
            layer.stored.make = alive.watching(layer.stored.make)
        if widened:
            for module in parts.modules.values():
                widen(module)
            assert kinds(stored_layers(parts.modules)) <= {torch.float32}
        trainable = pack("trainers.methods").METHODS["lora"](parts, config)
        for parameter in trainable.parameters:
            noise = torch.randn(parameter.shape, generator=random).to(parameter.device)
            parameter.add_(0.02 * noise)
        for module in parts.modules.values():
            pack("trainers.models.checkpointing").guard_adapters(module)
        alive.most = 0
        with torch.enable_grad():
            said = told(parts, "a photo of a dog", None)
            made = predicted(parts, noisy_latents(model), 500, said)
            made.double().square().mean().backward()
        grads = {
            f"{name}.{key}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, module in parts.modules.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        }
        largest = max((layer.weight.numel() * 4 for layer in layers), default=1)
        return grads, {**facts, "most": alive.most / largest}


def stored_layers(modules: dict[str, torch.nn.Module]) -> list[Any]:
    return [x for module in modules.values() for x in module.modules() if hasattr(x, "stored")]


def kinds(layers: list[Any]) -> set[Any]:
    return {next(layer.buffers()).dtype for layer in layers}


def held_bytes(module: torch.nn.Module) -> list[int]:
    """Of each storage once."""
    tensors = (*module.parameters(), *module.buffers())
    return list({t.data_ptr(): t.nbytes for t in tensors}.values())


def widen(module: torch.nn.Module) -> None:
    """Put torch's own layers in the place of those that make their weights; in place."""
    made = pack("trainers.models.quantized")
    for path, layer in list(module.named_modules()):
        if isinstance(layer, made.StoredLinear):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        elif isinstance(layer, made.StoredConv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size)
            plain = torch.nn.Conv2d(*sizes, layer.stride, layer.padding)
        else:
            continue
        with torch.no_grad():
            plain.weight.copy_(layer.weight.float())
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
        if getattr(layer, "input_scale", None) is not None:  # a layer like it, whose weight is wide
            held = made.as_it_is(plain.weight.detach()), layer.bias, torch.float32
            plain = made.StoredLinear(plain, *held, layer.input_scale)
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, plain.requires_grad_(False))


class Alive:
    """How many bytes of widened weights are there, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def watching(self, make: Any) -> Any:
        def watched(tensors: Any, dtype: torch.dtype) -> torch.Tensor:
            made = make(tensors, dtype)
            if made is tensors[0]:  # stored so
                return made
            self.now += made.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(made, self._gone, made.nbytes)
            return made

        return watched

    def _gone(self, size: int) -> None:
        self.now -= size
