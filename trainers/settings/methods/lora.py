"""The settings of LoRA alone.

Imports no torch: nodes build their widgets from these fields, scripts read them, and run.json
stores them. Sources: D = diffusers' training scripts, K = kohya sd-scripts,
O = OneTrainer, P = the method's paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..field import Settings, setting

LORA_TARGETS = ("attention", "attention and feed-forward", "all with convolutions")
LORA_VARIANTS = ("lora", "dora", "lokr", "loha", "oft")
FACTOR_PAIRS = ("lora", "dora")  # the variants that rank_stabilized and dropout are made for
INITIALIZATIONS = ("default", "pissa")
WIDE, NARROW = ADAPTER_WEIGHTS = ("fp32", "bf16")


def text_encoder_learning_rate() -> Any:
    """The field for the rate of the text encoder's own part."""
    return setting(
        0.0,
        "Learning rate of the text encoder, if it is trained. 0: a tenth of learning_rate for a "
        "LoRA, learning_rate itself for DreamBooth and for optimizers that find their rate.",
        min=0.0, max=10.0, step=1e-7, source="K 1e-5 and 1e-4 of a LoRA; D one rate",
    )  # fmt: skip


def train_token() -> Any:
    """The field for tokens learned before."""
    return setting(
        False,
        "Train the learned tokens of the clip further, together with the rest (pivotal tuning).",
        source="P arXiv 2106.05744",
    )


def token_learning_rate() -> Any:
    """The field beside `train_token`."""
    return setting(
        1e-3,
        "Learning rate of the tokens, if they are trained. 0: the optimizer's own, if it finds it.",
        min=0.0, max=10.0, step=1e-6, source="as for Train Textual Inversion",
    )  # fmt: skip


@dataclass(frozen=True)
class LoraConfig(Settings):
    """The adapter: which layers, how large, of what kind."""

    rank: int = setting(
        16, "Size of the adapter: more learns more detail and makes a larger file.",
        min=1, max=1024, advanced=False, source="O 16; D 4",
    )  # fmt: skip
    alpha: float = setting(
        16.0, "Strength of the adapter at rank equal to alpha; alpha / rank scales it.",
        min=0.01, max=4096.0, step=0.5, advanced=False, source="D alpha = rank",
    )  # fmt: skip
    train_text_encoder: bool = setting(
        False,
        "Train a LoRA of the text encoder too: better faces and prompts, more memory and time.",
        advanced=False,
    )
    text_encoder_learning_rate: float = text_encoder_learning_rate()
    targets: str = setting(
        "attention",
        "Layers that get an adapter. attention is small and the usual choice; feed-forward and "
        "convolutions learn texture and style better and make larger files.",
        choices=LORA_TARGETS, source="D attention",
    )  # fmt: skip
    variant: str = setting(
        "lora",
        "lora; dora: the direction and the length of each weight are learned apart, closer to full "
        "training and slower; lokr: a Kronecker product, small files that reach every number; "
        "loha: the product of two LoRAs, of a rank up to rank x rank; oft: outputs are only "
        "turned, in blocks up to rank wide, and alpha is not used.",
        choices=LORA_VARIANTS,
        source="P DoRA arXiv 2402.09353, LoKr arXiv 2309.14859, LoHa arXiv 2108.06098, "
        "OFT arXiv 2306.07280",
    )  # fmt: skip
    rank_stabilized: bool = setting(
        False,
        "Scale by alpha / sqrt(rank) instead of alpha / rank, so that high ranks keep up. For "
        "variants lora and dora.",
        source="P rsLoRA arXiv 2312.03732",
    )  # fmt: skip
    dropout: float = setting(
        0.0,
        "Share of adapter inputs set to zero in training, against overfitting. For variants lora "
        "and dora.",
        min=0.0, max=0.9, step=0.05,
    )  # fmt: skip
    train_token: bool = train_token()
    token_learning_rate: float = token_learning_rate()
    initialization: str = setting(
        "default",
        "How a LoRA starts. pissa: as the largest part of each weight, which learns faster; its "
        "file is an ordinary LoRA of twice the rank. For variant lora.",
        choices=INITIALIZATIONS, source="P PiSSA arXiv 2404.02948",
    )  # fmt: skip
    lokr_factor: int = setting(
        -1,
        "Size of the small matrix of a lokr; the smaller it is, the larger are the other one and "
        "the file. -1: as near to the root of each layer's size as it goes.",
        min=-1, max=1024, source="P LoKr arXiv 2309.14859; LyCORIS factor",
    )  # fmt: skip
    adapter_weights: str = setting(
        WIDE,
        "How an adapter is held while it trains. bf16: half the memory for it, its gradients and "
        "the optimizer's state; each update is rounded up or down at random so that small ones are "
        "not lost. For large adapters.",
        choices=ADAPTER_WEIGHTS, source="stochastic rounding: arXiv 2010.06192", before=WIDE,
    )  # fmt: skip

    def problems(self) -> list[str]:
        found = []
        for name, off in (("rank_stabilized", False), ("dropout", 0.0)):
            if getattr(self, name) != off and self.variant not in FACTOR_PAIRS:
                found.append(
                    f"{name} is {getattr(self, name)}, but variant '{self.variant}' has none; "
                    f"allowed: {off}, or variant {' or '.join(FACTOR_PAIRS)}"
                )
        if self.initialization == "pissa" and self.variant != "lora":
            found.append(
                f"initialization is 'pissa', but variant is '{self.variant}'; allowed: default, or "
                "variant lora"
            )
        if self.lokr_factor == 0:
            found.append("lokr_factor is 0; allowed: -1, or 1 and more")
        return found

    @property
    def trains_text(self) -> bool:
        return self.train_text_encoder or self.train_token

    @property
    def follows_base(self) -> bool:
        """Whether the adapter computes in the dtype of its base, else in fp32 always.

        PiSSA takes one large product from another, which bf16 would round.
        """
        return self.variant in ("lora", "lokr", "loha") and self.initialization != "pissa"

    @property
    def narrows_copies(self) -> bool:
        """Whether copies of fp32 weights are narrowed for it; what is held so needs none."""
        return self.follows_base and self.adapter_weights == WIDE
