"""The records that families, methods and the loop exchange.

A family knows a base model, a method knows what to train in it, the loop knows neither. They meet
in three records:

    Parts       the modules of one base model, and functions to use them
    Family      how models of one kind are built, prompted, run, and spelled in files
    Trainable   what a method made of the parts: parameters to train and how to export them

Letters in shapes: B samples, C latent channels, h and w latent height and width, L tokens,
D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .noise import Objective

# What a caption becomes; only its family looks inside.
Text = dict[str, Tensor]
Tokens = dict[str, Tensor]
# The ids of a learned token by text encoder; they lie behind the vocabulary.
LearnedIds = Mapping[str, tuple[int, ...]]

DENOISER = "denoiser"


@dataclass
class Parts:
    """One base model, ready to be trained on `device`.

    Attributes:
        modules: the denoiser under "denoiser" and each text encoder under its family's name for
            it. Their weights are frozen, in the dtype they compute in; those that a method
            changes are private copies. Text encoders answer get_input_embeddings(), as those of
            transformers do.
        tokenizer: (a caption, the learned tokens) -> its token ids by text encoder, each (L,)
            int64.
        objective: what the denoiser predicts, and the noise schedule.
        device: where modules live and steps run.
        clip_skip: the hidden layer that prompts are read from, counted from the end (-1 is the
            last); None where the family's own choice stands.
        learned: the tokens that the text encoders know beside their vocabulary; see
            trainers.table.
    """

    modules: dict[str, nn.Module]
    tokenizer: Callable[[str, Mapping[str, LearnedIds]], Tokens]
    objective: Objective
    device: torch.device
    clip_skip: int | None = None
    learned: dict[str, LearnedIds] = field(default_factory=dict)

    def tokenize(self, caption: str) -> Tokens:
        """The token ids of a caption by text encoder, each (L,) int64."""
        return self.tokenizer(caption, self.learned)

    @property
    def denoiser(self) -> nn.Module:
        return self.modules[DENOISER]


@dataclass(frozen=True)
class Family:
    """Base models of one kind, as functions and facts.

    Attributes:
        name: the key in FAMILIES and in run.json.
        title: what people call it.
        latent_scale: factor from what the VAE gives to what the denoiser sees.
        latent_stride_px: picture pixels per latent element.
        build: an empty module (on the meta device) for each name in Parts.modules, from the facts
            of a checkpoint (LDM-style config); its state dict takes the checkpoint's tensors.
        encode_text: (parts, tokens with a batch dimension) -> Text with a batch dimension.
        checkpoint: makes a module recompute its activations in the backward pass.
        predict: (denoiser, noisy latents (B, C, h, w), timesteps (B,), Text) -> (B, C, h, w).
        lora_targets: by choice of config.LORA_TARGETS, then by module name: a regular expression
            that the full names of adapted layers match.
        file_prefixes: by module name: what its layers' names start with in a kohya file.
        modelspec: the architecture in file metadata (the modelspec standard 1.0.1).
        base_model_version: ss_base_model_version in file metadata, as kohya spells it.
    """

    name: str
    title: str
    latent_scale: float
    latent_stride_px: int
    build: Callable[[str, Mapping[str, Any]], nn.Module]
    checkpoint: Callable[[nn.Module], None]
    encode_text: Callable[[Parts, Tokens], Text]
    predict: Callable[[nn.Module, Tensor, Tensor, Text], Tensor]
    lora_targets: Mapping[str, Mapping[str, str]]
    file_prefixes: Mapping[str, str]
    modelspec: str
    base_model_version: str

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.file_prefixes if name != DENOISER)


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
        export: the result as tensors on the CPU, spelled as in its file.
        trains_text: whether prompts must be encoded anew at every step.
        after_step: called after each optimizer step.
        autocast: what the modules compute in where that is not the dtype of their weights.
        fused_backward: update each parameter in the backward pass.
        prompts: the captions of all instance images -> for each, the prompts that train it; each
            sample takes one of them at random.
        state: what a run that goes on later needs of the method, beside parameters and optimizer.
        load_state: takes what `state` gave.
        tokens: the learned tokens that were trained beside what `export` gives: (vectors, D) on
            the CPU, by token, by text encoder.
    """

    param_groups: list[dict[str, Any]]
    export: Callable[[], dict[str, Tensor]]
    trains_text: bool
    after_step: Callable[[], None] = field(default=_nothing)
    autocast: torch.dtype | None = None
    fused_backward: bool = False
    prompts: Callable[[Iterable[str]], dict[str, tuple[str, ...]]] = field(default=_as_they_are)
    tokens: Callable[[], dict[str, dict[str, Tensor]]] = field(default=dict)
    state: Callable[[], dict[str, Any]] = field(default=dict)
    load_state: Callable[[dict[str, Any]], None] = field(default=_ignore)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
