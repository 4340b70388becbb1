"""Tiny random models that write captions, of transformers' own classes, as folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SIZE_PX = 32
WORDS = "a dog cat on the beach red blue with and of in photo picture grass sky".split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIZE_PX, "patch_size": 8, "projection_dim": 32,
}  # fmt: skip


def tokenizer(vocabulary: list[str] = WORDS, **more: Any) -> Any:
    """A word for a token."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *vocabulary])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", model_input_names=["input_ids", "attention_mask"], **more,
    )  # fmt: skip


def saved(folder: Path, model: Any, processor: Any, scale: float = 0.6) -> Path:
    """Seeded weights, large enough that pictures differ in what is said of them."""
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=noise))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]))
    words = transformers.BertTokenizerFast.from_pretrained(folder)
    text = {"vocab_size": len(words), "hidden_size": 32, "encoder_hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=VISION, projection_dim=32)
    pictures = transformers.BlipImageProcessor(size={"height": SIZE_PX, "width": SIZE_PX})
    return saved(
        folder,
        transformers.BlipForConditionalGeneration(config),
        transformers.BlipProcessor(pictures, words),
    )


def llava(folder: Path) -> Path:
    """Of the kind that is talked to, as JoyCaption is."""
    words = tokenizer(
        [*WORDS, "USER", "ASSISTANT", ":", "."], extra_special_tokens={"image_token": "<image>"}
    )
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=4, image_seq_length=16,
    )  # fmt: skip
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIZE_PX}, crop_size={"height": SIZE_PX, "width": SIZE_PX}
    )
    processor = transformers.LlavaProcessor(
        pictures, words, patch_size=8, vision_feature_select_strategy="default",
        chat_template=CHAT, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    return saved(folder, transformers.LlavaForConditionalGeneration(config), processor)


def florence2(folder: Path) -> Path:
    """Its tokens are single letters."""
    folder.mkdir(parents=True)
    signs = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *pre_tokenizers.ByteLevel.alphabet()]
    (folder / "vocab.json").write_text(json.dumps({sign: n for n, sign in enumerate(signs)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = transformers.BartTokenizerFast.from_pretrained(
        folder, extra_special_tokens={"image_token": "<image>"}
    )
    image = words.convert_tokens_to_ids("<image>")
    text = {"vocab_size": len(words), "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64, "max_position_embeddings": 128, "bos_token_id": 0,
            "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2,
            "forced_eos_token_id": 2}  # fmt: skip
    vision = {"depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "num_heads": (2, 2, 2, 2),
              "num_groups": (2, 2, 2, 2), "window_size": 4, "projection_dim": 32}  # fmt: skip
    config = transformers.Florence2Config(
        text_config={"model_type": "bart", **text}, vision_config=vision, image_token_id=image
    )
    pictures = transformers.CLIPImageProcessor(
        size={"height": 64, "width": 64},
        crop_size={"height": 64, "width": 64},
        do_center_crop=False,
        image_seq_length=5,
    )
    processor = transformers.Florence2Processor(pictures, words, num_additional_image_tokens=0)
    model = transformers.Florence2ForConditionalGeneration(config)
    return saved(folder, model, processor, scale=0.3)


KINDS: dict[str, Callable[[Path], Path]] = {"blip": blip, "llava": llava, "florence2": florence2}
