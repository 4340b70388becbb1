"""The settings of DreamBooth alone.

Imports no torch. Sources: D = diffusers' train_dreambooth.py and its README,
B = huggingface.co/blog/dreambooth, O = OneTrainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..field import Settings, setting
from ..training import ALL_AT_ONCE
from .lora import text_encoder_learning_rate, token_learning_rate, train_token

WEIGHTS = ("fp32", "bf16")
INTERVAL_ON_CPU_STEPS = 10  # all weights cross the bus for each look of an average in RAM


@dataclass(frozen=True)
class DreamBoothConfig(Settings):
    """What of the base model is trained, and how its memory is kept small."""

    train_text_encoder: bool = setting(
        False,
        "Train the text encoder too: much better faces, more memory and time.",
        advanced=False, source="B",
    )  # fmt: skip
    text_encoder_learning_rate: float = text_encoder_learning_rate()
    text_encoder_stop_step: int = setting(
        0,
        "Updates after which the text encoder stays as it is; 0 is never. It overfits sooner than "
        "the denoiser.",
        min=0, max=1_000_000,
    )  # fmt: skip
    weights: str = setting(
        "fp32",
        "How the trained weights are held. fp32: exact, computing in the chosen precision. bf16: "
        "half the memory, computing in bf16 (or in fp32, layer by layer), and each update is "
        "rounded up or down at random so that small ones are not lost.",
        choices=WEIGHTS, source="stochastic rounding: arXiv 2010.06192",
    )  # fmt: skip
    fused_backward: bool = setting(
        False,
        "Update each weight as soon as its gradient is there, and drop the gradient: saves as much "
        "memory as the weights take. max_grad_norm then holds for each tensor by itself. Not with "
        "gradient_accumulation, prodigy, schedule-free optimizers or muon.",
    )
    ema_decay: float = setting(
        0.0,
        "Hands out an average of the weights over the last updates, steadier than the last ones: "
        "0.999 averages about 1000, 0 is off. Costs fp32 weights once more.",
        min=0.0, max=0.9999, step=1e-4, source="D EMAModel 0.9999",
    )  # fmt: skip
    ema_on_cpu: bool = setting(
        False,
        "Keep that average in RAM, worked out beside the training: no memory of the GPU. In RAM it "
        "takes the fp32 weights, and a copy of the weights.",
    )
    ema_update_step_interval: int = setting(
        0,
        "Updates from one look of that average at the weights to the next; a look counts for all "
        "of them. 0: 1, with ema_on_cpu 10.",
        min=0, max=10_000, source="O 5", before=0,
    )  # fmt: skip

    train_token: bool = train_token()
    token_learning_rate: float = token_learning_rate()

    @property
    def trains_text(self) -> bool:
        return self.train_text_encoder or self.train_token

    @property
    def ema_interval_steps(self) -> int:
        return self.ema_update_step_interval or (INTERVAL_ON_CPU_STEPS if self.ema_on_cpu else 1)

    def conflicts(self, optimizer: str, gradient_accumulation: int, precision: str) -> list[str]:
        """What cannot go together with these settings of the loop, in the user's words."""
        problems = []
        if self.fused_backward and gradient_accumulation > 1:
            problems.append(
                f"gradient_accumulation is {gradient_accumulation}, but fused_backward keeps no "
                "gradients that could be summed; allowed: 1, or fused_backward off"
            )
        if optimizer in ALL_AT_ONCE and (self.fused_backward or self.weights == "bf16"):
            problems.append(
                f"optimizer '{optimizer}' looks at all weights at once; allowed: another "
                "optimizer, or fused_backward off and weights 'fp32'"
            )
        if self.weights == "bf16" and precision == "fp16":
            problems.append(
                "precision is 'fp16', but weights 'bf16' compute in bf16 or fp32; "
                "allowed: auto, bf16 or fp32, or weights 'fp32'"
            )
        return problems


# Where DreamBooth wants another default than the shared settings have.
DREAMBOOTH_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-6,  # B: objects; D 5e-6
    "steps": 400,  # B: objects
}
