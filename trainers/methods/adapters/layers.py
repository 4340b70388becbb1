"""The tensors of a LORA_MODEL as layers, and layers as tensors.

    change of a weight = alpha / rank * up @ down        up: (out, rank), down: (rank, in)

for convolutions with in = channels * height * width of the kernel; a missing alpha means a scale of
1 (ComfyUI, comfy/weight_adapter/lora.py). With `lora_mid` (LyCORIS, Tucker) it is, entry by entry,
sum over a, b of up[o, a] mid[a, b, h, w] down[b, i]. LoHa and LoKr are read too: see lycoris.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import AdapterError
from ..results import not_finite
from .lycoris import Lycoris, read_lycoris

# How files end the names of up and down, as ComfyUI reads them.
ENDINGS = (
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora_B", ".lora_A"),
)
KOHYA_ENDINGS, DOTTED_ENDINGS = ENDINGS[:2]
MID, ALPHA = ".lora_mid.weight", ".alpha"
ADDED = (".diff", ".diff_b", ".w_norm", ".b_norm")  # whole differences of norms and biases
TOKENS = "bundle_emb."
# What is no sum with the base's weights, by how its keys end.
NEEDS_BASE = {
    ".dora_scale": "is a DoRA, which also scales the base's own weights",
    ".oft_blocks": "is an OFT, which turns the base's own weights",
}
# How names of layers begin: those of one row may be other names for the layers of another.
FAMILIES = (
    (
        r"lora_unet_(down_blocks|mid_block|up_blocks)_", r"lora_unet_(input|middle|output)_block",
        r"lora_unet_", r"diffusion_model\.", r"transformer\.", r"lora_transformer_", r"lycoris_",
        r"unet\.", r"base_model\.",
    ),
    (r"lora_te_", r"lora_te\d", r"text_encoders\.", r"text_encoder"),
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """What a LoRA holds of one layer, as it is stored.

    Attributes:
        up: (out, rank), for convolutions (out, rank, 1, 1).
        down: (rank, in), for convolutions (rank, in, height, width).
        mid: (rank, rank, height, width) or None; then down is (rank, in, 1, 1).
        alpha: None means a scale of 1.
        endings: how the names of up and down end.
    """

    up: Tensor
    down: Tensor
    mid: Tensor | None
    alpha: float | None
    endings: tuple[str, str]

    @property
    def outputs(self) -> int:
        return len(self.up)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one output's weights: (in,) or (in, height, width)."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.down.shape[1], *kernel)

    def factors(self) -> tuple[Tensor, Tensor]:
        """up (out, rank), which has the scale in it, and down (rank, in * kernel); both fp64."""
        up, down = self.up.double().flatten(1), self.down.double()
        scale = 1.0 if self.alpha is None else self.alpha / len(down)
        if self.mid is not None:
            down = torch.einsum("abhw,bi->aihw", self.mid.double(), down.flatten(1))
        return up * scale, down.flatten(1)

    def delta(self) -> Tensor:
        """The change of the weight, (out, in * kernel) fp64."""
        up, down = self.factors()
        return up @ down


@dataclass(frozen=True)
class Lora:
    """A LORA_MODEL, read.

    Attributes:
        layers: by name.
        added: whole differences of norms and biases, by key.
        tokens: learned tokens that are bundled with it, by key.
    """

    layers: Mapping[str, Layer | Lycoris]
    added: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]


def read_lora(tensors: Mapping[str, Tensor], called: str) -> Lora:
    """The layers of a LORA_MODEL.

    Args:
        called: what messages call it.

    Raises:
        AdapterError: it holds what depends on the base's weights (DoRA, OFT) or is unknown,
            nothing at all, or numbers that are not finite.
    """
    layers: dict[str, Layer | Lycoris] = {}
    found, known = read_lycoris(tensors, KOHYA_ENDINGS, DOTTED_ENDINGS)
    layers.update(found)
    for key in tensors:
        for endings in ENDINGS:
            name = key.removesuffix(endings[0])
            if name != key and name + endings[1] in tensors:
                layers[name] = _layer(tensors, name, endings)
                known |= {key, name + endings[1], name + MID, name + ALPHA}
                break
    added = {key: value for key, value in tensors.items() if key.endswith(ADDED)}
    tokens = {key: value for key, value in tensors.items() if key.startswith(TOKENS)}
    known |= {*added, *tokens}
    if unknown := sorted(key for key in tensors if key not in known):
        raise _not_low_rank(unknown, called)
    if not layers and not added:
        raise AdapterError(f"{called} is empty.\nWire a LoRA that has layers.")
    if bad := not_finite(tensors):
        raise AdapterError(
            f"{called} has numbers that are not finite, in {shortened(bad)}.\n"
            "It cannot be mended. Train it anew, at a lower learning rate."
        )
    return Lora(layers, added, tokens)


def _layer(tensors: Mapping[str, Tensor], name: str, endings: tuple[str, str]) -> Layer:
    alpha = tensors.get(name + ALPHA)
    return Layer(
        up=tensors[name + endings[0]],
        down=tensors[name + endings[1]],
        mid=tensors.get(name + MID) if endings == KOHYA_ENDINGS else None,
        alpha=None if alpha is None else float(alpha),
        endings=endings,
    )


def _not_low_rank(unknown: list[str], called: str) -> AdapterError:
    what, which = "holds what is no LoRA, LoHa or LoKr", unknown
    for ending, called_so in NEEDS_BASE.items():
        if having := [key for key in unknown if key.endswith(ending)]:
            what, which = called_so, having
    return AdapterError(
        f"{called} {what} ({shortened(which)}); allowed are LoRA, LoHa and LoKr.\nUse it with one "
        "Apply LoRA behind the other, or make a LoRA of its effect: Extract LoRA, with the model "
        "it is applied to and the base model."
    )


def write_layer(
    name: str, up: Tensor, down: Tensor, shape: tuple[int, ...], endings: tuple[str, str]
) -> dict[str, Tensor]:
    """The tensors of a layer whose change is up @ down: fp32, on the CPU, alpha equal to rank.

    Args:
        up: (out, rank).
        down: (rank, in * kernel).
        shape: see Layer.shape.
    """
    rank = len(down)
    ones = [1] * (len(shape) - 1)
    return {
        name + endings[0]: up.to("cpu", torch.float32).reshape(len(up), rank, *ones).contiguous(),
        name + endings[1]: down.to("cpu", torch.float32).reshape(rank, *shape).contiguous(),
        name + ALPHA: torch.tensor(float(rank)),
    }


def check_together(loras: Sequence[Lora]) -> None:
    """Raise AdapterError unless layers of the same name are the same layers, and of one size."""
    for family in FAMILIES:
        spellings = [_spellings(family, lora.layers) for lora in loras]
        spelled = [(number, found) for number, found in enumerate(spellings, 1) if found]
        for number, found in spelled[1:]:
            first, others = spelled[0]
            if not found & others:
                examples = (_example(loras[n - 1], family) for n in (first, number))
                raise AdapterError(
                    f"LoRA {first} and LoRA {number} name layers differently "
                    f"({' and '.join(examples)}), so nobody can tell which are the same.\n"
                    "Merge LoRAs that are spelled alike; use these with one Apply LoRA behind the "
                    "other."
                )
    sizes: dict[str, tuple[int, int]] = {}
    unequal = set()
    for lora in loras:
        for name, layer in lora.layers.items():
            size = layer.outputs, torch.Size(layer.shape).numel()
            if sizes.setdefault(name, size) != size:
                unequal.add(name)
    if unequal:
        raise AdapterError(
            f"The LoRAs have layers of one name and different sizes: {shortened(sorted(unequal))}."
            "\nThey are for different base models. Merge those of one kind of base model."
        )


def _spellings(family: tuple[str, ...], names: Iterable[str]) -> set[int]:
    found = (next((i for i, p in enumerate(family) if re.match(p, name)), None) for name in names)
    return {index for index in found if index is not None}


def _example(lora: Lora, family: tuple[str, ...]) -> str:
    return next(name for name in lora.layers if any(re.match(p, name) for p in family))


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
