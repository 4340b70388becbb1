"""The records that a base model, the methods and the loop exchange.

The host knows a base model, a method knows what to train in it, the loop knows neither. They meet
in two records:

    Parts       the modules of one base model, and functions to use them
    Trainable   what a method made of the parts: parameters to train and how to export them

Letters in shapes: B samples, C latent channels; latents may have any shape behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .models.architectures import DENOISER, Architecture
from .objective.noise import Objective

# What a caption becomes, with a batch dimension of 1, and REFERENCES beside it, under the names
# that the host has; only the host's module looks inside.
Text = Mapping[str, Tensor | Sequence[Tensor]]
REFERENCES = "reference_latents"  # of control images, one each
Rows = dict[str, nn.Parameter]  # of a learned token, (vectors, D) fp32, by text encoder


class Size(NamedTuple):
    """How a picture came to its training size; SDXL is told of it.

    Attributes:
        width_px, height_px: of the whole picture.
        crop_left_px, crop_top_px: what was cut off, in pixels of the resized picture.
        bucket_width_px, bucket_height_px: what it trains at.
    """

    width_px: int
    height_px: int
    crop_left_px: int
    crop_top_px: int
    bucket_width_px: int
    bucket_height_px: int

    @property
    def area_px(self) -> int:
        """Of what it trains at."""
        return self.bucket_width_px * self.bucket_height_px


@dataclass(frozen=True, eq=False)
class Controls:
    """The control images of one picture, which an edit model is shown beside the caption.

    Attributes:
        latents: (1, C, ..., h, w) of each, fp32 on the CPU, as the VAE gives them.
        pixels: reads them: (1, H, W, 3) of each in 0..1, for text encoders that look at them.
    """

    latents: tuple[Tensor, ...]
    pixels: Callable[[], tuple[Tensor, ...]]


# What a text encoder reads: a caption, and the control images where it looks at those.
Prompt = str | tuple[str, Controls]


def prompt_of(caption: str, controls: Controls | None, architecture: Architecture) -> Prompt:
    """What the text encoder of such a model reads for a caption of a picture."""
    if controls is None or not architecture.control_encoder:
        return caption
    return caption, controls


class TextSide(Protocol):
    """Everything between a caption and what the denoiser is told.

    Attributes:
        encoders: names of the text encoders.
        learned: rows of the tokens that they know beside their vocabulary, by token.
    """

    encoders: tuple[str, ...]
    learned: dict[str, Rows]

    def tokenize(self, text: str) -> dict[str, list[int | Tensor]]:
        """All tokens of a text by text encoder, marks and padding too; a learned one as rows."""

    def encode(self, prompt: Prompt) -> Text:
        """What the denoiser is told, with gradients where something in it trains."""

    def vocabulary(self, encoder: str) -> Tensor:
        """The table (V, D) in which a text encoder looks up ids."""


# (noisy (B, C, ...), timesteps (B,), what each sample is told, each sample's size) -> (B, C, ...)
Predict = Callable[[Tensor, Tensor, Sequence[Text], Sequence[Size]], Tensor]


@dataclass
class Parts:
    """One base model, ready to be trained on `device`.

    Attributes:
        modules: the denoiser under "denoiser", and each text encoder that takes part. Their
            weights are frozen; those that a method changes are private copies.
        predict: what the denoiser predicts.
        text: captions and learned tokens.
        objective: what the denoiser is asked for, and the noise schedule.
        device: where modules live and steps run.
        dtype: what the denoiser computes in.
        diffusers_names: the denoiser's layers by the names that diffusers has for them.
    """

    modules: dict[str, nn.Module]
    predict: Predict
    text: TextSide
    architecture: Architecture
    objective: Objective
    device: torch.device
    dtype: torch.dtype = torch.float32
    diffusers_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def denoiser(self) -> nn.Module:
        return self.modules[DENOISER]

    def add_token(self, token: str, rows: Mapping[str, Tensor]) -> Rows:
        """Teach the text side a token: copies of its rows, frozen, by text encoder."""
        made = {
            name: nn.Parameter(
                start.detach().to(self.device, torch.float32, copy=True), requires_grad=False
            )
            for name, start in rows.items()
        }
        self.text.learned[token] = made
        return made


class Export(Protocol):
    """The result as tensors on the CPU, spelled as in its file."""

    def __call__(self, copy: bool = False) -> dict[str, Tensor]:
        """What was learned by now.

        Args:
            copy: in memory of its own, which no later step changes; else it may be the training's.
        """


def _nothing() -> None:
    pass


def _ignore(state: dict[str, Any]) -> None:
    pass


def _as_they_are(captions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {caption: (caption,) for caption in captions}


@dataclass
class Trainable:
    """What a method trains.

    Attributes:
        param_groups: groups for the optimizer, each with "params", "lr" and "name".
        export: gives the result.
        trains_text: whether prompts must be encoded anew at every step.
        after_step: called after each optimizer step.
        autocast: what the modules compute in where that is not the dtype of their weights.
        fused_backward: update each parameter in the backward pass.
        prompts: the captions of all instance images -> for each, the prompts that train it; each
            sample takes one of them at random.
        state: what a run that goes on later needs of the method, beside parameters and optimizer.
        load_state: takes what `state` gave.
        base_model: inside, the modules are the base's: what is trained does nothing. None where the
            base's weights themselves are trained.
        averaged: inside, the parameters are those that are handed out, where an optimizer trains
            others (schedule-free).
        names: keys of the first parameters in what `export` gives, where it gives nothing but those
            or their average, so that a state need not hold them twice.
        tokens: the learned tokens that were trained beside what `export` gives: (vectors, D) on
            the CPU, by token, by text encoder.
    """

    param_groups: list[dict[str, Any]]
    export: Export
    trains_text: bool
    after_step: Callable[[], None] = field(default=_nothing)
    autocast: torch.dtype | None = None
    fused_backward: bool = False
    prompts: Callable[[Iterable[str]], dict[str, tuple[str, ...]]] = field(default=_as_they_are)
    tokens: Callable[[], dict[str, dict[str, Tensor]]] = field(default=dict)
    state: Callable[[], dict[str, Any]] = field(default=dict)
    load_state: Callable[[dict[str, Any]], None] = field(default=_ignore)
    base_model: Callable[[], AbstractContextManager[None]] | None = None
    averaged: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    names: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
