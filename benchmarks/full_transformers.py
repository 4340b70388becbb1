"""Published transformers in full size, as modules of the host without weights.

Sizes are those that the host reads off the published files; tests/tiny_transformers.py has what is
the same in small ones. Text is as long as a caption of some lines is for each: FLUX.2 and FLUX.1
are always given 512 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from tests import tiny_transformers as tiny

BF16 = torch.bfloat16
HEAD = 128  # the width of each one's attention heads


class Full(NamedTuple):
    """A transformer.

    Attributes:
        recipe: of its small copy.
        sizes: what is other in the published one.
        told, latents, numbers: as benchmarks.memory_plan.Base has them.
    """

    architecture: str
    recipe: Mapping[str, Any]
    sizes: Mapping[str, Any]
    told: Mapping[str, tuple[int, ...]]
    latents: tuple[int, ...] = (16, 8)
    numbers: Mapping[str, int] = {}

    def make(self) -> nn.Module:
        """The host's module, on the meta device and in bf16."""
        import comfy.supported_models

        facts = {**self.recipe["unet"], **self.sizes}
        config = getattr(comfy.supported_models, self.recipe["model"])(dict(facts))
        config.unet_config |= facts
        config.set_inference_dtype(BF16, None)
        made: nn.Module = config.get_model({}, "", device="meta").diffusion_model
        return made.to(BF16)


def _flux(width: int, double: int, single: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_heads": width // HEAD, "depth": double,
        "depth_single_blocks": single, **more,
    }  # fmt: skip


def _klein(width: int, double: int, single: int, text: int) -> Full:
    return Full(
        "flux2", tiny.KLEIN, _flux(width, double, single, context_in_dim=text),
        {"context": (512, text)}, latents=(128, 16),
    )  # fmt: skip


FULL: Mapping[str, Full] = {
    "z-image": Full(
        "z_image", tiny.Z_IMAGE,
        {"dim": 30 * HEAD, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560},
        {"context": (256, 2560)}, numbers={"num_tokens": 256},
    ),
    "klein-4b": _klein(3072, 5, 20, 3 * 2560),
    "klein-9b": _klein(4096, 8, 24, 3 * 4096),
    "qwen-image": Full(
        "qwen_image", tiny.QWEN_IMAGE,
        {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584},
        {"context": (256, 3584)}, latents=(16, 8, 1),
    ),
    "krea2": Full(
        "krea2", tiny.KREA2,
        {"features": 6144, "layers": 28, "heads": 48, "kvheads": 12, "txtdim": 2560,
         "txtheads": 20, "txtkvheads": 20, "tdim": 256},
        {"context": (256, 12 * 2560)},
    ),
    "chroma": Full(
        "chroma", tiny.CHROMA,
        _flux(3072, 19, 38, context_in_dim=4096, hidden_dim=5120, out_dim=3072, n_layers=5),
        {"context": (256, 4096), "guidance": ()},
    ),
    "sd3.5-large": Full(
        "sd3", tiny.SD3,
        {"depth": 38, "num_patches": 192 * 192, "pos_embed_max_size": 192,
         "context_embedder_config": {
             "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 38 * 64},
         }},
        {"context": (154, 4096), "y": (2048,)},
    ),
    "flux1": Full(
        "flux", tiny.FLUX, _flux(3072, 19, 38, context_in_dim=4096),
        {"context": (512, 4096), "y": (768,), "guidance": ()},
    ),
}  # fmt: skip
