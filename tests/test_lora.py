"""The LoRA method: which layers, what it exports, and that the export is what it computes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.kinds import KINDS, OWN, adapted, is_trained, layers_and_tensors, merged_weight
from trainers.contracts import Parts, Trainable
from trainers.methods.adapters.oft import block_size
from trainers.methods.lora import prepare
from trainers.models.architectures import DENOISER
from trainers.settings.methods.lora import FACTOR_PAIRS, LORA_TARGETS, LORA_VARIANTS

ATTENTION, FEED_FORWARD, EVERYTHING = LORA_TARGETS
every_kind = pytest.mark.parametrize("kind", KINDS)


def test_every_variant_is_tested() -> None:
    assert {settings.get("variant", "lora") for settings, _ in KINDS.values()} == {*LORA_VARIANTS}


def prepared(dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Parts, Trainable]:
    base = tiny.parts(dtype=dtype)
    return base, prepare(base, tiny.run_config(**settings))


def drift(base: Parts) -> None:
    """Give the LoRA the values of a long training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in base.modules.values():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


# -- which layers -------------------------------------------------------------------------


def in_transformer(name: str, *inside: str) -> bool:
    return any(f".{part}." in f".{name}." for part in inside)


def expected_layers(module: nn.Module, targets: str) -> set[str]:
    """By kind of layer and block, from the bare module, with no pattern of names as ours."""
    layers = {n for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if targets == EVERYTHING:
        return layers
    if targets == FEED_FORWARD:
        return {name for name in layers if in_transformer(name, "attentions", "layers")}
    return {name for name in layers if in_transformer(name, "attn1", "attn2", "self_attn")}


@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_targets_are_the_layers_of_their_kind(targets: str) -> None:
    bare = tiny.parts()
    base, _ = prepared(targets=targets, train_text_encoder=True)
    for name, module in base.modules.items():
        assert adapted(module).keys() == expected_layers(bare.modules[name], targets)


# Four transformer blocks with two attentions of four layers, two layers of feed-forward and two of
# projection; five residual blocks of three layers, two with a shortcut; four layers around them.
# CLIP has two blocks of four and two.
@pytest.mark.parametrize(
    ("targets", "in_unet", "in_clip"),
    [(ATTENTION, 32, 8), (FEED_FORWARD, 32 + 8 + 8, 8 + 4), (EVERYTHING, 48 + 15 + 2 + 4, 8 + 4)],
)
def test_targets_count(targets: str, in_unet: int, in_clip: int) -> None:
    base, _ = prepared(targets=targets, train_text_encoder=True)
    assert len(adapted(base.denoiser)) == in_unet
    assert len(adapted(base.modules["clip_l"])) == in_clip


def test_targets_attention_names() -> None:
    base, _ = prepared()
    blocks = [
        "down_blocks.0.attentions.0", "mid_block.attentions.0",
        "up_blocks.0.attentions.0", "up_blocks.0.attentions.1",
    ]  # fmt: skip
    assert adapted(base.denoiser).keys() == {
        f"{block}.transformer_blocks.0.{attention}.{layer}"
        for block in blocks
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_text_encoder_untouched_unless_asked_for() -> None:
    base, trainable = prepared()
    assert not adapted(base.modules["clip_l"])
    assert not trainable.trains_text
    assert [group["name"] for group in trainable.param_groups] == [DENOISER]
    assert all(key.startswith("lora_unet_") for key in trainable.export())


def test_text_encoder_has_its_own_group_and_rate() -> None:
    _, trainable = prepared(
        train_text_encoder=True, learning_rate=3e-4, text_encoder_learning_rate=2e-5
    )
    assert trainable.trains_text
    rates = {group["name"]: group["lr"] for group in trainable.param_groups}
    assert rates == {DENOISER: 3e-4, "clip_l": 2e-5}


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_lora_is_trainable_and_in_fp32(kind: str, dtype: torch.dtype) -> None:
    base, trainable = prepared(dtype, **KINDS[kind][0], targets=EVERYTHING, train_text_encoder=True)
    for module in base.modules.values():
        for name, parameter in module.named_parameters():
            assert parameter.requires_grad == is_trained(name)
            assert parameter.dtype == (torch.float32 if re.search(OWN, name) else dtype)
    count = sum(p.requires_grad for module in base.modules.values() for p in module.parameters())
    assert len(trainable.parameters) == len({id(p) for p in trainable.parameters}) == count


@pytest.mark.parametrize("rank", [1, 3])
def test_parameter_count_is_rank_times_in_plus_out(rank: int) -> None:
    bare = tiny.parts().denoiser
    _, trainable = prepared(rank=rank)
    sides = [tuple(bare.get_submodule(n).weight.shape) for n in expected_layers(bare, ATTENTION)]
    assert sum(p.numel() for p in trainable.parameters) == rank * sum(a + b for a, b in sides)


def test_dropout_is_set_on_every_layer() -> None:
    base, _ = prepared(dropout=0.25)
    for layer in adapted(base.denoiser).values():
        assert layer.lora_dropout["default"].p == 0.25


# -- where it starts ----------------------------------------------------------------------


def predict(base: Parts) -> Tensor:
    noisy = tiny.examples().latents[0][None]
    text = base.text.encode("a photo of sks dog")
    return base.predict(noisy, torch.tensor([400]), [text], tiny.examples().sizes[:1])


@every_kind
@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_untrained_changes_nothing(kind: str, targets: str) -> None:
    base, _ = prepared(**KINDS[kind][0], targets=targets, train_text_encoder=True)
    torch.testing.assert_close(predict(base), predict(tiny.parts()), rtol=0, atol=1e-5)


def test_untrained_lora_is_bit_equal_to_the_base() -> None:
    base, _ = prepared(targets=EVERYTHING, train_text_encoder=True)
    assert torch.equal(predict(base), predict(tiny.parts()))


def start(dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, Tensor]:
    base, _ = prepared(dtype, train_text_encoder=True, **settings)
    return {
        f"{name}.{key}": parameter.detach()
        for name, module in base.modules.items()
        for key, parameter in module.named_parameters()
        if "lora_A" in key
    }


def test_start_depends_on_the_seed_alone() -> None:
    first = start(seed=5)
    torch.rand(3)  # the global generator moves on
    tiny.assert_equal(start(seed=5), first)
    other = start(seed=6)
    assert not any(torch.equal(other[name], first[name]) for name in first)


def test_start_is_the_same_on_a_bf16_base_but_for_rounding() -> None:
    tiny.assert_near(start(torch.bfloat16), start(), atol=0, rtol=2**-8)


def test_start_is_kaimings() -> None:
    # torch's own start of a linear layer: uniform within 1 / sqrt(inputs).
    for matrix in start(rank=8).values():
        bound = 1 / math.sqrt(matrix[0].numel())
        assert 0.9 * bound < matrix.abs().max() <= bound


def test_prepare_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    prepared()
    assert torch.equal(torch.get_rng_state(), before)


def test_prepare_reseeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    prepared()
    assert not seeds


@every_kind
def test_prepare_leaves_the_base_weights_as_and_where_they_are(kind: str) -> None:
    base, bare = tiny.parts(), tiny.frozen_state(tiny.parts())
    before = {name: tensor.data_ptr() for name, tensor in base.denoiser.state_dict().items()}
    prepare(base, tiny.run_config(**KINDS[kind][0], targets=EVERYTHING, train_text_encoder=True))
    after = {
        name.replace("base_layer.", ""): tensor.data_ptr()
        for name, tensor in base.denoiser.state_dict().items()
        if not re.search(OWN, name)
    }
    assert after == before
    tiny.assert_equal(tiny.frozen_state(base), bare)


def test_pissa_starts_as_the_principal_part_of_each_weight() -> None:
    base, _ = prepared(initialization="pissa", rank=4, alpha=2.0, targets=EVERYTHING)
    for layer in adapted(base.denoiser).values():
        weight = layer.base_layer.weight.flatten(1)
        factors = [m["default"].weight.flatten(1) for m in (layer.lora_B, layer.lora_A)]
        left = (weight - layer.scaling["default"] * factors[0] @ factors[1]).norm()
        least = torch.linalg.svdvals(weight)[4:].norm()
        assert left <= 1.01 * least + 1e-5
        torch.testing.assert_close(factors[0].norm(dim=0), factors[1].norm(dim=1))


@pytest.mark.parametrize(
    ("outputs", "rank", "size"),
    [(320, 16, 16), (320, 32, 16), (1280, 24, 20), (4, 16, 2), (7, 4, 1)],
)
def test_oft_blocks_divide_the_outputs(outputs: int, rank: int, size: int) -> None:
    assert block_size(outputs, rank) == size


def test_lokr_has_a_scale_only_where_a_factor_has_a_rank() -> None:
    for settings, scale in (({"rank": 64}, 1.0), ({"rank": 2, "lokr_factor": 2}, 1.5)):
        base, _ = prepared(variant="lokr", alpha=3.0, **settings)
        assert {layer.scaling["default"] for layer in adapted(base.denoiser).values()} == {scale}


# -- what it exports ----------------------------------------------------------------------

KEY = re.compile(r"(lora_unet|lora_te_text_model)_[a-z0-9_]+\.([a-z0-9_.]+)")


@every_kind
def test_export_holds_the_same_entries_for_each_layer(kind: str) -> None:
    base, trainable = prepared(**KINDS[kind][0], targets=EVERYTHING, train_text_encoder=True)
    exported = trainable.export()
    entries = KINDS[kind][1]
    found: dict[str, set[str]] = {}
    for key in exported:
        layer, _, ending = key.partition(".")
        assert KEY.fullmatch(key)
        found.setdefault(layer, set()).add(ending)
    assert len(found) == sum(len(adapted(module)) for module in base.modules.values())
    assert all(endings == entries for endings in found.values())


def test_export_spells_layers_as_kohya_does() -> None:
    _, trainable = prepared(train_text_encoder=True)
    exported = trainable.export().keys()
    attention = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert f"lora_unet_{attention}.lora_down.weight" in exported
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.alpha" in exported


@every_kind
def test_export_tensors_stand_alone(kind: str) -> None:
    base, trainable = prepared(torch.bfloat16, **KINDS[kind][0], targets=EVERYTHING)
    modules = {t.untyped_storage().data_ptr() for t in base.denoiser.state_dict().values()}
    exported = trainable.export()
    storages = [tensor.untyped_storage().data_ptr() for tensor in exported.values()]
    assert not modules & set(storages)
    assert len(set(storages)) == len(storages)
    for tensor in exported.values():
        assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")
        assert tensor.is_contiguous()
        assert not tensor.requires_grad


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 4, "alpha": 4.0}, 1.0),
        ({"rank": 4, "alpha": 1.0}, 1 / 4),
        ({"rank": 4, "alpha": 6.0, "rank_stabilized": True}, 6 / math.sqrt(4)),
        ({"rank": 8, "alpha": 0.5, "rank_stabilized": True}, 0.5 / math.sqrt(8)),
    ],
)
def test_export_alpha_gives_readers_the_trained_scale(
    settings: dict[str, Any], scale: float
) -> None:
    base, trainable = prepared(**settings)
    alphas = {key: t for key, t in trainable.export().items() if key.endswith(".alpha")}
    assert all(t.ndim == 0 for t in alphas.values())
    assert [t.item() / settings["rank"] for t in alphas.values()] == pytest.approx([scale] * 32)
    for layer in adapted(base.denoiser).values():
        assert layer.scaling["default"] == pytest.approx(scale)


def plain_output(layer: nn.Linear | nn.Conv2d, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


@pytest.mark.parametrize("rank_stabilized", [False, True])
@every_kind
def test_export_merged_into_each_weight_is_the_adapted_layer(
    kind: str, rank_stabilized: bool
) -> None:
    settings = {"rank": 3, "alpha": 2.0} | KINDS[kind][0]
    if rank_stabilized:
        if settings.get("variant", "lora") not in FACTOR_PAIRS:
            pytest.skip("not of this variant")
        settings["rank_stabilized"] = True
    base, trainable = prepared(**settings, targets=EVERYTHING, train_text_encoder=True)
    drift(base)
    kernels = set()
    for *_, layer, tensors in layers_and_tensors(base, trainable.export()):
        bare = layer.base_layer
        weight = bare.weight
        kernels.add(tuple(weight.shape[2:]))
        shape = (2, weight.shape[1], *[6] * (weight.ndim - 2))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        expected = plain_output(bare, merged_weight(weight, tensors), x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        assert (layer(x) - bare(x)).abs().max() > 1e-3
    assert kernels == {(), (1, 1), (3, 3)}


def test_export_dora_weight_is_as_long_as_its_magnitude() -> None:
    # m (W + BA) / |W + BA|, whatever the reader divides by: arXiv 2402.09353, eq. 5
    base, trainable = prepared(variant="dora", targets=EVERYTHING, train_text_encoder=True)
    drift(base)
    for *_, layer, tensors in layers_and_tensors(base, trainable.export()):
        lengths = merged_weight(layer.get_base_layer().weight, tensors).flatten(1).norm(dim=1)
        magnitude = layer.lora_magnitude_vector["default"].weight.flatten()
        torch.testing.assert_close(lengths, magnitude.detach().abs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dora_starts_as_the_base_whatever_dtype_that_has(dtype: torch.dtype) -> None:
    base = tiny.parts(dtype=dtype)
    if dtype == torch.float16:  # as where fp32 is computed on its weights
        tiny.widen(base)
    settings = {"variant": "dora", "targets": EVERYTHING, "train_text_encoder": True}
    trainable = prepare(base, tiny.run_config(**settings))
    computes_in = torch.float32 if dtype == torch.float16 else dtype
    for *_, layer, tensors in layers_and_tensors(base, trainable.export()):
        bare = layer.base_layer
        weight = bare.weight.float()
        lengths = weight.flatten(1).norm(dim=1)
        magnitude = layer.lora_magnitude_vector["default"].weight
        assert magnitude.dtype == torch.float32
        torch.testing.assert_close(magnitude.flatten(), lengths, atol=0, rtol=1e-6)
        torch.testing.assert_close(merged_weight(weight, tensors), weight, atol=0, rtol=1e-6)
        shape = (2, weight.shape[1], *[6] * (weight.ndim - 2))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(computes_in)
        assert torch.equal(layer(x), bare(x))


@every_kind
def test_export_merged_into_the_bare_model_predicts_the_same(kind: str) -> None:
    base, trainable = prepared(**KINDS[kind][0], targets=EVERYTHING, train_text_encoder=True)
    drift(base)
    merged = tiny.parts()
    for name, layer_name, _, tensors in layers_and_tensors(base, trainable.export()):
        weight = merged.modules[name].get_submodule(layer_name).weight
        weight.data = merged_weight(weight, tensors)
    torch.testing.assert_close(predict(base), predict(merged), rtol=1e-4, atol=1e-5)


@every_kind
def test_bf16_base_predicts_near_the_fp32_one(kind: str) -> None:
    settings = {**KINDS[kind][0], "targets": EVERYTHING, "train_text_encoder": True}
    wide, narrow = prepared(torch.float32, **settings)[0], prepared(torch.bfloat16, **settings)[0]
    drift(wide)
    for name, module in wide.modules.items():
        for key, parameter in module.named_parameters():
            if re.search(OWN, key):
                narrow.modules[name].get_parameter(key).data = parameter.data
    expected, found = predict(wide), predict(narrow)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.05
