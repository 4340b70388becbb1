"""LoRA files in diffusers' spelling: names, scale and ranks, as the format has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor

from tests import tiny
from trainers.contracts import Parts
from trainers.errors import AdapterError
from trainers.methods.adapters.spelling import Place, diffusers_spelling
from trainers.models.architectures import DENOISER
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
