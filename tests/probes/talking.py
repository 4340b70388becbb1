"""A small text encoder of the host's own class that writes about pictures."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.supported_models_base
import torch
from comfy.text_encoders import llama, lumina2
from comfy_api.latest import io

from .stand_ins import vocabulary
from .tiny_models import fill

NAME = "gemma3_4b_vision"
SIZES = {
    "vocab_size": 107, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
EYES = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1,
    "image_size": 224,
}  # fmt: skip


class Talker(io.ComfyNode):
    """Gemma 3 with eyes; its vocabulary is single letters."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeTalker", category="tests", inputs=[], outputs=[io.Clip.Output()]
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        published = dict(llama.GEMMA3_VISION_CONFIG)
        llama.GEMMA3_VISION_CONFIG.update(EYES)
        try:
            clip = made()
        finally:
            llama.GEMMA3_VISION_CONFIG.update(published)
        return io.NodeOutput(clip)


def made() -> Any:
    words = vocabulary()
    clip = comfy.sd.CLIP(
        target=comfy.supported_models_base.ClipTarget(
            lumina2.NTokenizer, lumina2.te(model_type=NAME)
        ),
        tokenizer_data={"spiece_model": words},
        model_options={f"{NAME}_model_config": SIZES},
    )
    fill(clip.cond_stage_model)
    # Of tokens that are no letters none is ever the likeliest.
    inner = getattr(clip.cond_stage_model, NAME).transformer
    letters = clip.tokenizer.gemma3_4b.tokenizer.tokenizer.get_piece_size()
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
        inner.get_input_embeddings().weight[letters:] = 0
        inner.get_input_embeddings().weight[:4] = 0
    return clip
