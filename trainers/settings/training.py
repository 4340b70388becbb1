"""The loop: how long, how fast, with what optimizer, in what precision.

Imports no torch: nodes build their widgets from these fields, scripts read them, and run.json
stores them. Sources: D = diffusers' training scripts, K = kohya sd-scripts,
O = OneTrainer, P = the method's paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .field import Settings, setting

LR_SCHEDULES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
)  # fmt: skip
OPTIMIZERS = (
    "adamw", "adamw_8bit", "adafactor", "prodigy", "lion", "lion_8bit", "paged_adamw",
    "paged_adamw_8bit", "adamw_schedule_free", "prodigy_schedule_free", "came", "muon",
)  # fmt: skip
FIND_RATE = ("prodigy", "prodigy_schedule_free")  # where the setting multiplies what they find
ADAFACTOR = "adafactor"  # has one of its own where the setting is 0
SCHEDULE_FREE = ("adamw_schedule_free", "prodigy_schedule_free")
ALL_AT_ONCE = ("prodigy", *SCHEDULE_FREE, "muon")  # what they keep is not apart by parameter
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
AS_IT_IS, FP8, INT8 = QUANTIZED = ("none", "fp8", "int8")


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """The loop: how long, how fast, with what optimizer, in what precision."""

    steps: int = setting(
        500,
        "Optimizer updates. A start for a handful of pictures: LoRA 500, DreamBooth 400, Textual "
        "Inversion 2000; too many copy them.",
        min=1, max=1_000_000, advanced=False, source="D LoRA 500",
    )  # fmt: skip
    batch_size: int = setting(
        1,
        "Pictures in one forward pass. More is steadier and needs more memory.",
        min=1, max=256, advanced=False, source="D, K: 1",
    )  # fmt: skip
    learning_rate: float = setting(
        1e-4,
        "How far each update goes. LoRA: 1e-4 (D), up to 3e-4 (O). DreamBooth: 2e-6. Textual "
        "Inversion: 3e-4 (O) to 2e-3 (D). 0: the optimizer's own, of prodigy, "
        "prodigy_schedule_free and adafactor.",
        min=0.0, max=10.0, step=1e-6, advanced=False, source="D 1e-4",
    )  # fmt: skip
    epochs: int = setting(
        0,
        "Passes over the whole dataset; 0 uses steps instead, any other number replaces steps.",
        min=0, max=100_000,
    )  # fmt: skip
    gradient_accumulation: int = setting(
        1,
        "Forward passes that are summed into one update: a larger batch without its memory.",
        min=1, max=1024,
    )  # fmt: skip
    lr_schedule: str = setting(
        "constant", "How the learning rate changes over the run, as in diffusers and transformers.",
        choices=LR_SCHEDULES, source="D constant",
    )  # fmt: skip
    warmup_steps: int = setting(
        0,
        "Updates over which the learning rate rises from zero; the schedule must not be constant.",
        min=0, max=100_000, source="D LoRA 0",
    )  # fmt: skip
    optimizer: str = setting(
        "adamw",
        "adamw: fused AdamW of PyTorch. adamw_8bit: a quarter of its state, needs bitsandbytes. "
        "adafactor: the least state. prodigy: finds its own rate, needs prodigyopt. lion, "
        "lion_8bit: half of AdamW's state, want a tenth of its rate. paged_adamw, "
        "paged_adamw_8bit: a state that may leave the GPU. adamw_schedule_free: an average in the "
        "place of a schedule; prodigy_schedule_free: that, and its own rate. came: as little state "
        "as adafactor, steadier. muon: matrices by orthogonal updates, the rest by AdamW.",
        choices=OPTIMIZERS,
    )
    weight_decay: float = setting(
        1e-2, "Pull of the trained weights towards zero, per update, times the learning rate.",
        min=0.0, max=1.0, step=1e-4, source="D 1e-2",
    )  # fmt: skip
    max_grad_norm: float = setting(
        1.0, "Gradients longer than this are shortened to it; 0 turns clipping off.",
        min=0.0, max=1000.0, step=0.1, source="D, K, O: 1.0",
    )  # fmt: skip
    precision: str = setting(
        "auto",
        "Arithmetic of weights and activations; what is trained is kept in fp32 unless weights or "
        "adapter_weights is bf16. auto: bf16 where the device has it, else fp16 on CUDA, "
        "else fp32.",
        choices=PRECISIONS,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute activations in the backward pass: about a third slower, far less memory.",
    )
    seed: int = setting(
        0,
        "Start of every random draw: the same seed and settings give the same result; to the bit "
        "on a CPU, on a GPU with deterministic.",
        min=0, max=2**63 - 1, advanced=False,
    )  # fmt: skip

    deterministic: bool = setting(
        False,
        "The same bits each time on one GPU model too, as on a CPU without it: torch's "
        "deterministic algorithms alone. Slower on a GPU; how much is not measured. ComfyUI has to "
        "be started with --deterministic.",
        before=False,
    )  # fmt: skip
    quantize_base: str = setting(
        AS_IT_IS,
        "Hold the frozen weights of the denoiser's large layers in 8 bits, which halves those of a "
        "file in bf16; a layer is widened when it is used. For bases that fit only so; a base that "
        "comes quantized needs none. LoRA and Textual Inversion alone.",
        choices=QUANTIZED, source="K fp8_base", before=AS_IT_IS,
    )  # fmt: skip
    compile: bool = setting(
        False,
        "Compile the block that a model repeats (torch.compile): the first steps take a minute or "
        "more, all others less time. Without a compiler on the machine the log says so and the run "
        "goes on without.",
        before=False,
    )
    tread_selection_ratio: float = setting(
        0.0,
        "For transformers: the share of a picture's tokens that skip the middle blocks in each "
        "step (TREAD). At 0.5, its paper's, a step of a large model is about 0.6 of the work. Made "
        "for training from nothing: in our small test a LoRA learned a little less with it. 0 is "
        "off.",
        min=0.0, max=0.9, step=0.05, source="P arXiv 2501.04765", before=0.0,
    )  # fmt: skip

    def problems(self) -> list[str]:
        found = []
        if self.warmup_steps and self.lr_schedule == "constant":
            found.append(
                f"warmup_steps is {self.warmup_steps} but lr_schedule 'constant' has no warm-up; "
                "allowed: 0, or lr_schedule 'constant_with_warmup'"
            )
        if self.optimizer in SCHEDULE_FREE:
            own_warmup = self.optimizer == "adamw_schedule_free"
            allowed = ("constant", "constant_with_warmup") if own_warmup else ("constant",)
            if self.lr_schedule not in allowed:
                found.append(
                    f"lr_schedule is '{self.lr_schedule}', but optimizer '{self.optimizer}' has an "
                    f"average in its place; allowed: {' or '.join(allowed)}"
                )
        if self.optimizer == ADAFACTOR and not self.learning_rate:
            if self.lr_schedule != "constant":
                found.append(
                    f"lr_schedule is '{self.lr_schedule}', but learning_rate 0 leaves the rate to "
                    "adafactor, which no schedule changes; allowed: constant, or a learning_rate"
                )
        return found

    @property
    def finds_rate(self) -> bool:
        """Whether the rate is not the one that is set, so that it is worth telling."""
        return self.optimizer in FIND_RATE or (
            self.optimizer == ADAFACTOR and not self.learning_rate
        )

    def no_rate(self, own: Any) -> list[str]:
        """Why nothing would be learned, where no part has a rate."""
        rates = {
            "": self.learning_rate,
            "train_text_encoder": getattr(own, "text_encoder_learning_rate", 0.0),
            "train_token": getattr(own, "token_learning_rate", 0.0),
        }
        used = [rate for name, rate in rates.items() if not name or getattr(own, name, False)]
        if any(used) or self.finds_rate:
            return []
        return [
            f"learning_rate is 0, which optimizer '{self.optimizer}' takes as it is, so that "
            f"nothing would be learned; allowed: above 0, or an optimizer that finds its own rate: "
            f"{', '.join((*FIND_RATE, ADAFACTOR))}"
        ]

    def conflicts(self, own: Any) -> list[str]:
        """What a method's own settings cannot go together with, in the user's words."""
        optimizer = self.optimizer
        found = []
        if optimizer == "prodigy":
            found += self._rate_conflicts(own)
        if optimizer in SCHEDULE_FREE and getattr(own, "ema_decay", False):
            found.append(
                f"ema_decay is {own.ema_decay}, but optimizer '{optimizer}' hands out an average "
                "already; allowed: 0, or another optimizer"
            )
        if optimizer in SCHEDULE_FREE and getattr(own, "norm_control", False):
            found.append(
                f"norm_control is on, but optimizer '{optimizer}' trains other numbers than it "
                "hands out; allowed: off, or another optimizer"
            )
        if getattr(own, "adapter_weights", "fp32") == "bf16":
            found += self._narrow_conflicts()
        if optimizer == "muon" and hasattr(own, "vectors"):
            found.append(
                "optimizer is 'muon', which is for the matrices of layers, but Textual Inversion "
                "trains rows of a table; allowed: another optimizer"
            )
        return found

    def _narrow_conflicts(self) -> list[str]:
        """Adapters in bf16 are widened and updated one after another."""
        found = []
        if self.optimizer in ALL_AT_ONCE:
            found.append(
                f"adapter_weights is 'bf16', but optimizer '{self.optimizer}' looks at all weights "
                "at once; allowed: fp32, or another optimizer"
            )
        if self.precision == "fp16":
            found.append(
                "precision is 'fp16', but adapter_weights 'bf16' compute in bf16 or fp32; "
                "allowed: auto, bf16 or fp32, or adapter_weights 'fp32'"
            )
        return found

    def _rate_conflicts(self, own: Any) -> list[str]:
        """Prodigy finds one rate for all that trains."""
        rate = self.learning_rate or 1.0
        used: dict[str, bool] = {
            "text_encoder_learning_rate": getattr(own, "train_text_encoder", False),
            "token_learning_rate": getattr(own, "train_token", False),
        }
        return [
            f"{name} is {getattr(own, name)}, but optimizer 'prodigy' finds one rate for all, "
            f"which learning_rate multiplies by {rate}; allowed: 0 or {rate}"
            for name, is_used in used.items()
            if is_used and (getattr(own, name) or rate) != rate
        ]
