"""What training SDXL saves, in diffusers: its pipelines load it, and predict as the host does."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tests import checkpoints
from tests.graphs import Graph
from tests.host import Host

pytestmark = pytest.mark.large
BASE = "thin_sdxl.safetensors"
PROMPT = "a photo of <sks> dog"


def pipeline(host: Host, path: Path) -> StableDiffusionXLPipeline:
    """diffusers' modules around the weights of the thin SDXL, without a VAE."""
    weights = {k: w.float() for k, w in safetensors.torch.load_file(path).items()}
    names = host.comfyui / "comfy" / "sd1_tokenizer"
    return StableDiffusionXLPipeline(
        vae=None,
        text_encoder=clip_l(weights),
        text_encoder_2=clip_g(weights),
        tokenizer=CLIPTokenizer.from_pretrained(names, model_max_length=77),
        tokenizer_2=CLIPTokenizer.from_pretrained(names, pad_token="!", model_max_length=77),
        unet=unet(weights),
        scheduler=None,
    )


def unet(weights: dict[str, Tensor]) -> UNet2DConditionModel:
    config = checkpoints.THIN_SDXL_UNET
    with torch.device("meta"):
        made = UNet2DConditionModel(**config)
    # The builder renames diffusers' keys one after another.
    theirs = checkpoints._unet(config, torch.Generator().manual_seed(0))
    pairs = zip(made.state_dict(), theirs, strict=True)
    ours = {own: weights[name] for own, name in pairs if name in weights}
    # The thin model has one block each where SDXL has two or ten, but on its way down.
    for part in (made.mid_block, *made.up_blocks):
        for attention in getattr(part, "attentions", ()):
            attention.transformer_blocks = attention.transformer_blocks[:1]
    made.load_state_dict(ours, assign=True)
    return made.eval()


def clip_l(weights: dict[str, Tensor]) -> CLIPTextModel:
    made = CLIPTextModel(CLIPTextConfig(**checkpoints.CLIP_L, hidden_act="quick_gelu"))
    start = "conditioner.embedders.0.transformer.text_model."
    own = {k.removeprefix(start): w for k, w in weights.items() if k.startswith(start)}
    named = {k: own[k.removeprefix("text_model.")] for k in made.state_dict()}
    made.load_state_dict(named)
    return made.eval()


def clip_g(weights: dict[str, Tensor]) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(**checkpoints.CLIP_G, hidden_act="gelu", projection_dim=1280)
    made = CLIPTextModelWithProjection(config)
    converted = convert_open_clip_checkpoint(
        made, dict(weights), prefix="conditioner.embedders.1.model."
    )
    missing, _ = made.load_state_dict(converted, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    return made.eval()


def encoded(pipe: StableDiffusionXLPipeline, prompt: str) -> tuple[Tensor, Tensor]:
    """Hidden states (1, 77, 2048) and pooled (1, 1280), as SDXL takes them."""
    with torch.no_grad():
        hidden, _, pooled, _ = pipe.encode_prompt(
            prompt, device=torch.device("cpu"), do_classifier_free_guidance=False
        )
    return hidden, pooled


def predicted(pipe: StableDiffusionXLPipeline, noisy: Tensor, size: list[int]) -> Any:
    """(hidden, pooled) -> the UNet's prediction at timestep 500."""
    width, height, left, top, bucket_width, bucket_height = size
    time_ids = torch.tensor([[height, width, top, left, bucket_height, bucket_width]]).float()

    def predict(hidden: Tensor, pooled: Tensor) -> Tensor:
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        with torch.no_grad():
            return pipe.unet(
                noisy, 500, encoder_hidden_states=hidden, added_cond_kwargs=conditions
            ).sample

    return predict


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture
def trained(much_memory: None, fp32_host: Host) -> dict[str, Path]:
    """A token, then a LoRA of UNet and text encoders with captions that have it: their files."""
    folder = fp32_host.base / "input" / "dog"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (80, 72), "teal").save(folder / "0.png")
    graph = Graph()
    model, clip, vae = graph.load(BASE)
    dataset = graph.dataset("dog", "a photo of <sks> dog")
    token = graph.invert(model, clip, vae, dataset, steps=1, learning_rate=1e-2, vectors=2)
    graph.add("PersonalizeSaveEmbedding", embedding=token[1], filename_prefix="embeddings/xl")
    settings = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3, "steps": 1}
    lora = graph.train(model, token[0], vae, dataset, learning_rate=1e-2, **settings)
    for name in ("kohya", "diffusers"):
        graph.add(
            "PersonalizeSaveLora", lora=lora[2], filename_prefix=f"loras/xl_{name}",
            format=f"{name} fp32", model=model, clip=clip,
        )  # fmt: skip
    conditioning = graph.add("CLIPTextEncode", clip=lora[1], text=PROMPT)[0]
    graph.add("ProbeKept", model=lora[0], conditioning=conditioning)
    fp32_host.run(graph)
    fp32_host.free()  # diffusers' modules come next, in this process
    output = fp32_host.base / "output"
    newest = functools.partial(max, key=lambda path: path.stat().st_mtime)
    return {
        "embedding": newest((output / "embeddings").glob("xl_*.safetensors")),
        "kohya": newest((output / "loras").glob("xl_kohya_*.safetensors")),
        "diffusers": newest((output / "loras").glob("xl_diffusers_*.safetensors")),
        "kept": output / "kept.safetensors",
    }


def test_diffusers_predicts_with_lora_and_embedding_as_the_host(
    fp32_host: Host, checkpoint_files: dict[str, Path], trained: dict[str, Path]
) -> None:
    kept = safetensors.torch.load_file(trained["kept"])
    pipe = pipeline(fp32_host, checkpoint_files[BASE])
    predict = predicted(pipe, kept["noisy"], [640, 480, 12, 34, 64, 64])
    plain = predict(*encoded(pipe, "a photo of a dog"))
    rows = safetensors.torch.load_file(trained["embedding"])
    sides = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
    for name, (encoder, tokenizer) in sides.items():
        pipe.load_textual_inversion(
            {"<sks>": rows[name]},
            token="<sks>",
            text_encoder=getattr(pipe, encoder),
            tokenizer=getattr(pipe, tokenizer),
        )
    for spelling in ("kohya", "diffusers"):
        file = trained[spelling]
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        hidden, pooled = encoded(pipe, PROMPT)
        assert difference(hidden, kept["hidden"]) < 1e-4
        assert difference(pooled, kept["pooled"]) < 1e-4
        assert difference(predict(hidden, pooled), kept["prediction"]) < 1e-4
        pipe.unload_lora_weights()
    assert difference(plain, kept["prediction"]) > 1e-2
