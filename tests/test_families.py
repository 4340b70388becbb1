"""Every family at tiny size: modules as built and filled, prompts, predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from trainers.contracts import DENOISER
from trainers.models import FAMILIES
from trainers.models.clip import build_clip
from trainers.models.sd15 import CLIP_L_FACTS
from trainers.models.unet import build_unet, diffusers_config
from trainers.settings.lora import LORA_TARGETS

families = pytest.mark.parametrize("family", FAMILIES)
BUILT = {
    "unet": (build_unet, tiny.UNET_FACTS),
    "clip": (build_clip, CLIP_L_FACTS | tiny.CLIP_FACTS),
}
built = pytest.mark.parametrize(("build", "facts"), BUILT.values(), ids=BUILT)


def test_every_family_has_a_tiny_builder() -> None:
    assert tiny.BUILDERS.keys() == FAMILIES.keys()


@families
def test_family_names_its_modules_everywhere(family: str) -> None:
    record, modules = FAMILIES[family], tiny.parts(family).modules.keys()
    assert record.name == family
    assert record.file_prefixes.keys() == modules
    assert {DENOISER, *record.text_encoders} == modules
    assert tuple(record.lora_targets) == LORA_TARGETS
    assert all(targets.keys() == modules for targets in record.lora_targets.values())


@families
def test_predict_any_bucket_same_shape(family: str) -> None:
    record, base = FAMILIES[family], tiny.parts(family)
    text = record.encode_text(base, tiny.tokens(base, "a photo of sks dog"))
    pair = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in text.items()}
    for shape in tiny.BUILDERS[family].latent_shapes:
        predicted = record.predict(base.denoiser, torch.ones(2, *shape), torch.tensor([5, 9]), pair)
        assert predicted.shape == (2, *shape)
        assert not torch.equal(predicted[0], predicted[1])


@families
def test_predict_bf16_weights_take_fp32_latents(family: str) -> None:
    record = FAMILIES[family]
    ours, reference = (tiny.parts(family, dtype=d) for d in (torch.bfloat16, torch.float32))
    noisy = tiny.examples(family).latents[0][None]
    predictions = []
    for base in (ours, reference):
        text = record.encode_text(base, tiny.tokens(base, "sks"))
        predictions.append(record.predict(base.denoiser, noisy, torch.tensor([500]), text).float())
    difference = (predictions[0] - predictions[1]).norm() / predictions[1].norm()
    assert difference < 0.05


@families
def test_encode_text_prompt_matters(family: str) -> None:
    record, base = FAMILIES[family], tiny.parts(family)
    dog, cat = (record.encode_text(base, tiny.tokens(base, word)) for word in ("dog", "cat"))
    assert dog.keys() == cat.keys()
    assert all(not torch.equal(dog[name], cat[name]) for name in dog)


@families
def test_checkpoint_reaches_every_module(family: str) -> None:
    for module in tiny.parts(family).modules.values():
        FAMILIES[family].checkpoint(module)
        switched = [m for m in module.modules() if getattr(m, "gradient_checkpointing", False)]
        assert switched


@built
def test_build_filled_by_a_state_dict_shares_its_storage(build: Any, facts: Any) -> None:
    module = build(facts)
    weights = {name: torch.zeros(empty.shape) for name, empty in module.state_dict().items()}
    module.load_state_dict(weights, assign=True)
    for name, tensor in module.state_dict().items():
        assert tensor.data_ptr() == weights[name].data_ptr(), name


@built
def test_build_filled_by_a_state_dict_leaves_nothing_on_meta(build: Any, facts: Any) -> None:
    module: nn.Module = build(facts)
    assert all(parameter.is_meta for parameter in module.parameters())
    tiny.seeded(module, 0)
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])


# -- CLIP: layer by layer, as the paper's transformer, and as transformers runs it --------


def clip_and_tokens() -> tuple[nn.Module, Tensor]:
    base = tiny.parts("sd15")
    return base.modules["clip_l"], torch.stack([tiny.characters(c) for c in ("dog", "a cat")])


def layer_by_layer(encoder: nn.Module, ids: Tensor, num_layers: int) -> Tensor:
    """The normed output of the first `num_layers` layers, from their weights alone."""
    w = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    functional = nn.functional

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"]
    for layer in (f"encoder.layers.{i}" for i in range(num_layers)):
        normed = norm(x, f"{layer}.layer_norm1")
        q, k, v = (
            linear(normed, f"{layer}.self_attn.{part}_proj").unflatten(-1, (2, -1)).transpose(1, 2)
            for part in "qkv"
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        ahead = torch.ones(77, 77, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{layer}.self_attn.out_proj")
        inner = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(inner * (1.702 * inner).sigmoid(), f"{layer}.mlp.fc2")
    return norm(x, "final_layer_norm")


@pytest.mark.parametrize(("clip_skip", "num_layers"), [(None, 2), (-1, 2), (-2, 1), (-3, 0)])
def test_encode_text_equals_formula(clip_skip: int | None, num_layers: int) -> None:
    base = tiny.parts("sd15")
    base.clip_skip = clip_skip
    encoder, ids = clip_and_tokens()
    ours = FAMILIES["sd15"].encode_text(base, {"clip_l": ids})
    expected = layer_by_layer(encoder, ids, num_layers)
    torch.testing.assert_close(ours["hidden"], expected, rtol=0, atol=1e-5)


def test_encode_text_equals_transformers() -> None:
    base = tiny.parts("sd15")
    encoder, ids = clip_and_tokens()
    ours = FAMILIES["sd15"].encode_text(base, {"clip_l": ids})
    assert torch.equal(ours["hidden"], encoder(input_ids=ids).last_hidden_state)


# -- UNet ---------------------------------------------------------------------------------


def test_predict_equals_diffusers() -> None:
    base = tiny.parts("sd15")
    noisy, timesteps = torch.ones(2, 4, 8, 8), torch.tensor([3, 700])
    hidden = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
    ours = FAMILIES["sd15"].predict(base.denoiser, noisy, timesteps, {"hidden": hidden})
    theirs = base.denoiser(noisy, timesteps, encoder_hidden_states=hidden).sample
    assert torch.equal(ours, theirs)


# What the host says of each published model, and what its config.json in diffusers says.
SD15_HOST = {
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "in_channels": 4,
    "out_channels": 4,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
}
SD15_DIFFUSERS = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "transformer_layers_per_block": (1, 1, 1, 1),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}
UNETS = {
    "sd15": (SD15_HOST, SD15_DIFFUSERS),
    "heads by width": (
        {**SD15_HOST, "num_heads": -1, "num_head_channels": 64, "context_dim": 1024},
        {**SD15_DIFFUSERS, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
    ),
    "inpainting": (SD15_HOST | {"in_channels": 9}, SD15_DIFFUSERS | {"in_channels": 9}),
}


@pytest.mark.parametrize(("facts", "expected"), UNETS.values(), ids=UNETS)
def test_diffusers_config_of_published_models(
    facts: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    assert diffusers_config(facts) == expected
