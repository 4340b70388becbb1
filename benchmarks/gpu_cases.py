"""What benchmarks.gpu measures: one row of its table a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.tiny_transformers import Z_IMAGE

LORA, DREAMBOOTH, INVERSION, OWN_NODE, BARE = "lora", "dreambooth", "inversion", "comfyui", "bare"
DIFFUSERS, KOHYA = SCRIPTS = ("diffusers", "kohya")


class Case(NamedTuple):
    """One training.

    Attributes:
        base: a key of running.MODELS or of RECIPES.
        kind: a method of ours, ComfyUI's own node, a bare loop or whose script.
        previews_every: steps between two previews, or 0.
        method: what a bare loop or a script trains.
    """

    title: str
    base: str
    kind: str
    size_px: int
    precision: str = "bf16"
    settings: Mapping[str, Any] = {}
    previews_every: int = 0
    method: str = LORA

    @property
    def is_deterministic(self) -> bool:
        return bool(self.settings.get("deterministic"))

    @property
    def compared_with(self) -> tuple[str, str, int, str]:
        """What tells the bare loop that does the same: method, base, size and precision."""
        ours = self.kind in (LORA, DREAMBOOTH, INVERSION)
        method = self.kind if ours else self.method
        return method, self.base, self.size_px, self.precision


NAMES = {"sd15": "SD1.5", "sdxl": "SDXL", "z-image": "Z-Image"}
# What no checkpoint is written of: the denoiser in its full size, and a thin one. What reads the
# captions is small in both, for it does not take part in the steps.
Z_IMAGE_SIZES = {"dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30}
RECIPES = {
    "z-image": (
        {**Z_IMAGE, "dtype": "bfloat16", "unet": {**Z_IMAGE["unet"], **Z_IMAGE_SIZES}},
        Z_IMAGE,
    )
}
CHECKPOINTED = {"gradient_checkpointing": True}
FUSED = {"weights": "bf16", "fused_backward": True}
CASES = [
    Case("bare LoRA loop", "sd15", BARE, 512),
    Case("LoRA", "sd15", LORA, 512),
    Case("LoRA, checkpointed", "sd15", LORA, 512, settings=CHECKPOINTED),
    Case("LoRA, batch of 4", "sd15", LORA, 512, settings={"batch_size": 4}),
    Case("LoRA with text encoder", "sd15", LORA, 512, settings={"train_text_encoder": True}),
    Case("LoRA with previews", "sd15", LORA, 512, previews_every=10),
    Case("LoRA, deterministic", "sd15", LORA, 512, settings={"deterministic": True}),
    Case("bare LoRA loop", "sd15", BARE, 512, "fp16"),
    Case("LoRA", "sd15", LORA, 512, "fp16"),
    Case("bare LoRA loop", "sd15", BARE, 512, "fp32"),
    Case("LoRA", "sd15", LORA, 512, "fp32"),
    Case("ComfyUI's own node", "sd15", OWN_NODE, 512),
    Case("bare LoRA loop", "sd15", BARE, 1024),
    Case("LoRA", "sd15", LORA, 1024),
    Case("ComfyUI's own node", "sd15", OWN_NODE, 1024),
    Case("bare Textual Inversion", "sd15", BARE, 512, method=INVERSION),
    Case("Textual Inversion", "sd15", INVERSION, 512),
    Case("bare Textual Inversion", "sd15", BARE, 1024, method=INVERSION),
    Case("Textual Inversion", "sd15", INVERSION, 1024),
    Case("bare DreamBooth", "sd15", BARE, 512, method=DREAMBOOTH),
    Case("DreamBooth", "sd15", DREAMBOOTH, 512),
    Case("DreamBooth, fused", "sd15", DREAMBOOTH, 512, settings={"fused_backward": True}),
    Case(
        "DreamBooth, bf16, adamw_8bit, fused",
        "sd15",
        DREAMBOOTH,
        512,
        settings={**FUSED, "optimizer": "adamw_8bit"},
    ),
    Case(
        "DreamBooth, bf16, adafactor, fused",
        "sd15",
        DREAMBOOTH,
        512,
        settings={**FUSED, "optimizer": "adafactor"},
    ),
    Case("bare DreamBooth", "sd15", BARE, 1024, method=DREAMBOOTH),
    Case("DreamBooth", "sd15", DREAMBOOTH, 1024),
    Case("bare LoRA loop", "sdxl", BARE, 1024),
    Case("LoRA", "sdxl", LORA, 1024),
    Case("LoRA, checkpointed", "sdxl", LORA, 1024, settings=CHECKPOINTED),
    Case("Textual Inversion, checkpointed", "sdxl", INVERSION, 1024, settings=CHECKPOINTED),
    Case(
        "DreamBooth, bf16, adafactor, fused, checkpointed",
        "sdxl",
        DREAMBOOTH,
        1024,
        settings={**FUSED, **CHECKPOINTED, "optimizer": "adafactor"},
    ),
    Case(
        "DreamBooth, bf16, adamw_8bit, fused, checkpointed",
        "sdxl",
        DREAMBOOTH,
        1024,
        settings={**FUSED, **CHECKPOINTED, "optimizer": "adamw_8bit"},
    ),
    Case("ComfyUI's own node", "sdxl", OWN_NODE, 1024),
    Case("LoRA", "z-image", LORA, 512),
    Case("LoRA", "z-image", LORA, 1024),
    Case("LoRA, checkpointed", "z-image", LORA, 1024, settings=CHECKPOINTED),
    Case(
        "DreamBooth, bf16, adafactor, fused, checkpointed",
        "z-image",
        DREAMBOOTH,
        1024,
        settings={**FUSED, **CHECKPOINTED, "optimizer": "adafactor"},
    ),
    *(
        Case(f"diffusers' script, {method}", "sd15", DIFFUSERS, size_px, method=method)
        for method in (LORA, DREAMBOOTH, INVERSION)
        for size_px in (512, 1024)
    ),
    Case("kohya's script, lora", "sd15", KOHYA, 512),
    Case("kohya's script, lora", "sd15", KOHYA, 1024),
]


def chosen(words: Sequence[str], thin: bool, on_cpu: bool) -> list[Case]:
    """The cases whose name has one of the words, in the order of the words.

    Thin models train at one size, so what differs by size alone is there once. Precision fp16 is
    refused on a CPU, and kohya's scripts know no thin model.
    """
    found: list[Case] = []
    for word in words:
        for case in CASES:
            told = f"{case.base} {case.kind} {case.title} {case.precision}"
            known = [c._replace(size_px=case.size_px) if thin else c for c in found]
            refused = (on_cpu and case.precision == "fp16") or (thin and case.kind == KOHYA)
            if word in told and case not in known and not refused:
                found.append(case)
    return found
