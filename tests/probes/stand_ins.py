"""What stands in for parts that the host has no files of: vocabularies and large VAEs."""

from __future__ import annotations

import io as streams
import string
from typing import Any

import sentencepiece
import torch


def vocabulary() -> torch.Tensor:
    """A sentencepiece vocabulary of single letters, as the host reads one off a checkpoint.

    Its special tokens are where T5 and Gemma have theirs.
    """
    letters = string.ascii_letters + string.digits + string.punctuation
    made = streams.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(letters), "a photo of a dog"]), model_writer=made,
        model_type="char", vocab_size=256, hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(made.getvalue()), dtype=torch.uint8)


class Averages:
    """A VAE that gives averages of pixels in the shape of a model's latents."""

    output_channels = 3
    vae_dtype = torch.float32

    def __init__(self, latents: Any) -> None:
        self.first_stage_model = torch.nn.Linear(1, 1)  # for the pack to hash
        torch.nn.init.ones_(self.first_stage_model.weight)
        torch.nn.init.zeros_(self.first_stage_model.bias)
        self._channels, self._dimensions = latents.latent_channels, latents.latent_dimensions
        self._factor = getattr(latents, "spacial_downscale_ratio", 8)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) in 0..1 to (B, C, [1, ...] H / factor, W / factor)."""
        means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, self._factor)
        repeated = means.repeat(1, self._channels // 3 + 1, 1, 1)[:, : self._channels]
        return repeated.reshape(
            *repeated.shape[:2], *[1] * (self._dimensions - 2), *means.shape[2:]
        )
