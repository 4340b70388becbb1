"""The kinds of adapters: how each is put beside frozen layers, and what a file holds of it.

    lora   W + s B A                       arXiv 2106.09685; rsLoRA 2312.03732, PiSSA 2404.02948
    dora   m (W + s B A) / |W + s B A|     arXiv 2402.09353
    loha   W + s (A1 B1) * (A2 B2)         number by number; FedPara, arXiv 2108.06098
    lokr   W + s C kron (A B)              or W + C kron D where D is small; arXiv 2309.14859
    oft    R^T W                           R orthogonal, in blocks; arXiv 2306.07280

with s = alpha / rank. All but the last are peft's layers; files hold LyCORIS' names for the tensors
of loha, lokr and oft, which ComfyUI reads too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import SettingsError
from ...models.quantized import scale_before_adapters
from ...optimizers.sharded import put_together
from ...settings.methods.lora import LoraConfig
from .oft import OftLayer, turn_outputs
from .pissa import START, lora_layers, start_from_principal

ADAPTER = "default"
LYCORIS = ("lokr", "loha")
IN_LYCORIS = (nn.Linear, nn.Conv1d, nn.Conv2d)  # what peft has these for


def inject(
    module: nn.Module, layers: list[str], lora: LoraConfig, seed: int, device: torch.device
) -> None:
    """Put an adapter beside each of the `layers` of `module`: all that is trainable.

    Args:
        device: where the training computes, wherever the layers are now.

    Raises:
        SettingsError: the variant has no form for one of the layers.
    """
    if lora.variant in LYCORIS:
        _check_kinds(module, layers, lora.variant)
    if lora.variant == "oft":
        turn_outputs(module, layers, lora.rank)
    else:
        _start(module, layers, lora, seed, device)
    if lora.adapter_weights == "bf16":
        _hold_in_bf16(module, lora)


def _start(
    module: nn.Module, layers: list[str], lora: LoraConfig, seed: int, device: torch.device
) -> None:
    """All kinds that peft has, in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # all that starts at random is drawn on the CPU
        _inject_peft(module, layers, lora)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if lora.variant == "dora":
            _start_as_base(module, device)
        if lora.initialization == "pissa":
            start_from_principal(module, layers, ADAPTER, lora.rank)
    scale_before_adapters(module)


def _hold_in_bf16(module: nn.Module, lora: LoraConfig) -> None:
    """Round what is trained, but the lengths of a DoRA."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.bfloat16()
    if lora.follows_base or lora.variant == "oft":
        return
    # These take one large number from another, so they compute in fp32 from what is held.
    for layer in lora_layers(module):
        for factors, sign in ((layer.lora_A, 1), (layer.lora_B, -1)):
            parametrize.register_parametrization(
                factors[ADAPTER], "weight", _Widened(), unsafe=True
            )
            if START in factors:
                factors[START].weight.data = sign * factors[ADAPTER].weight.detach()


class _Widened(nn.Module):
    def forward(self, narrow: Tensor) -> Tensor:
        return narrow.float()


def _inject_peft(module: nn.Module, layers: list[str], lora: LoraConfig) -> None:
    import peft
    from peft.tuners.lokr import LoKrLayer

    shared: dict[str, Any] = {"r": lora.rank, "target_modules": "|".join(map(re.escape, layers))}
    # peft skips a layer where a number drawn in [0, 1) is no more than module_dropout.
    lycoris = {"alpha": lora.alpha, "module_dropout": -1.0, **shared}
    config: peft.PeftConfig
    if lora.variant == "lokr":
        config = peft.LoKrConfig(
            decompose_factor=lora.lokr_factor, init_weights="lycoris", **lycoris
        )
    elif lora.variant == "loha":
        config = peft.LoHaConfig(**lycoris)
    else:
        config = peft.LoraConfig(
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number works
            lora_dropout=lora.dropout,
            use_dora=lora.variant == "dora",
            use_rslora=lora.rank_stabilized,
            **shared,
        )
    peft.inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for layer in module.modules():
        if isinstance(layer, LoKrLayer) and ADAPTER in layer.lokr_w2:
            layer.scaling[ADAPTER] = 1.0  # as all readers have it where no factor has a rank


def _start_as_base(module: nn.Module, device: torch.device) -> None:
    """Measure the magnitudes of a DoRA as its layers will measure them at every step: in fp32.

    peft does so in the dtype of the weights, whose rounding the quotient of the two then keeps.
    """
    for layer in lora_layers(module):
        magnitude = layer.lora_magnitude_vector[ADAPTER]
        weight = layer.get_base_layer().weight.detach().to(device, torch.float32)
        nothing = weight.new_zeros(())  # B is zero
        magnitude.weight.data = magnitude.get_weight_norm(weight, nothing, layer.scaling[ADAPTER])


def _check_kinds(module: nn.Module, layers: list[str], variant: str) -> None:
    others = sorted({
        type(layer).__name__
        for layer in map(module.get_submodule, layers)
        if not isinstance(layer, IN_LYCORIS)
    })  # fmt: skip
    if others:
        raise SettingsError((
            f"variant '{variant}' is not possible for this model's layers of kind "
            f"{', '.join(others)}; allowed: lora, or targets without them",
        ))  # fmt: skip


@contextmanager
def switched_off(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the adapters in `modules` do nothing; they train on afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    kinds = (BaseTunerLayer, OftLayer)
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, kinds)]
    # Not peft's enable_adapters, which also decides what trains.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def held_layers(module: nn.Module, kohya: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each adapted layer of `module` by its name, with what a file holds of it.

    Args:
        kohya: the spelling of a LoRA's two factors, lora_up and lora_down, or else lora_B, lora_A.

    Yields:
        fp32 copies on the CPU, by how their keys end.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lycoris_utils import LycorisLayer

    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, _lora(layer, *(("lora_up", "lora_down") if kohya else ("lora_B", "lora_A")))
        elif isinstance(layer, LycorisLayer):
            yield name, _lycoris(layer)
        elif isinstance(layer, OftLayer):
            # For this kind alpha is the most that |Q| may be, and 0 is no limit.
            yield name, {"oft_blocks": _kept(layer.oft_blocks), "alpha": torch.tensor(0.0)}


def _lora(layer: Any, up: str, down: str) -> dict[str, Tensor]:
    b, a = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
    if START in layer.lora_A:
        b = torch.cat([b, layer.lora_B[START].weight], dim=1)
        a = torch.cat([a, layer.lora_A[START].weight])
    # Readers scale by alpha / rank, and take a missing alpha for "scale 1"; with rsLoRA this
    # alpha is not the one that was set.
    alpha = torch.tensor(layer.scaling[ADAPTER] * len(a))
    tensors = {f"{up}.weight": _kept(b), f"{down}.weight": _kept(a), "alpha": alpha}
    if ADAPTER in layer.lora_magnitude_vector:
        tensors["dora_scale"] = _dora_scale(layer).reshape(-1, *[1] * (b.ndim - 1))
    return tensors


def _lycoris(layer: Any) -> dict[str, Tensor]:
    """peft has LyCORIS' names for its parameters."""
    held = {name: getattr(layer, name) for name in layer.adapter_layer_names}
    tensors = {name: _kept(held[name][ADAPTER]) for name in held if ADAPTER in held[name]}
    return {**tensors, "alpha": torch.tensor(layer.scaling[ADAPTER] * layer.r[ADAPTER])}


def _dora_scale(layer: Any) -> Tensor:
    """The magnitude of each output of a DoRA layer, as ComfyUI reads it. (out,) fp32.

    DoRA scales W + BA by m / |W + BA|; ComfyUI (0.18 to 0.30, weight_adapter/base.py) divides by
    |W| instead when the scale is per output, so the ratio of the two norms goes into the scale.
    """
    with torch.no_grad():
        change = layer.get_delta_weight(ADAPTER).float()
        weight = put_together(layer.get_base_layer().weight).to(change)  # it may wait in RAM
        merged = weight + change
        ratio = weight.flatten(1).norm(dim=1) / merged.flatten(1).norm(dim=1)
        return _kept(layer.lora_magnitude_vector[ADAPTER].weight.flatten() * ratio)


def _kept(parameter: Any) -> Tensor:
    # A copy on the CPU, so that nothing keeps the training modules alive.
    kept: Tensor = parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
    return kept
