"""What a LoRA step costs by its settings of memory: checkpointing, quantized, weights in RAM.

    python -m benchmarks.settings_cost [--comfyui DIR] [--only MODEL ...] [--settings NAME ...]
                                       [--rounds N] [--without-peaks]

The host's own modules with random weights and the trainer's own steps, rank 16, one picture of 256
px, fp32 arithmetic, on the CPU: the UNets of SD1.5 and SDXL in full size (SDXL's stored in bf16),
and small transformers. All settings of a model stand on the same weights, in one process of one
thread, and take their steps in turn, so that all have the same company on the machine: told are CPU
seconds, and the median over the rounds of each step beside the one without checkpointing. Peaks are
of processes of their own: how much more is resident than before there were weights. Linux only.

On a CPU weights in RAM are copied from RAM to RAM by the thread that computes, so time is what the
copies cost where nothing is beside them, and memory is no less. Exit code 1 if weights or
activations in RAM change a loss of the same step with all blocks checkpointed by a bit.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from benchmarks.bare_loop import peak_bytes, reset_peak
from benchmarks.full_transformers import FULL, HEAD, Full
from benchmarks.jobs import OBJECTIVE, one_picture
from benchmarks.memory_peak import WIDENED
from benchmarks.memory_plan import (
    BASES,
    CPU,
    LEAST_QUANTIZED,
    Base,
    is_quantized,
    predictor,
    use_host,
)
from benchmarks.running import add_comfyui, checked
from trainers.loop import Training
from trainers.models.architectures import ARCHITECTURES
from trainers.models.checkpointing import guard_norms
from trainers.models.convolution import use_small_map_convolutions
from trainers.models.quantized import Stored, StoredLinear
from trainers.models.recast import Scratch, compute_wide
from trainers.objective.noise import Flow
from trainers.settings.run import run_config
from trainers.settings.training import INT8

FP32, BF16 = torch.float32, torch.bfloat16
ALL = {"checkpointing": "all"}
RAM = {"weights_in": "RAM"}
QUANTIZED = {"quantize_base": INT8}
NONE = "none"
SETTINGS: dict[str, Mapping[str, Any]] = {
    NONE: {"checkpointing": "none"},
    "half": {"checkpointing": "half"},
    "all": ALL,
    "all, activations in RAM": {**ALL, "activations_in": "RAM"},
    "all, int8": {**ALL, **QUANTIZED},
    "RAM": RAM,
    "RAM, int8": {**RAM, **QUANTIZED},
}
SAME_BITS = ("all", "all, activations in RAM", "RAM")
PEAK_STEPS = 2  # the first makes the optimizer's states
WIDTH, TEXT, SIZE_PX = 6 * HEAD, 512, 256


class Case(NamedTuple):
    """A model to measure with.

    Attributes:
        stored_in: the dtype of its weights.
    """

    title: str
    base: Base
    stored_in: torch.dtype = FP32


class Cost(NamedTuple):
    """What a step took with some settings.

    Attributes:
        seconds: of the CPU, the median.
        ratio: to the step without checkpointing of the same round, the median.
    """

    seconds: float
    ratio: float


def small(name: str, told: Mapping[str, tuple[int, ...]], **sizes: Any) -> Base:
    """A published transformer at another size."""
    one: Full = FULL[name]._replace(told=told)
    one = one._replace(sizes={**one.sizes, **sizes})
    numbers = {name: told["context"][0] for name in one.numbers}
    return Base(ARCHITECTURES[one.architecture], one.make, told, one.latents, numbers)


SD3_DEPTH = 8  # its width is 64 times that
EMBEDDER = {"in_features": TEXT, "out_features": 64 * SD3_DEPTH}
CASES = {
    "sd15": Case("SD1.5", BASES["sd15"]),
    "sdxl": Case("SDXL", BASES["sdxl"], BF16),
    "z-image": Case("a Z-Image of 4 blocks, 768 wide", small(
        "z-image", {"context": (64, TEXT)}, dim=WIDTH, n_layers=4, n_heads=6, n_kv_heads=6,
        cap_feat_dim=TEXT,
    )),
    "klein-4b": Case("a FLUX.2 klein of 2 + 4 blocks, 768 wide", small(
        "klein-4b", {"context": (64, TEXT)}, hidden_size=WIDTH, num_heads=6, depth=2,
        depth_single_blocks=4, context_in_dim=TEXT,
    )),
    "qwen-image": Case("a Qwen-Image of 4 blocks, 768 wide", small(
        "qwen-image", {"context": (64, TEXT)}, num_layers=4, num_attention_heads=6,
        joint_attention_dim=TEXT,
    )),
    "sd3.5-large": Case("an SD3.5 of 8 blocks, 512 wide", small(
        "sd3.5-large", {"context": (64, TEXT), "y": (2048,)}, depth=SD3_DEPTH,
        num_patches=64 * 64, pos_embed_max_size=64,
        context_embedder_config={"target": "torch.nn.Linear", "params": EMBEDDER},
    )),
}  # fmt: skip


# -- a training ---------------------------------------------------------------


def random_module(case: Case) -> nn.Module:
    """The module with weights like those of a fresh one, the same numbers over and over."""
    module = case.base.make().to(case.stored_in)
    numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    for layer in module.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            made = nn.Parameter(filled(weight, numbers, name), requires_grad=False)
            setattr(layer, name, made)
        for name, buffer in list(layer.named_buffers(recurse=False)):
            if buffer.is_meta:
                layer.register_buffer(name, filled(buffer, numbers, ""))
    return module


def filled(like: Tensor, numbers: Tensor, name: str) -> Tensor:
    if like.dim() == 1 and name in ("weight", "scale"):  # of a norm
        return torch.ones(like.shape, dtype=like.dtype)
    made = torch.empty(like.shape, dtype=like.dtype)
    for piece in made.view(-1).split(len(numbers)):
        piece.copy_(numbers[: len(piece)])
    return made


def quantize(module: nn.Module) -> None:
    """Put int8 in the place of what quantize_base would quantize, by the host's own kernels."""
    for path, layer in list(module.named_modules()):
        large = isinstance(layer, nn.Linear) and layer.weight.numel() >= LEAST_QUANTIZED
        if large and is_quantized(path):
            parent, _, name = path.rpartition(".")
            stored = as_int8(layer.weight)
            made = StoredLinear(layer, stored, layer.bias, FP32)
            setattr(module.get_submodule(parent), name, made)


def as_int8(weight: Tensor) -> Stored:
    """A weight in int8 with a scale for each output, as quantize_base has it."""
    from comfy.quant_ops import QuantizedTensor

    layout = "TensorWiseINT8Layout"
    quantized = QuantizedTensor.from_float(weight.detach().float(), layout, per_channel=True)
    shape, params = tuple(weight.shape), quantized._params

    def make(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        codes, scale = tensors
        told = dataclasses.replace(params, scale=scale, orig_dtype=dtype)
        wide: Tensor = QuantizedTensor(codes, layout, told).dequantize()
        return wide

    return Stored({"codes": quantized._qdata, "scale": params.scale}, make, shape)


def training(case: Case, weights: nn.Module, settings: Mapping[str, Any]) -> Training:
    """A training on the same weights as any other of the model."""
    kept = {id(held): held for held in (*weights.parameters(), *weights.buffers())}
    module: nn.Module = copy.deepcopy(weights, kept)
    if settings.get("quantize_base") == INT8:
        quantize(module)
    guard_norms(module)
    use_small_map_convolutions(module)
    if case.stored_in != FP32:
        scratch = Scratch(FP32)
        for layer in module.modules():
            if isinstance(layer, WIDENED):
                compute_wide(layer, scratch)
    base = case.base
    shared = {"steps": 1000, "rank": 16, "precision": "fp32", "memory_plan": "off"}
    config = run_config("lora", {**shared, **settings})
    told = {name: torch.full((1, *shape), 0.1) for name, shape in base.told.items()}
    objective = OBJECTIVE if base.latents == (4, 8) else Flow()
    torch.manual_seed(0)  # for the picture
    return Training(
        one_picture(
            module, predictor(module, base, FP32), base.architecture, FP32, told, SIZE_PX,
            config, objective=objective, latents_shape=base.latents_shape(SIZE_PX),
        )
    )  # fmt: skip


# -- measuring ----------------------------------------------------------------


def costs(model: str, names: Sequence[str], num_rounds: int) -> tuple[dict[str, Cost], bool]:
    """Costs by settings, and whether the losses are the same that have to be."""
    torch.set_num_threads(1)
    case = CASES[model]
    weights = random_module(case)
    trainings = {name: training(case, weights, SETTINGS[name]) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    losses: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(num_rounds + 1):
        for name, one in trainings.items():
            began = time.process_time()
            losses[name].append(one.step().loss)
            taken[name].append(time.process_time() - began)
    found = {}
    for name, seconds in taken.items():
        pairs = zip(seconds[1:], taken[NONE][1:], strict=True)  # the first warms up
        ratio = statistics.median(mine / plain for mine, plain in pairs)
        found[name] = Cost(statistics.median(seconds[1:]), ratio)
    # Without checkpointing gradients are summed in another order.
    return found, len({tuple(losses[name]) for name in SAME_BITS if name in losses}) <= 1


def peak(model: str, name: str) -> int:
    """What a training adds to what is resident, at its most."""
    torch.set_num_threads(1)
    gc.collect()
    case = CASES[model]
    before = psutil.Process().memory_info().rss
    one = training(case, random_module(case), SETTINGS[name])
    reset_peak(CPU)
    for _ in range(PEAK_STEPS):
        one.step()
    return peak_bytes(CPU) - before


def apart(task: Callable[..., Any], *args: Any) -> Any:
    """What `task` gives in a process of its own, which has all that is imported here.

    Nothing must have been trained in this process before; the host has to be importable.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        return process.submit(task, *args).result()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-peaks", action="store_true", help="a process for each setting")
    asked = checked(parser)
    if NONE not in asked.settings:
        parser.error(f"--settings has to have '{NONE}', which all are compared with")
    use_host(asked.comfyui)
    kept = True
    print(f"{'one picture, 256 px, fp32':66}{'CPU s':>8}{'x none':>8}{'peak GB':>9}")
    for model in asked.only:
        found, same = apart(costs, model, asked.settings, asked.rounds)
        kept = kept and same
        for name, cost in found.items():
            what = f"{CASES[model].title}, {name}"
            peak_gb = math.nan if asked.without_peaks else apart(peak, model, name) / 1e9
            print(f"{what:66}{cost.seconds:8.2f}{cost.ratio:8.2f}{peak_gb:9.2f}")
        bits = "the same" if same else "NOT the same"
        print(f"losses of 'all' are {bits} to the bit", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
