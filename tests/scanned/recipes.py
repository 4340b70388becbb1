"""What the recipes of docs.scan are made of: text encoders, and a model around one."""

from __future__ import annotations

from typing import Any

from tests.tiny_transformers import SHALLOW, T5, TEXT, Recipe, llm

TextSide = dict[str, Any]
LETTERS = {"vocabulary": "spiece_model"}


def t5(module: str, tokenizer: str, encoder: str, **others: Any) -> TextSide:
    return {
        "text": module, "tokenizer": tokenizer, "encoder": encoder, "sizes": {"t5xxl": T5},
        **others,
    }  # fmt: skip


def qwen(module: str, tokenizer: str, name: str, layers: int = 2) -> TextSide:
    return {
        "text": module, "tokenizer": tokenizer, "encoder": "te", "sizes": {name: llm(layers)},
    }  # fmt: skip


def standing_in(width: int = TEXT) -> TextSide:
    """A T5 in the place of a text encoder."""
    sizes = {"t5xxl": {**T5, "d_model": width}}
    return t5("cosmos", "CosmosT5Tokenizer", "te", sizes=sizes, stands_in=True)


CLIP_L: TextSide = {
    "text": ".sd1_clip", "tokenizer": "SD1Tokenizer", "encoder": "SD1ClipModel",
    "sizes": {"clip_l": SHALLOW},
}  # fmt: skip
CLIP_H: TextSide = {
    "text": "sd2_clip", "tokenizer": "SD2Tokenizer", "encoder": "SD2ClipModel",
    "sizes": {"clip_h": SHALLOW},
}  # fmt: skip
CLIP_LG: TextSide = {
    "text": ".sdxl_clip", "tokenizer": "SDXLTokenizer", "encoder": "SDXLClipModel",
    "sizes": {"clip_l": SHALLOW, "clip_g": SHALLOW},
}  # fmt: skip
GEMMA2: TextSide = {
    "text": "lumina2", "tokenizer": "LuminaTokenizer", "encoder": "te",
    "sizes": {"gemma2_2b": llm(3)}, **LETTERS,
}  # fmt: skip
UMT5: TextSide = {
    "text": "wan", "tokenizer": "WanT5Tokenizer", "encoder": "te", "sizes": {"umt5xxl": T5},
    **LETTERS,
}  # fmt: skip
HYDIT_BERT = {
    "hidden_size": TEXT, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2,
}  # fmt: skip
LLAMA: TextSide = {
    "text": "hunyuan_video", "tokenizer": "HunyuanVideoTokenizer",
    "encoder": "hunyuan_video_clip", "sizes": {"clip_l": SHALLOW, "llama": llm(4)},
}  # fmt: skip
BYT5 = {"byt5_small": {**T5, "d_model": 1472}}  # as wide as the denoiser takes it
HUNYUAN_IMAGE: TextSide = {
    "text": "hunyuan_image", "tokenizer": "HunyuanImageTokenizer", "encoder": "te",
    "sizes": {"qwen25_7b": llm(4), **BYT5},
}  # fmt: skip


def model(
    kind: str, unet: dict[str, Any], text: TextSide, vae: str = "taesd", **others: Any
) -> Recipe:
    """A recipe as tests.probes.tiny_models reads it."""
    return {"model": kind, "unet": unet, **text, "vae": vae, **others}


def refused(kind: str, unet: dict[str, Any], **others: Any) -> Recipe:
    """Of a model whose text encoder is never asked."""
    return model(kind, unet, standing_in(), **others)
