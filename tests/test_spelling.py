"""LoRA files in diffusers' spelling: names, scale and ranks, as the format has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin, StableDiffusionLoraLoaderMixin
from packaging.version import Version
from torch import Tensor

from tests import tiny
from trainers.contracts import Parts
from trainers.errors import AdapterError
from trainers.methods.adapters.spelling import Place, diffusers_spelling, published_spelling
from trainers.models.architectures import DENOISER, FLUX, FLUX2, GENERIC, Z_IMAGE, Architecture
from trainers.runs.files import save_tensors

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET = {
    f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q": f"{BLOCK}.attn1.to_q",
    f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_out_0": f"{BLOCK}.attn1.to_out.0",
    f"lora_unet_{BLOCK.replace('.', '_')}_ff_net_0_proj": f"{BLOCK}.ff.net.0.proj",
    "lora_unet_input_blocks_1_1_proj_in": "down_blocks.0.attentions.0.proj_in",
    "lora_unet_down_blocks_0_resnets_0_conv1": "down_blocks.0.resnets.0.conv1",
}
PLACES = {name: [Place(f"unet.{theirs}")] for name, theirs in UNET.items()}
# Written from diffusers' own files: StableDiffusionPipeline.save_lora_weights of its early loaders
# for attention, and what its converter of kohya's files makes of all else.
NAMES = {
    "unet": (
        f"unet.{BLOCK}.attn1.processor.to_q_lora",
        f"unet.{BLOCK}.attn1.processor.to_out_lora",
        f"unet.{BLOCK}.ff.net.0.proj.lora",
        "unet.down_blocks.0.attentions.0.proj_in.lora",
        "unet.down_blocks.0.resnets.0.conv1.lora",
    ),
    "text": (
        "text_encoder.text_model.encoder.layers.11.self_attn.q_proj.lora_linear_layer",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer",
        "text_encoder_2.text_model.encoder.layers.3.self_attn.out_proj.lora_linear_layer",
    ),
}
TEXT = (
    "lora_te_text_model_encoder_layers_11_self_attn_q_proj",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_te2_text_model_encoder_layers_3_self_attn_out_proj",
)


def lora(names: tuple[str, ...], rank: int = 2, alpha: float | None = 1.0) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(0)
    made = {}
    for name in names:
        kernel = (3, 3) if "conv" in name else ()
        ones = (1,) * len(kernel)
        made[f"{name}.lora_up.weight"] = torch.randn(5, rank, *ones, generator=noise)
        made[f"{name}.lora_down.weight"] = torch.randn(rank, 4, *kernel, generator=noise)
        if alpha is not None:
            made[f"{name}.alpha"] = torch.tensor(alpha)
    return made


def delta(tensors: dict[str, Tensor], up: str, down: str) -> Tensor:
    return tensors[up].flatten(1) @ tensors[down].flatten(1)


def test_names_are_those_of_the_format() -> None:
    made = diffusers_spelling(lora((*UNET, *TEXT)), PLACES)
    starts = (*NAMES["unet"], *NAMES["text"])
    ends = ("up.weight", "down.weight")
    assert set(made) == {f"{start}.{end}" for start in starts for end in ends}


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 0.5), (4.0, 2.0), (None, 1.0)])
def test_scale_is_worked_in(alpha: float | None, scale: float) -> None:
    given = lora(tuple(UNET), alpha=alpha)
    made = diffusers_spelling(given, PLACES)
    for name, start in zip(UNET, NAMES["unet"], strict=True):
        before = scale * delta(given, f"{name}.lora_up.weight", f"{name}.lora_down.weight")
        torch.testing.assert_close(
            delta(made, f"{start}.up.weight", f"{start}.down.weight"), before
        )
        assert torch.equal(made[f"{start}.up.weight"], given[f"{name}.lora_up.weight"])
        assert made[f"{start}.down.weight"].shape == given[f"{name}.lora_down.weight"].shape


def test_layers_of_a_module_get_one_rank() -> None:
    first, second = list(UNET)[:2]
    given = {**lora((first,), rank=1), **lora((second,), rank=3), **lora(TEXT[:1], rank=2)}
    made = diffusers_spelling(given, PLACES)
    ranks = {key.split(".")[0]: len(t) for key, t in made.items() if key.endswith("down.weight")}
    assert ranks == {"unet": 3, "text_encoder": 2}
    start = NAMES["unet"][0]
    before = delta(given, f"{first}.lora_up.weight", f"{first}.lora_down.weight")
    torch.testing.assert_close(delta(made, f"{start}.up.weight", f"{start}.down.weight"), before)


@pytest.mark.parametrize("ending", ["dora_scale", "lokr_w1", "hada_w1_a", "oft_blocks", "diff"])
def test_what_is_no_plain_lora_is_refused(ending: str) -> None:
    name = next(iter(UNET))
    given = {**lora((name,)), f"{name}.{ending}": torch.ones(2, 2)}
    with pytest.raises(AdapterError, match=rf"plain LoRAs alone.*{ending}"):
        diffusers_spelling(given, PLACES)


def test_layers_without_a_name_are_refused() -> None:
    given = lora((next(iter(UNET)), "lora_unet_middle_block_9_x", "lora_te2_text_projection"))
    with pytest.raises(AdapterError, match=r"no name for 2 of the LoRA's 3 layers.*lora_te2_text"):
        diffusers_spelling(given, PLACES)


@pytest.mark.parametrize("targets", ["attention", "all with convolutions"])
def test_diffusers_predicts_with_the_file_what_was_trained(tmp_path: Path, targets: str) -> None:
    text = targets == "attention"
    ready, _ = tiny.trained(
        tiny.run_config(train_text_encoder=text, targets=targets, learning_rate=1e-2)
    )
    layers = [name for name, _ in tiny.parts().modules[DENOISER].named_modules()]
    places = {f"lora_unet_{name}".replace(".", "_"): [Place(f"unet.{name}")] for name in layers}
    tensors = diffusers_spelling(ready.trainable.export(), places)
    save_tensors(tmp_path / "a.safetensors", tensors, {"ss_network_dim": "2"}, torch.float32)
    loader, other = StableDiffusionLoraLoaderMixin, tiny.parts()
    before = predicted(other)
    state, alphas = loader.lora_state_dict(tmp_path, weight_name="a.safetensors")
    assert alphas is None
    loader.load_lora_into_unet(state, alphas, other.modules[DENOISER])
    if text:
        loader.load_lora_into_text_encoder(state, alphas, with_shell(other.modules["clip_l"]))
    ours, theirs = predicted(ready.parts), predicted(other)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert (before - ours).abs().max() > 1e-3


def with_shell(clip: Any) -> Any:
    """A text encoder as pipelines have it: transformers before 5 have a shell around it."""
    shell = tiny.build("clip_l")
    if not hasattr(shell, "text_model"):
        return clip
    shell.text_model = clip
    return shell


def predicted(parts: Parts) -> Tensor:
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = parts.text.encode("sks dog")
        size = tiny.examples().sizes[0]
        return parts.predict(noisy, torch.tensor([500]), [told], [size])


# -- transformers: tests/test_host_pipelines.py has whole models -------------------------------


def dotted(*names: str, rows: int = 6) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(0)
    made = {}
    for name in names:
        made[f"{name}.lora_A.weight"] = torch.randn(2, 4, generator=noise)
        made[f"{name}.lora_B.weight"] = torch.randn(rows, 2, generator=noise)
        made[f"{name}.alpha"] = torch.tensor(3.0)
    return made


def test_parts_of_a_layer_make_up_the_whole() -> None:
    given = dotted("diffusion_model.single_blocks.0.linear1", "lora_unet_final_layer")
    whole, swapped = "transformer.to_q", "transformer.proj_mlp"
    places = {
        "diffusion_model.single_blocks.0.linear1": [Place(whole, (0, 2)), Place(swapped, (2, 4))],
        "lora_unet_final_layer": [Place("transformer.norm_out", swapped=True)],
    }
    made = diffusers_spelling(given, places)

    def change(tensors: dict[str, Tensor], name: str) -> Tensor:
        return delta(tensors, f"{name}.lora_B.weight", f"{name}.lora_A.weight")

    first, last = (1.5 * change(given, name) for name in places)
    torch.testing.assert_close(torch.cat([change(made, whole), change(made, swapped)]), first)
    shift, scale = change(made, "transformer.norm_out").chunk(2)
    torch.testing.assert_close(torch.cat([scale, shift]), last)
    assert len(made) == 6  # no alpha among them


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2"),
    ],
)
def test_text_encoders_of_any_spelling(name: str, start: str) -> None:
    layer = f"{start}.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer"
    assert set(diffusers_spelling(lora((name,)), {})) == {
        f"{layer}.up.weight", f"{layer}.down.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
        "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj",
    ],
)
def test_text_encoders_that_no_pipeline_reads_are_refused(name: str) -> None:
    with pytest.raises(AdapterError, match=rf"no name for 1 of the LoRA's 1 layers.*{name}"):
        diffusers_spelling(lora((name,)), PLACES)


OLD = Version(diffusers.__version__) < Version("0.36")
NO_TE1 = pytest.mark.skipif(OLD, reason="diffusers 0.35 passes over lora_te1_, as kohya has it")


@pytest.mark.parametrize("spelling", [pytest.param("kohya", marks=NO_TE1), "diffusers"])
def test_flux_pipelines_read_its_text_encoder(tmp_path: Path, spelling: str) -> None:
    ready, _ = tiny.trained(tiny.run_config(train_text_encoder=True, learning_rate=1e-2))
    trained = {
        key.replace("lora_te_", "lora_te1_"): tensor
        for key, tensor in ready.trainable.export().items()
        if key.startswith("lora_te_")
    }
    tensors = trained if spelling == "kohya" else diffusers_spelling(trained, {})
    save_tensors(tmp_path / "a.safetensors", tensors, {}, torch.float32)
    other = tiny.parts()
    state = FluxLoraLoaderMixin.lora_state_dict(tmp_path, weight_name="a.safetensors")
    FluxLoraLoaderMixin.load_lora_into_text_encoder(
        state, None, with_shell(other.modules["clip_l"]), prefix="text_encoder"
    )
    with torch.no_grad():
        before, ours, theirs = (
            torch.cat([told.flatten() for told in parts.text.encode("sks dog").values()])
            for parts in (tiny.parts(), ready.parts, other)
        )
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert (before - ours).abs().max() > 1e-3


def test_flux_pipelines_take_fused_layers_apart() -> None:
    """At the published width, which diffusers' code has in it."""
    name, parts = "single_blocks_37_linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    width, outputs = 3072, 7 * 3072
    noise = torch.Generator().manual_seed(0)
    up, down = torch.randn(outputs, 2, generator=noise), torch.randn(2, width, generator=noise)
    made = FluxLoraLoaderMixin.lora_state_dict({
        f"lora_unet_{name}.lora_up.weight": up,
        f"lora_unet_{name}.lora_down.weight": down,
        f"lora_unet_{name}.alpha": torch.tensor(3.0),
    })  # fmt: skip
    start = "transformer.single_transformer_blocks.37"
    ups = torch.cat([made[f"{start}.{part}.lora_B.weight"] for part in parts])
    assert torch.equal(ups, up)
    assert all(torch.equal(made[f"{start}.{part}.lora_A.weight"], 1.5 * down) for part in parts)


def test_published_names_are_those_of_other_trainers() -> None:
    """As ai-toolkit and musubi-tuner write Z-Image."""
    block = "diffusion_model.layers.0"
    given = dotted(
        f"{block}.attention.qkv", f"{block}.attention.out", f"{block}.feed_forward.w1",
        "diffusion_model.x_embedder", "diffusion_model.final_layer.linear",
        "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj",
    )  # fmt: skip
    made = published_spelling(given, Z_IMAGE)
    attention = [f"{block}.attention.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")]
    names = [
        *attention, f"{block}.feed_forward.w1", "diffusion_model.all_x_embedder.2-1",
        "diffusion_model.all_final_layer.2-1.linear",
        "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj",
    ]  # fmt: skip
    assert set(made) == {f"{name}.lora_{part}.weight" for name in names for part in "AB"}
    ups = torch.cat([made[f"{name}.lora_B.weight"] for name in attention[:3]])
    assert torch.equal(ups, given[f"{block}.attention.qkv.lora_B.weight"])
    down = 1.5 * given[f"{block}.attention.qkv.lora_A.weight"]
    assert all(torch.equal(made[f"{name}.lora_A.weight"], down) for name in attention[:3])


@pytest.mark.parametrize(
    ("record", "given"),
    [
        (GENERIC, dotted("diffusion_model.layers.0.attention.qkv")),
        (Z_IMAGE, lora(("lora_unet_layers_0_attention_qkv",))),
        (FLUX, lora(("lora_unet_img_in",))),
        (FLUX2, {**dotted("diffusion_model.a"), "diffusion_model.a.dora_scale": torch.ones(6)}),
    ],
    ids=["no record", "kohya's names", "kohya's record", "dora"],
)  # fmt: skip
def test_other_loras_keep_their_names(record: Architecture, given: dict[str, Tensor]) -> None:
    assert published_spelling(given, record) == given
