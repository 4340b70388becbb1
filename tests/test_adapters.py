"""LoRAs merged, resized and extracted: against whole matrices in fp64, and against peft."""

from __future__ import annotations

import contextlib
import math
import zlib
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from tests.test_low_rank import distance, random
from trainers.errors import AdapterError, SettingsError
from trainers.methods.adapters.extract import Difference, extract
from trainers.methods.adapters.layers import DOTTED_ENDINGS, ENDINGS, KOHYA_ENDINGS, read_lora
from trainers.methods.adapters.low_rank import Keep, Kept, total_residual
from trainers.methods.adapters.merge import SUM, WAYS, Way, merge, resize
from trainers.methods.adapters.report import report
from trainers.methods.results import Adapter
from trainers.runs.metadata import check_one_base, merged_metadata

Q, V, CONV = "lora_unet_down_blocks_0_to_q", "lora_unet_down_blocks_0_to_v", "lora_unet_mid_block_c"
SHAPES = {Q: (24, 16), V: (12, 30), CONV: (10, 6, 3, 3)}


def lora(
    *names: str, rank: int = 4, alpha: float | None = 2.0, seed: int = 0, tucker: bool = False
) -> dict[str, Tensor]:
    """A LoRA as Train LoRA writes it; `tucker` makes its convolutions LyCORIS's."""
    tensors = {}
    for number, name in enumerate(names or SHAPES):
        out, channels, *kernel = SHAPES[name]
        ones = [1] * len(kernel)
        own = 100 * seed + 10 * number
        tensors[f"{name}.lora_up.weight"] = random(out, rank, *ones, seed=own)
        inner = ones if tucker else kernel
        tensors[f"{name}.lora_down.weight"] = random(rank, channels, *inner, seed=own + 1)
        if tucker and kernel:
            tensors[f"{name}.lora_mid.weight"] = random(rank, rank, *kernel, seed=own + 2)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def dense(tensors: dict[str, Tensor], name: str) -> Tensor:
    """The change of a layer by the formula of ComfyUI, in fp64, (out, in * kernel)."""
    up, down = (tensors[f"{name}.lora_{part}.weight"].double() for part in ("up", "down"))
    scale = float(tensors[f"{name}.alpha"]) / len(down) if f"{name}.alpha" in tensors else 1.0
    if f"{name}.lora_mid.weight" in tensors:
        mid = tensors[f"{name}.lora_mid.weight"].double()
        whole = torch.einsum("oa,abhw,bi->oihw", up.flatten(1), mid, down.flatten(1))
        return scale * whole.flatten(1)
    return scale * up.flatten(1) @ down.flatten(1)


# -- merging ------------------------------------------------------------------------------

MIXED = {
    "alike": [lora(seed=1), lora(seed=2)],
    "ranks and alphas": [lora(rank=2, alpha=1.0), lora(rank=7, alpha=None, seed=2)],
    "targets": [lora(Q), lora(Q, V, seed=2), lora(CONV, V, seed=3)],
    "tucker": [lora(CONV, tucker=True), lora(CONV, rank=3, seed=2)],
    "ranks above the width": [lora(CONV, rank=9), lora(CONV, rank=9, seed=2)],
}


def summed(loras: list[dict[str, Tensor]], strengths: list[float], name: str) -> Tensor:
    weighed = zip(loras, strengths, strict=True)
    return sum(s * dense(one, name) for one, s in weighed if f"{name}.lora_up.weight" in one)


@pytest.mark.parametrize("loras", MIXED.values(), ids=MIXED.keys())
def test_exact_merge_is_the_sum_of_the_changes(loras: list[dict[str, Tensor]]) -> None:
    strengths = [0.75, -1.5, 0.3][: len(loras)]
    merged = merge(loras, strengths, Way())
    names = {key.partition(".")[0] for one in loras for key in one}
    assert {key.partition(".")[0] for key in merged.tensors} == names
    for layer in merged.layers:
        whole = summed(loras, strengths, layer.name)
        assert distance(dense(merged.tensors, layer.name), whole) < 1e-6
        assert layer.lost == 0
        assert math.isclose(layer.norm, float(whole.norm()), rel_tol=1e-6)


def test_exact_merge_adds_ranks() -> None:
    merged = merge([lora(rank=2), lora(rank=5, seed=1)], [1.0, 1.0], Way()).tensors
    assert merged[f"{CONV}.lora_up.weight"].shape == (10, 7, 1, 1)
    assert merged[f"{CONV}.lora_down.weight"].shape == (7, 6, 3, 3)
    assert merged[f"{Q}.lora_down.weight"].shape == (7, 16)
    assert float(merged[f"{Q}.alpha"]) == 7
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}


@pytest.mark.parametrize("loras", MIXED.values(), ids=MIXED.keys())
def test_merge_to_full_rank_is_exact(loras: list[dict[str, Tensor]]) -> None:
    strengths = [1.0, 0.5, -1.0][: len(loras)]
    merged = merge(loras, strengths, Way(rank=30))
    for layer in merged.layers:
        whole = summed(loras, strengths, layer.name)
        assert distance(dense(merged.tensors, layer.name), whole) < 1e-5
    assert total_residual(merged.layers) < 1e-6


def test_merge_to_a_rank_states_what_is_lost() -> None:
    loras = [lora(seed=1), lora(seed=2)]
    merged = merge(loras, [1.0, 1.0], Way(rank=3))
    wholes, losses = [], []
    for layer in merged.layers:
        whole = summed(loras, [1.0, 1.0], layer.name)
        lost = (dense(merged.tensors, layer.name) - whole).norm()
        assert layer.rank == 3
        assert math.isclose(layer.residual, float(lost / whole.norm()), rel_tol=1e-5)
        wholes.append(float(whole.norm()))
        losses.append(float(lost))
    expected = math.hypot(*losses) / math.hypot(*wholes)
    assert 0 < expected < 1
    assert math.isclose(total_residual(merged.layers), expected, rel_tol=1e-5)


@pytest.mark.parametrize("name", WAYS[1:])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_other_ways_are_pefts_own(name: str, density: float) -> None:
    loras, strengths = [lora(seed=1), lora(seed=2, rank=2)], [1.0, -0.5]
    merged = merge(loras, strengths, Way(name, rank=30, density=density, seed=5)).tensors
    for layer in SHAPES:
        torch.manual_seed(5 + zlib.crc32(layer.encode()))
        deltas = [dense(one, layer).float() for one in loras]
        with (
            pytest.warns(UserWarning, match="density") if density == 1 else contextlib.nullcontext()
        ):
            whole = getattr(merge_utils, name)(deltas, torch.tensor(strengths), density)
        assert distance(dense(merged, layer), whole) < 1e-5


def test_ties_at_a_rank_is_what_peft_adds_as_a_weighted_adapter() -> None:
    import peft

    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False)),
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"]), adapter_name="one",
    )  # fmt: skip
    model.add_adapter("two", peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    # A scale of 1: peft 0.18 counts it twice here.
    loras = [lora(Q, alpha=4, seed=1), lora(Q, alpha=4, seed=2)]
    layer = model.base_model.model[0]
    for adapter, one in zip(("one", "two"), loras, strict=True):
        layer.lora_A[adapter].weight.data = one[f"{Q}.lora_down.weight"].clone()
        layer.lora_B[adapter].weight.data = one[f"{Q}.lora_up.weight"].clone()
    model.add_weighted_adapter(
        ["one", "two"], [1.0, 0.5], "both", "ties_svd", svd_rank=3, density=0.4
    )
    ours = merge(loras, [1.0, 0.5], Way("ties", rank=3, density=0.4)).tensors
    assert distance(dense(ours, Q), layer.get_delta_weight("both").detach()) < 1e-5


def test_what_is_dropped_at_random_goes_by_seed_and_layer() -> None:
    loras = [lora(), lora(seed=2)]

    def dropped(seed: int, *names: str) -> Tensor:
        chosen = [{k: v for k, v in o.items() if k.startswith(names or "lora")} for o in loras]
        return dense(merge(chosen, [1.0, 1.0], Way("dare_linear", 30, 0.5, seed)).tensors, V)

    before = torch.get_rng_state()
    assert torch.equal(dropped(1), dropped(1))
    assert torch.equal(dropped(1), dropped(1, V))
    assert not torch.equal(dropped(1), dropped(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_lora_of_strength_0_is_left_out_of_a_sum() -> None:
    merged = merge([lora(Q), lora(V)], [1.0, 0.0], Way()).tensors
    assert {key.partition(".")[0] for key in merged} == {Q}


def test_whole_differences_and_tokens_are_kept() -> None:
    token = {"bundle_emb.sks.string_to_param.*": random(1, 8)}
    first = {**lora(Q), "lora_unet_norm.diff": torch.ones(4), "x.diff_b": torch.ones(2), **token}
    second = {**lora(Q, seed=1), "lora_unet_norm.diff": torch.full((4,), 3.0)}
    merged = merge([first, second], [2.0, 0.5], Way()).tensors
    assert torch.equal(merged["lora_unet_norm.diff"], torch.full((4,), 3.5))
    assert torch.equal(merged["x.diff_b"], torch.full((2,), 2.0))
    assert torch.equal(merged[next(iter(token))], token[next(iter(token))])
    resized = resize(first, Keep(rank=1)).tensors
    assert torch.equal(resized["x.diff_b"], first["x.diff_b"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "mean"}, "method is 'mean'; allowed: sum, ties"),
        ({"name": "ties"}, "rank is 0 .exact. with method 'ties'"),
        ({"rank": -1}, "rank is -1"),
        ({"density": 0.0}, "density is 0; allowed"),
        ({"density": 2.0, "rank": -1}, "rank is -1.*density is 2"),
    ],
)
def test_way_outside_of_its_bounds_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Way(**wrong)


DORA = {**lora(Q), f"{Q}.dora_scale": torch.ones(24, 1)}
OFT = {f"{Q}.oft_blocks": torch.zeros(6, 4, 4), f"{Q}.alpha": torch.tensor(0.0)}
HALF = {f"{Q}.hada_w1_a": torch.ones(2, 2)}
BROKEN = {**lora(Q), f"{Q}.lora_up.weight": torch.full((24, 4), math.nan)}
WIDER = {**lora(V), **{k.replace(V, Q): v for k, v in lora(V).items()}}
DOTTED = {k.replace(Q, "diffusion_model.input_blocks.1.to_q"): v for k, v in lora(Q).items()}
PUBLISHED = {k.replace(Q, "lora_unet_input_blocks_1_to_q"): v for k, v in lora(Q).items()}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (DORA, r"LoRA 2 is a DoRA.*\n.*one Apply LoRA behind the other"),
        (OFT, r"LoRA 2 is an OFT.*oft_blocks.*\n.*Extract LoRA"),
        (HALF, "LoRA 2 holds what is no LoRA, LoHa or LoKr .*hada_w1_a"),
        ({}, "LoRA 2 is empty"),
        (BROKEN, "LoRA 2 has numbers that are not finite, in lora_unet_down_blocks_0_to_q"),
        (WIDER, "different sizes: lora_unet_down_blocks_0_to_q"),
        (DOTTED, "LoRA 1 and LoRA 2 name layers differently"),
        (PUBLISHED, "name layers differently"),
    ],
)
def test_what_cannot_be_merged_is_named(second: dict[str, Tensor], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        merge([lora(), second], [1.0, 1.0], Way())


def test_nothing_left_is_told() -> None:
    with pytest.raises(AdapterError, match="Nothing is left"):
        merge([lora(), lora(seed=1)], [0.0, 0.0], Way())


def test_loras_for_different_bases_are_named() -> None:
    said = [{"ss_base_model_version": "sd_v1"}, {}, {"ss_base_model_version": "sdxl"}]
    check_one_base(said[:2])
    with pytest.raises(AdapterError, match="LoRA 1 for sd_v1, LoRA 3 for sdxl"):
        check_one_base(said)


def test_metadata_of_a_merge_is_what_its_loras_have_in_common() -> None:
    dog = {"ss_base_model_version": "sd_v1", "modelspec.title": "dog", "ss_seed": "1"}
    cat = {"ss_base_model_version": "sd_v1", "modelspec.title": "cat", "ss_seed": "1"}
    made = merged_metadata([dog, cat], [4, 8])
    del made["modelspec.date"]
    assert made == {
        "ss_base_model_version": "sd_v1", "modelspec.title": "dog_and_cat",
        "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic",
    }  # fmt: skip
    assert merged_metadata([dog], [4, 4])["ss_network_dim"] == "4"


@pytest.mark.parametrize("endings", ENDINGS)
def test_every_spelling_that_the_host_reads_is_read(endings: tuple[str, str]) -> None:
    tensors = {f"x{endings[0]}": random(6, 2), f"x{endings[1]}": random(2, 5, seed=1)}
    (name, layer), *none = read_lora(tensors, "It").layers.items()
    assert (name, none, layer.alpha) == ("x", [], None)
    assert torch.equal(layer.delta(), tensors[f"x{endings[0]}"].double() @ layer.down.double())
    assert list(resize(tensors, Keep(rank=1)).tensors)[:2] == list(tensors)


# -- resizing -----------------------------------------------------------------------------


@pytest.mark.parametrize("tucker", [False, True])
def test_resize_to_more_than_it_has_changes_nothing(tucker: bool) -> None:
    given = lora(rank=5, tucker=tucker)
    resized = resize(given, Keep(rank=64))
    for layer in resized.layers:
        assert layer.rank == 5 or tucker  # a Tucker layer unfolds to at most its rank
        assert distance(dense(resized.tensors, layer.name), dense(given, layer.name)) < 1e-6


def test_resize_is_the_nearest_of_its_rank() -> None:
    given = lora(rank=6)
    resized = resize(given, Keep(rank=2)).tensors
    for name in SHAPES:
        left, sizes, right = torch.linalg.svd(dense(given, name), full_matrices=False)
        assert distance(dense(resized, name), left[:, :2] * sizes[:2] @ right[:2]) < 1e-6


def test_resize_by_energy_keeps_the_loss_even() -> None:
    resized = resize(lora(rank=6), Keep(energy=0.9))
    for layer in resized.layers:
        assert layer.rank < 6
        assert 0 < layer.residual <= math.sqrt(0.1)
    assert total_residual(resized.layers) <= math.sqrt(0.1)


def test_dora_cannot_be_resized() -> None:
    with pytest.raises(AdapterError, match="The LoRA is a DoRA"):
        resize(DORA, Keep(rank=1))


# -- extracting ---------------------------------------------------------------------------


def changes() -> list[Difference]:
    return [
        Difference("to_q.weight", random(24, 16), Q, KOHYA_ENDINGS),
        Difference("to_v.weight", torch.zeros(12, 30), V, KOHYA_ENDINGS),
        Difference("conv.weight", random(10, 6, 3, 3, seed=1), "diffusion_model.c", DOTTED_ENDINGS),
        Difference("norm.weight", random(9, seed=2), "lora_unet_norm", KOHYA_ENDINGS),
        Difference("odd", random(3, 3, seed=3), "", DOTTED_ENDINGS),
    ]


def test_extract_at_full_rank_gives_the_difference_back() -> None:
    extracted = extract(changes(), Keep(rank=24)).tensors
    assert set(extracted) == {
        f"{Q}.lora_up.weight", f"{Q}.lora_down.weight", f"{Q}.alpha",
        "diffusion_model.c.lora_B.weight", "diffusion_model.c.lora_A.weight",
        "diffusion_model.c.alpha",
    }  # fmt: skip
    assert distance(dense(extracted, Q), changes()[0].delta) < 1e-6
    layer = read_lora(extracted, "It").layers["diffusion_model.c"]
    assert layer.shape == (6, 3, 3)
    assert distance(layer.delta().view(10, 6, 3, 3), changes()[2].delta) < 1e-6


def test_extract_counts_what_it_cannot_keep() -> None:
    layers = extract(changes(), Keep(rank=24)).layers
    lost = math.hypot(*(float(change.delta.norm()) for change in changes()[3:]))
    whole = math.hypot(*(float(change.delta.norm()) for change in changes()))
    assert [layer.name for layer in layers if not layer.rank] == ["norm.weight", "odd"]
    assert math.isclose(total_residual(layers), lost / whole, rel_tol=1e-6)


def test_extract_by_energy_loses_no_more_than_was_asked() -> None:
    for layer in extract(changes()[:3], Keep(energy=0.99)).layers:
        assert layer.residual <= 0.1


@pytest.mark.parametrize("keep", [Keep(rank=3), Keep(energy=0.9), Keep(energy=0.99)])
def test_extract_states_the_residual_of_the_dense_difference(keep: Keep) -> None:
    extracted = extract(changes(), keep)
    dense_changes = {change.name or change.key: change for change in changes()}
    lost = []
    for kept in extracted.layers:
        change = dense_changes.get(kept.name) or next(c for c in changes() if c.key == kept.name)
        whole = change.delta.flatten(1).double() if change.delta.ndim > 1 else change.delta
        layer = read_lora(extracted.tensors, "It").layers.get(kept.name)
        left = whole - layer.delta() if layer else whole
        lost.append(float(left.norm()))
        residual = lost[-1] / float(whole.norm())
        assert math.isclose(kept.residual, residual, rel_tol=1e-4, abs_tol=1e-6)
    norm = math.hypot(*(float(change.delta.norm()) for change in changes()))
    expected = math.hypot(*lost) / norm
    assert math.isclose(total_residual(extracted.layers), expected, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("delta", "words"),
    [(torch.zeros(4, 4), "no layer that differs"), (torch.full((4, 4), math.inf), "not finite")],
)
def test_what_cannot_be_extracted_is_told(delta: Tensor, words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        extract([Difference("x.weight", delta, "x", KOHYA_ENDINGS)], Keep(rank=2))


# -- what is told -------------------------------------------------------------------------


def test_report_of_an_exact_merge_is_a_line() -> None:
    assert report(merge([lora(), lora(seed=1)], [1.0, 1.0], Way()).layers) == (
        "3 layers, rank 8; nothing is lost"
    )


def test_report_names_the_worst_and_what_is_outside() -> None:
    layers = [Kept("a", 2, 3.0, 0.3), Kept("b", 4, 4.0, 0.0), Kept("norm.weight", 0, 1.0, 1.0)]
    assert report(layers) == (
        "2 layers, rank 2 to 4; 20 % is lost\n"
        "most in a 10 %\n"
        "no LoRA can hold 1 of the weights, norms and biases, 20 % of the change, "
        "such as norm.weight"
    )


def test_results_are_plain_loras_that_can_go_on() -> None:
    merged = Adapter(merge([lora(), lora(seed=1)], [1.0, 1.0], Way()).tensors, {})
    again = merge([merged, lora(seed=2)], [1.0, 1.0], Way(SUM, rank=2)).tensors
    assert len(resize(again, Keep(rank=1)).layers) == 3
