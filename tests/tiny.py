"""Real base models at tiny size, with pictures to train them on.

A new family adds one builder to BUILDERS; every test that runs over families then covers it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.contracts import DENOISER, Family, LearnedIds, Parts, Tokens
from trainers.data.examples import Examples, encode_captions
from trainers.data.tokens import split_at_tokens
from trainers.loop import Progress, make_job, train
from trainers.models import FAMILIES
from trainers.noise import Diffusion, scaled_linear_alphas_cumprod
from trainers.settings.field import settings_of
from trainers.settings.run import RunConfig, config_groups
from trainers.settings.run import run_config as config_of
from trainers.step import Job

torch.set_num_threads(1)  # such small operations spend their time waiting for each other

CAPTIONS = ("a photo of sks dog", "sks dog on a beach", "a photo of sks dog")

# One level, one block, every kind of layer of the real UNet but the resamplers: 0.2 M parameters.
UNET_FACTS: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_heads": 2,
    "use_linear_in_transformer": False,
}
CLIP_FACTS: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "bos_token_id": 98,
    "eos_token_id": 99,
    "pad_token_id": 99,
}


def seeded(module: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`module`, built on the meta device, with seeded weights of a sensible size, frozen."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: _weight(name, empty.shape, generator).to(dtype)
        for name, empty in module.state_dict().items()
    }
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_(False).eval()


def _weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * drawn + ("norm" in name and name.endswith("weight"))
    return drawn / shape[1:].numel() ** 0.5


def characters(caption: str, learned: Mapping[str, LearnedIds] | None = None) -> Tensor:
    """A tokenizer that gives each character a token, framed and padded as CLIP's does."""
    words: list[int] = []
    for piece, is_learned in split_at_tokens(caption, learned or {}):
        ids = (learned or {})[piece]["clip_l"] if is_learned else map(_character, piece)
        words += ids
    words = words[:75]
    return torch.tensor([98, *words, *[99] * (76 - len(words))])


def _character(character: str) -> int:
    return ord(character) % 97


@functools.cache
def _sd15_modules(seed: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    facts = {DENOISER: UNET_FACTS, "clip_l": CLIP_FACTS}
    build = FAMILIES["sd15"].build
    return {
        name: seeded(build(name, facts[name]), seed + place, dtype)
        for place, name in enumerate(facts)
    }


def _sd15(prediction: str, seed: int, dtype: torch.dtype) -> Parts:
    return Parts(
        copy.deepcopy(_sd15_modules(seed, dtype)),
        tokenizer=lambda caption, learned: {"clip_l": characters(caption, learned)},
        objective=Diffusion(prediction, scaled_linear_alphas_cumprod()),
        device=torch.device("cpu"),
    )


@dataclass(frozen=True)
class Tiny:
    """One family at tiny size.

    Attributes:
        parts: (prediction, seed, dtype) -> the base model.
        latent_shapes: of two buckets, (C, h, w).
        predictions: the objectives it is published with.
    """

    parts: Callable[[str, int, torch.dtype], Parts]
    latent_shapes: tuple[tuple[int, ...], ...]
    predictions: tuple[str, ...]


BUILDERS: dict[str, Tiny] = {
    "sd15": Tiny(_sd15, ((4, 8, 8), (4, 8, 12)), ("epsilon", "v")),
}


def parts(
    family: str = "sd15",
    prediction: str = "epsilon",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Parts:
    return BUILDERS[family].parts(prediction, seed, dtype)


def examples(
    family: str = "sd15", counts: tuple[int, ...] = (2, 1), masked: bool = False
) -> Examples:
    """Random latents: `counts[i]` pictures of the family's i-th shape, each second one masked."""
    generator = torch.Generator().manual_seed(7)
    shapes = BUILDERS[family].latent_shapes
    latents = [
        torch.randn(shape, generator=generator)
        for shape, count in zip(shapes, counts, strict=False)
        for _ in range(count)
    ]
    masks = [
        (torch.rand(1, *latent.shape[1:], generator=generator) > 0.5).float()
        if masked and index % 2 == 0
        else None
        for index, latent in enumerate(latents)
    ]
    captions = [CAPTIONS[index % len(CAPTIONS)] for index in range(len(latents))]
    return Examples(tuple(latents), tuple(masks), tuple(captions), (1,) * len(latents))


TINY_DEFAULTS: dict[str, Any] = {"steps": 2, "precision": "fp32"}
TINY_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "alpha": 3.0},
    "dreambooth": {"learning_rate": 1e-4},
    # The tiny tokenizer knows no longer word than a character.
    "textual_inversion": {"token": "<sks>", "initializer": "d", "vectors": 3},
}


def run_config(method: str = "lora", **overrides: Any) -> RunConfig:
    """Settings of a short run; `overrides` are fields of any of RunConfig's parts."""
    values = TINY_DEFAULTS | TINY_METHOD_DEFAULTS[method] | overrides
    known = {name for kind in config_groups(method).values() for name in settings_of(kind)}
    assert not values.keys() - known, values.keys() - known
    return config_of(method, values)


def job(
    config: RunConfig,
    base: Parts | None = None,
    pictures: Examples | None = None,
    family: str = "sd15",
) -> Job:
    """A Job as a node makes it: text encoded once unless its encoder trains."""
    base, pictures = base or parts(family), pictures or examples(family)
    record: Family = FAMILIES[family]
    trains_text = config.own.trains_text
    captions = [*pictures.captions, config.objective.class_prompt, ""]
    encoded = None if trains_text else encode_captions(base, record, captions)
    return make_job(base, record, pictures, encoded, config)


def trained(
    config: RunConfig, base: Parts | None = None, pictures: Examples | None = None
) -> tuple[Job, list[Progress]]:
    """The job after its run, and what each step reported."""
    ready = job(config, base, pictures)
    reports: list[Progress] = []
    train(ready, reports.append)
    return ready, reports


def trainable_state(made: Job) -> dict[str, Tensor]:
    """Copies of all that a job trains, by module and parameter name."""
    return {
        f"{name}.{key}": parameter.detach().clone()
        for name, module in made.parts.modules.items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def frozen_state(base: Parts) -> dict[str, Tensor]:
    """Copies of all weights that a run must not change, by their names in the bare modules."""
    return {
        f"{name}.{key.replace('base_layer.', '')}": tensor.clone()
        for name, module in base.modules.items()
        for key, tensor in module.state_dict().items()
        if "lora_" not in key and ".rows." not in key
    }


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Same names, same bits."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, different


def assert_near(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], atol: float, rtol: float = 0.0
) -> None:
    """Same names, values within `atol` + `rtol` of theirs."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=rtol, msg=name)


def tokens(base: Parts, caption: str) -> Tokens:
    """One caption's tokens with a batch dimension."""
    return {name: ids[None] for name, ids in base.tokenize(caption).items()}
