"""Records of base models: told apart, the layers they choose, and how files name those."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

from tests import tiny
from tests.host import ROOT
from trainers.contracts import Parts
from trainers.methods.lora import layer_name, prepare
from trainers.models.architectures import (
    ANIMA,
    ARCHITECTURES,
    CHROMA,
    DENOISER,
    FLUX,
    FLUX2,
    GENERIC,
    KREA2,
    QWEN_IMAGE,
    SD2,
    SD3,
    SD15,
    SDXL,
    Z_IMAGE,
    Architecture,
    architecture_of,
)
from trainers.settings.methods.lora import LORA_TARGETS

records = pytest.mark.parametrize("record", ARCHITECTURES.values(), ids=ARCHITECTURES)
ATTENTION, FEED_FORWARD, EVERYTHING = LORA_TARGETS


def test_names_are_keys_and_titles_are_unique() -> None:
    assert list(ARCHITECTURES) == [record.name for record in ARCHITECTURES.values()]
    assert len({record.title for record in ARCHITECTURES.values()}) == len(ARCHITECTURES)
    assert len({record.modelspec for record in ARCHITECTURES.values()}) == len(ARCHITECTURES)


def test_each_host_class_is_in_one_record() -> None:
    names = [name for record in ARCHITECTURES.values() for name in record.host_classes]
    assert len(names) == len(set(names))


@records
def test_record_is_found_by_its_host_classes(record: Architecture) -> None:
    assert all(architecture_of(name) is record for name in record.host_classes)


@pytest.mark.parametrize("name", ["KOALA_700M", "sd15", "BaseModel", ""])
def test_unknown_model_is_generic(name: str) -> None:
    assert architecture_of(name) is GENERIC


@records
def test_record_has_targets_for_each_choice(record: Architecture) -> None:
    assert len(record.targets) == len(LORA_TARGETS)


# -- layers -------------------------------------------------------------------------------


def module_of(*names: str) -> nn.Module:
    """A module with a layer under each dotted name: a norm, a convolution or a linear layer."""
    root = nn.Module()
    for name in names:
        *above, last = name.split(".")
        place = root
        for part in above:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        is_convolution = last in ("op", "conv", "skip_connection") or "layers.2" in name
        layer = nn.Conv2d(2, 2, 1) if is_convolution else nn.Linear(2, 2)
        place.add_module(last, nn.LayerNorm(2) if "norm" in last else layer)
    return root


# Of each kind of layer in the host's UNet one: attention, feed-forward, convolutions and the rest.
UNET_ATTENTION = [
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "middle_block.1.transformer_blocks.9.attn2.to_out.0",
]
UNET_FEED_FORWARD = [
    "input_blocks.1.1.proj_in",
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "input_blocks.1.1.transformer_blocks.0.ff.net.2",
    "output_blocks.5.1.proj_out",
]
UNET_CONVOLUTIONS = [
    "input_blocks.0.0",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "input_blocks.1.0.out_layers.3",
    "input_blocks.4.0.skip_connection",
    "input_blocks.3.0.op",
    "output_blocks.2.2.conv",
    "out.2",
]
UNET_NEVER = ["label_emb.0.0", "input_blocks.1.1.norm"]
TIME = ["time_embed.0", "time_embed.2"]


@pytest.mark.parametrize("record", [SD15, SD2, SDXL], ids=["sd15", "sd2", "sdxl"])
def test_layers_of_a_unet(record: Architecture) -> None:
    unet = module_of(*UNET_ATTENTION, *UNET_FEED_FORWARD, *UNET_CONVOLUTIONS, *UNET_NEVER, *TIME)
    found = {choice: set(record.layers(DENOISER, unet, choice)) for choice in LORA_TARGETS}
    assert found[ATTENTION] == set(UNET_ATTENTION)
    assert found[FEED_FORWARD] == {*UNET_ATTENTION, *UNET_FEED_FORWARD}
    time = () if record is SDXL else TIME
    assert found[EVERYTHING] == {*UNET_ATTENTION, *UNET_FEED_FORWARD, *UNET_CONVOLUTIONS, *time}


# A transformer as many have it: two kinds of attention in names, a feed-forward, what is around.
BLOCK_ATTENTION = ["blocks.0.attn.qkv", "blocks.1.self_attn.q", "blocks.1.img_attn_proj"]
BLOCK_REST = ["blocks.0.mlp.fc1", "blocks.1.mlp.fc2", "blocks.1.modulation.lin"]
AROUND = ["x_embedder.proj", "final_layer.linear", "attn_pool"]


def test_layers_of_a_generic_model() -> None:
    module = module_of(*BLOCK_ATTENTION, *BLOCK_REST, *AROUND)
    found = [set(GENERIC.layers(DENOISER, module, choice)) for choice in LORA_TARGETS]
    assert found[0] == set(BLOCK_ATTENTION)
    assert found[1] == {*BLOCK_ATTENTION, *BLOCK_REST}
    assert found[2] == {*BLOCK_ATTENTION, *BLOCK_REST, *AROUND}


@records
def test_layers_where_no_name_fits_are_those_of_the_blocks(record: Architecture) -> None:
    module = module_of("stages.0.mix", "stages.1.mix", "head")
    assert record.layers(DENOISER, module, ATTENTION) == ["stages.0.mix", "stages.1.mix"]
    assert record.layers(DENOISER, module_of("head"), ATTENTION) == ["head"]
    assert record.layers(DENOISER, module_of("norm"), ATTENTION) == []


# CLIP's, T5's and a language model's, by the host's names.
TEXT_ATTENTION = [
    "transformer.text_model.encoder.layers.0.self_attn.out_proj",
    "transformer.encoder.block.0.layer.0.SelfAttention.q",
    "transformer.model.layers.0.self_attn.o_proj",
]
TEXT_FEED_FORWARD = [
    "transformer.text_model.encoder.layers.0.mlp.fc1",
    "transformer.encoder.block.0.layer.1.DenseReluDense.wi_0",
    "transformer.encoder.block.0.layer.1.DenseReluDense.wo",
    "transformer.model.layers.0.mlp.gate_proj",
]
TEXT_MORE, TEXT_PROJECTION = "transformer.model.embed_proj", "transformer.text_projection"


@records
@pytest.mark.parametrize("kind", range(3), ids=["clip", "t5", "language model"])
def test_layers_of_a_text_encoder(record: Architecture, kind: int) -> None:
    attention = [TEXT_ATTENTION[kind]]
    start = attention[0].split("layer")[0]
    forward = [name for name in TEXT_FEED_FORWARD if name.startswith(start)]
    encoder = module_of(*attention, *forward, TEXT_MORE, TEXT_PROJECTION)
    found = [record.layers("clip_l", encoder, choice) for choice in LORA_TARGETS]
    assert found == [attention, [*attention, *forward], [*attention, *forward, TEXT_MORE]]


# -- names in files -----------------------------------------------------------------------


def parts_as(record: Architecture, **diffusers_names: str) -> Parts:
    return dataclasses.replace(
        tiny.parts(), architecture=record, diffusers_names=dict(diffusers_names)
    )


# As networks/lora.py of kohya's sd-scripts writes them: the module's path with underscores, in the
# published names of the UNet for SDXL and in those of diffusers for SD1 and SD2.
SDXL_NAMES = [
    (DENOISER, "input_blocks.0.0", "lora_unet_input_blocks_0_0"),
    (
        DENOISER,
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    ),
    (
        DENOISER,
        "middle_block.1.transformer_blocks.9.attn2.to_k",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k",
    ),
    (
        DENOISER,
        "input_blocks.7.1.transformer_blocks.3.ff.net.0.proj",
        "lora_unet_input_blocks_7_1_transformer_blocks_3_ff_net_0_proj",
    ),
    (
        DENOISER,
        "output_blocks.2.1.transformer_blocks.0.attn1.to_out.0",
        "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_out_0",
    ),
    (DENOISER, "output_blocks.5.1.proj_out", "lora_unet_output_blocks_5_1_proj_out"),
    (DENOISER, "input_blocks.3.0.op", "lora_unet_input_blocks_3_0_op"),
    (DENOISER, "input_blocks.1.0.in_layers.2", "lora_unet_input_blocks_1_0_in_layers_2"),
    (
        "clip_l",
        "transformer.text_model.encoder.layers.11.self_attn.q_proj",
        "lora_te1_text_model_encoder_layers_11_self_attn_q_proj",
    ),
    (
        "clip_g",
        "transformer.text_model.encoder.layers.31.mlp.fc2",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2",
    ),
]


@pytest.mark.parametrize(("module", "layer", "expected"), SDXL_NAMES)
def test_layer_name_of_sdxl_is_kohyas(module: str, layer: str, expected: str) -> None:
    assert layer_name(parts_as(SDXL), module, layer) == expected


# As kohya's networks/lora_flux.py writes FLUX.1; the others as Tongyi's, QwenLM's and BFL's own
# modules are called behind diffusion_model (ComfyUI, ai-toolkit and diffusers read them so).
TRANSFORMER_NAMES = [
    (FLUX, DENOISER, "double_blocks.0.img_attn.qkv", "lora_unet_double_blocks_0_img_attn_qkv"),
    (FLUX, DENOISER, "single_blocks.37.linear1", "lora_unet_single_blocks_37_linear1"),
    (
        FLUX,
        "clip_l",
        "transformer.text_model.encoder.layers.0.mlp.fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    ),
    (
        FLUX,
        "t5xxl",
        "transformer.encoder.block.0.layer.0.SelfAttention.q",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ),
    (CHROMA, DENOISER, "double_blocks.0.txt_mlp.2", "lora_unet_double_blocks_0_txt_mlp_2"),
    (
        CHROMA,
        "t5xxl",
        "transformer.encoder.block.0.layer.0.SelfAttention.q",
        "lora_te1_encoder_block_0_layer_0_SelfAttention_q",
    ),
    (Z_IMAGE, DENOISER, "layers.0.attention.qkv", "diffusion_model.layers.0.attention.qkv"),
    (
        Z_IMAGE,
        "qwen3_4b",
        "transformer.model.layers.0.self_attn.q_proj",
        "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj",
    ),
    (
        QWEN_IMAGE,
        DENOISER,
        "transformer_blocks.0.attn.add_q_proj",
        "diffusion_model.transformer_blocks.0.attn.add_q_proj",
    ),
    (FLUX2, DENOISER, "single_blocks.0.linear2", "diffusion_model.single_blocks.0.linear2"),
]


@pytest.mark.parametrize(("record", "module", "layer", "expected"), TRANSFORMER_NAMES)
def test_layer_name_of_transformers(
    record: Architecture, module: str, layer: str, expected: str
) -> None:
    assert layer_name(parts_as(record), module, layer) == expected


# What a transformer's block holds beside its attention: FLUX's and Qwen-Image's names.
SINGLE = ["single_blocks.0.linear1", "single_blocks.0.linear2"]
DOUBLE = ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj"]
FORWARD = ["double_blocks.0.img_mlp.0", "transformer_blocks.0.txt_mlp.net.2"]
MODULATION = [
    "double_blocks.0.img_mod.lin", "single_blocks.0.modulation.lin",
    "layers.0.adaLN_modulation.0", "transformer_blocks.0.img_mod.1",
]  # fmt: skip
OUTSIDE = ["img_in", "final_layer.linear", "double_stream_modulation_img.lin"]


@pytest.mark.parametrize("record", [SD3, FLUX, FLUX2, CHROMA, Z_IMAGE, QWEN_IMAGE, KREA2, ANIMA])
def test_layers_of_a_transformer(record: Architecture) -> None:
    module = module_of(*SINGLE, *DOUBLE, *FORWARD, *MODULATION, *OUTSIDE)
    found = [set(record.layers(DENOISER, module, choice)) for choice in LORA_TARGETS]
    assert found[0] == {*SINGLE, *DOUBLE}
    assert found[1] == {*SINGLE, *DOUBLE, *FORWARD}
    assert found[2] == {*SINGLE, *DOUBLE, *FORWARD, *MODULATION, *OUTSIDE}


def test_layers_of_chroma_are_not_those_that_modulate() -> None:
    modulating = "distilled_guidance_layer.layers.0.in_layer"
    module = module_of(*SINGLE, *DOUBLE, *FORWARD, modulating)
    found = [modulating in CHROMA.layers(DENOISER, module, choice) for choice in LORA_TARGETS]
    assert found == [False, False, True]


SD_NAMES = [
    ("input_blocks.0.0", "conv_in", "lora_unet_conv_in"),
    (
        "input_blocks.2.1.transformer_blocks.0.attn2.to_out.0",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0",
    ),
    (
        "middle_block.1.transformer_blocks.0.ff.net.0.proj",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
    ),
]


@pytest.mark.parametrize("record", [SD15, SD2], ids=["sd15", "sd2"])
@pytest.mark.parametrize(("layer", "diffusers_name", "expected"), SD_NAMES)
def test_layer_name_of_sd1_and_sd2_is_diffusers(
    record: Architecture, layer: str, diffusers_name: str, expected: str
) -> None:
    assert layer_name(parts_as(record, **{layer: diffusers_name}), DENOISER, layer) == expected


@pytest.mark.parametrize(("record", "encoder"), [(SD15, "clip_l"), (SD2, "clip_h")])
def test_layer_name_of_the_one_text_encoder(record: Architecture, encoder: str) -> None:
    name = "transformer.text_model.encoder.layers.11.self_attn.q_proj"
    expected = "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
    assert layer_name(parts_as(record), encoder, name) == expected


def test_layer_name_of_a_generic_model_is_dotted() -> None:
    parts = parts_as(GENERIC)
    assert layer_name(parts, DENOISER, "blocks.0.attn.qkv") == "diffusion_model.blocks.0.attn.qkv"
    assert layer_name(parts, "t5xxl", "transformer.encoder.block.0.layer.0.SelfAttention.q") == (
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    )


def test_generic_lora_has_the_names_of_its_matrices() -> None:
    parts = parts_as(GENERIC)
    exported = prepare(parts, tiny.run_config(train_text_encoder=True)).export()
    assert {key.rpartition(".lora_")[2] for key in exported if ".lora_" in key} == {
        "A.weight",
        "B.weight",
    }
    down = exported["text_encoders.clip_l.encoder.layers.0.self_attn.q_proj.lora_A.weight"]
    assert down.shape == (2, 32)
    alphas = [tensor for key, tensor in exported.items() if key.endswith(".alpha")]
    assert 3 * len(alphas) == len(exported)
    assert all(torch.equal(alpha, torch.tensor(3.0)) for alpha in alphas)


def test_page_on_adding_a_model_shows_what_is_there() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    for change in re.split(r"^--- .*\n", diff, flags=re.MULTILINE)[1:]:
        header, *lines = change.splitlines()
        added = [line[1:] for line in lines if line.startswith("+")]
        source = (ROOT / header.removeprefix("+++ b/")).read_text(encoding="utf-8").splitlines()
        assert [line for line in added if line not in source] == []
        assert len(added) < 20


@pytest.mark.parametrize(
    ("architecture", "encoders", "trained"),
    [
        (SD15, ("clip_l",), ("clip_l",)),
        (SDXL, ("clip_l", "clip_g"), ("clip_l", "clip_g")),
        (FLUX, ("clip_l", "t5xxl"), ("clip_l",)),
        (FLUX, ("t5xxl",), ("t5xxl",)),  # nothing else is there
        (CHROMA, ("t5xxl",), ("t5xxl",)),
    ],
)
def test_t5_stays_frozen_beside_clip(
    architecture: Architecture, encoders: tuple[str, ...], trained: tuple[str, ...]
) -> None:
    assert architecture.trained_encoders(encoders) == trained
