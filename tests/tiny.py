"""Real base models at tiny size, with pictures to train them on.

A new model adds one builder to BUILDERS; every test that runs over models then covers it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.schedules import scaled_linear_alphas_cumprod
from trainers.contracts import Parts, Rows, Size, Text
from trainers.data.examples import Examples
from trainers.data.tokens import find_tokens
from trainers.loop import Progress, make_job, train
from trainers.models.architectures import DENOISER, SD15, UNET_TARGETS
from trainers.models.convolution import use_small_map_convolutions
from trainers.models.recast import Scratch, compute_wide
from trainers.objective.noise import Diffusion
from trainers.settings.field import settings_of
from trainers.settings.run import RunConfig, config_groups
from trainers.settings.run import run_config as config_of
from trainers.step import Job

torch.set_num_threads(1)  # such small operations spend their time waiting for each other

CAPTIONS = ("a photo of sks dog", "sks dog on a beach", "a photo of sks dog")

# One level, one block, every kind of layer of the real UNet but the resamplers: 0.2 M parameters.
UNET_FACTS: dict[str, Any] = {
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
# The layers of diffusers' UNet, which has other names than the host's.
DIFFUSERS_CONVOLUTIONS = (
    r".*\.(conv1|conv2|conv_shortcut|time_emb_proj)|conv_in|conv_out|time_embedding\.linear_[12]"
)
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
    "hidden_act": "quick_gelu",
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


def split_at_tokens(text: str, tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """`text` in pieces, each with whether it is one of `tokens`, which are spelled as given."""
    spelled = {token.lower(): token for token in tokens}
    if not spelled:
        return [(text, False)]
    pieces, end = [], 0
    for found in find_tokens(spelled.values()).finditer(text):
        pieces += [(text[end : found.start()], False), (spelled[found.group().lower()], True)]
        end = found.end()
    return [(piece, known) for piece, known in [*pieces, (text[end:], False)] if piece]


class Characters:
    """A TextSide with one CLIP whose tokenizer gives each character a token, framed and padded."""

    encoders = ("clip_l",)

    def __init__(self, clip: nn.Module) -> None:
        self.learned: dict[str, Rows] = {}
        self._clip: Any = clip
        self._rows: list[tuple[int, Tensor]] = []
        self._clip.embeddings.token_embedding.register_forward_hook(self._put_rows)

    def tokenize(self, text: str) -> dict[str, list[int | Tensor]]:
        words: list[int | Tensor] = []
        for piece, is_learned in split_at_tokens(text, self.learned):
            rows = self.learned[piece]["clip_l"] if is_learned else ()
            words += list(rows) if is_learned else map(character, piece)
        return {"clip_l": framed(words)}

    def encode(self, text: str) -> Text:
        tokens = self.tokenize(text)["clip_l"]
        self._rows = [(at, row) for at, row in enumerate(tokens) if isinstance(row, Tensor)]
        ids = torch.tensor([[0 if isinstance(token, Tensor) else token for token in tokens]])
        return {"hidden": self._clip(ids).last_hidden_state}

    def vocabulary(self, encoder: str) -> Tensor:
        weight: Tensor = self._clip.embeddings.token_embedding.weight
        return weight.detach()

    def _put_rows(self, table: nn.Module, ids: Any, output: Tensor) -> Tensor:
        for at, row in self._rows:
            parts = output[:, :at], row.to(output).expand(1, 1, -1), output[:, at + 1 :]
            output = torch.cat(parts, dim=1)
        return output


def character(letter: str) -> int:
    """The token of one character."""
    return ord(letter) % 97


def framed(words: Sequence[int | Tensor]) -> list[int | Tensor]:
    """77 tokens: the start, the words, ends."""
    return [98, *words[:75], *[99] * (76 - len(words[:75]))]


def ids(text: str) -> Tensor:
    """The tokens of a text without learned ones, (77,)."""
    return torch.tensor(framed([*map(character, text)]))


def build(name: str, **changed: Any) -> Any:
    """An empty module of the tiny SD1.5, on the meta device; `changed` are facts of its own."""
    with torch.device("meta"):
        if name == DENOISER:
            unet = UNet2DConditionModel(**UNET_FACTS | changed)  # type: ignore[no-untyped-call]
            use_small_map_convolutions(unet)
            return unet
        clip = CLIPTextModel(CLIPTextConfig(**CLIP_FACTS | changed))
    for owner in clip.modules():
        # The one buffer that no checkpoint holds.
        if (ids := getattr(owner, "position_ids", None)) is not None:
            owner.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
    return clip


def bare(module: nn.Module) -> nn.Module:
    """`module` without the shell that transformers before 5 have around a CLIP."""
    inner: nn.Module = getattr(module, "text_model", module)
    return inner


class _Keeping(pickle.Pickler):
    """Leaves out tensors, and keeps them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, found: Any) -> int | None:
        if not isinstance(found, Tensor):
            return None
        self.tensors.append(found)
        return len(self.tensors) - 1


class _Copying(pickle.Unpickler):
    """Puts copies of tensors in their places."""

    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors, self._made = tensors, dict[int, Any]()

    def persistent_load(self, place: int) -> Tensor:
        return copy.deepcopy(self._tensors[place], self._made)


def copies(made: Any) -> Callable[[], Any]:
    """Makes deep copies; `copy.deepcopy` walks modules in Python and takes five times as long."""
    kept = _Keeping(file := io.BytesIO())
    kept.dump(made)
    return lambda: _Copying(io.BytesIO(file.getvalue()), kept.tensors).load()


@functools.cache
def _sd15_modules(seed: int, dtype: torch.dtype) -> Callable[[], dict[str, nn.Module]]:
    names = (DENOISER, "clip_l")
    return copies({
        name: bare(seeded(build(name), seed + place, dtype)) for place, name in enumerate(names)
    })  # fmt: skip


def _sd15(prediction: str, seed: int, dtype: torch.dtype) -> Parts:
    modules = _sd15_modules(seed, dtype)()
    unet: Any = modules[DENOISER]

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        hidden = torch.cat([text["hidden"] for text in texts]).to(made.dtype)
        predicted = unet(noisy.to(made.dtype), timesteps, encoder_hidden_states=hidden)
        sample: Tensor = predicted.sample
        return sample

    made = Parts(
        modules,
        predict,
        text=Characters(modules["clip_l"]),
        architecture=TINY_SD15,
        objective=Diffusion(prediction, scaled_linear_alphas_cumprod()),
        device=torch.device("cpu"),
        dtype=dtype,
        diffusers_names=Itself(),
    )
    return made


def widen(base: Parts) -> None:
    """Let `base` compute in fp32 on the weights that it has."""
    scratch = Scratch(torch.float32)
    for module in base.modules.values():
        for layer in module.modules():
            compute_wide(layer, scratch)
    base.dtype = torch.float32


class Itself(dict[str, str]):
    """Gives each key as its own value."""

    def __missing__(self, key: str) -> str:
        return key


TINY_SD15 = dataclasses.replace(
    SD15,
    targets=(*SD15.targets[:2], f"{UNET_TARGETS[1]}|{DIFFUSERS_CONVOLUTIONS}"),
    text_prefixes={"clip_l": "lora_te_text_model"},  # the host has that in its paths
)


@dataclass(frozen=True)
class Tiny:
    """One model at tiny size.

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
    model: str = "sd15",
    prediction: str = "epsilon",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Parts:
    return BUILDERS[model].parts(prediction, seed, dtype)


def examples(
    model: str = "sd15", counts: tuple[int, ...] = (2, 1), masked: bool = False
) -> Examples:
    """Random latents: `counts[i]` pictures of the model's i-th shape, each second one masked."""
    generator = torch.Generator().manual_seed(7)
    shapes = BUILDERS[model].latent_shapes
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
    sizes = [Size(64, 64, 0, 0, 8 * s.shape[-1], 8 * s.shape[-2]) for s in latents]
    ones = (1,) * len(latents)
    return Examples(tuple(latents), tuple(masks), tuple(captions), tuple(sizes), ones)


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
    model: str = "sd15",
) -> Job:
    """A Job as a node makes it: text encoded once unless its encoder trains."""
    base, pictures = base or parts(model), pictures or examples(model)
    captions = [*pictures.captions, config.objective.class_prompt, ""]
    encoded = None if config.own.trains_text else encode_captions(base, captions)
    return make_job(base, pictures, encoded, config)


def encode_captions(base: Parts, captions: Iterable[str]) -> dict[str, Text]:
    """What each caption becomes, without gradients."""
    with torch.no_grad():
        return {caption: base.text.encode(caption) for caption in dict.fromkeys(captions)}


def trained(
    config: RunConfig, base: Parts | None = None, pictures: Examples | None = None
) -> tuple[Job, list[Progress]]:
    """The job after its run, and what each step reported."""
    ready = job(config, base, pictures)
    reports: list[Progress] = []
    train(ready, reports.append)
    return ready, reports


def trainable_state(made: Job) -> dict[str, Tensor]:
    """Copies of all that a job trains, by module and parameter name, or encoder and token."""
    trained = {
        f"{name}.{key}": parameter
        for name, module in made.parts.modules.items()
        for key, parameter in module.named_parameters()
    }
    trained |= {
        f"{name}.{token}": row
        for token, rows in made.parts.text.learned.items()
        for name, row in rows.items()
    }
    return {name: p.detach().clone() for name, p in trained.items() if p.requires_grad}


def frozen_state(base: Parts) -> dict[str, Tensor]:
    """Copies of all weights that a run must not change, by their names in the bare modules."""
    return {
        f"{name}.{key.replace('base_layer.', '')}": tensor.clone()
        for name, module in base.modules.items()
        for key, tensor in module.state_dict().items()
        if not re.search("(lora|hada|lokr)_|oft_blocks", key)
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
