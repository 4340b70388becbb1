"""The demo base's text encoder: CLIP-L shaped, seeded, made on the machine and never shipped.

A frozen random transformer is a good enough text encoder for a small grammar when every word
stays visible at its own place. The residual stream therefore starts with large word embeddings
and each layer adds little to it, so that the last layer still spells out the word at its position
and, by causal attention, hints at the words before it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling

SEED = 20240229
SHA256 = "349770d03f905a9fdbdc93efcb76666122c43096c60724d9a452d5a28967c156"
CONTEXT = 77  # tokens, as in every SD 1.5 prompt
WIDTH, LAYERS, VOCABULARY = 768, 12, 49408
CONFIG = CLIPTextConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=12,
    max_position_embeddings=CONTEXT,
    hidden_act="quick_gelu",
)
# Standard deviations. A linear map of a layer-normed input keeps unit size at WIDTH ** -0.5.
_UNIT = WIDTH**-0.5
DEVIATIONS = {
    "token_embedding": 1.0,
    "position_embedding": 0.4,  # the place of a word is readable, the word outweighs it
    "q_proj": 1.5 * _UNIT,  # logits of deviation 2: attention picks some words over others
    "k_proj": 1.5 * _UNIT,
    "v_proj": _UNIT,
    "out_proj": 0.3 * _UNIT,  # each of 24 sublayers adds about a seventh of a word's size
    "fc1": _UNIT,
    "fc2": 0.15 * _UNIT,
}


def weights() -> dict[str, torch.Tensor]:
    """The encoder's fp16 weights under the names `text_model.*`, the same on every machine.

    Only PCG64's raw bits are used, whose stream numpy guarantees, and exact arithmetic: 16 bits
    make one uniform number. Raises AssertionError where the hash differs all the same.
    """
    bits = np.random.PCG64(SEED)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in CLIPTextModel(CONFIG).state_dict().items()}
    made = {}
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        if name.endswith("position_ids"):
            continue
        tensor = _draw(bits, name, shape)
        digest.update(tensor.numpy().tobytes())
        made["text_model." + name.removeprefix("text_model.")] = tensor
    assert digest.hexdigest() == SHA256, f"text encoder weights hash to {digest.hexdigest()}"
    return made


def _draw(bits: np.random.PCG64, name: str, shape: torch.Size) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float16)
    deviation = next((d for part, d in DEVIATIONS.items() if part in name), None)
    if deviation is None:
        return torch.ones(shape, dtype=torch.float16)  # layer norms
    count = shape.numel()
    raw = bits.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    uniform = (raw.astype(np.float32) - 32767.5) / 32768
    scaled = torch.from_numpy(uniform).mul_(3**0.5 * deviation)
    return scaled.to(torch.float16).reshape(shape)


class PromptEncoder:
    """Prompts to encodings (B, 77, 768), as the host computes them: fp16 weights in fp32."""

    def __init__(self, comfyui_path: Path, device: str = "cpu") -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(comfyui_path / "comfy" / "sd1_tokenizer")
        self.model = CLIPTextModel(CONFIG).eval()
        keys = self.model.state_dict().keys()
        prefixed = next(iter(keys)).startswith("text_model.")
        state = {k if prefixed else k.removeprefix("text_model."): v for k, v in weights().items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(k.endswith("position_ids") for k in missing), missing
        self.model.to(device)

    def __call__(self, prompts: list[str]) -> torch.Tensor:
        return torch.cat([made.last_hidden_state for made in self._run(prompts)])

    def for_sd3(self, prompts: list[str]) -> torch.Tensor:
        """Encodings (B, 78, 768) as SD3 takes them: the layer before the last, then the pooled."""
        return torch.cat(
            [
                torch.cat([made.hidden_states[-2], made.pooler_output[:, None]], dim=1)
                for made in self._run(prompts)
            ]
        )

    @torch.no_grad()
    def _run(self, prompts: list[str]) -> Iterator[BaseModelOutputWithPooling]:
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=CONTEXT,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for part in ids.split(16):
            yield self.model(part.to(self.model.device), output_hidden_states=True)
