"""Prompts in API form, a line or two a node."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.tiny_transformers import CHROMA, QWEN_IMAGE
from trainers.settings.run import ON_OTHERS, ON_TRAINER

Link = list[Any]
SETTINGS_NODES = {
    "optimizer_settings": "PersonalizeOptimizer",
    "loss_settings": "PersonalizeLoss",
    "run_settings": "PersonalizeRun",
    "memory_settings": "PersonalizeMemory",
}

# Enough to change pictures, small enough for a CPU; fp32 so that equalities are tight.
SMALL_LORA = {
    "steps": 4, "batch_size": 1, "learning_rate": 1e-3, "rank": 4, "alpha": 4.0,
    "train_text_encoder": False, "seed": 7, "precision": "fp32",
}  # fmt: skip

SMALL_DREAMBOOTH = {
    "steps": 4, "batch_size": 1, "learning_rate": 1e-4,
    "train_text_encoder": False, "seed": 7, "precision": "fp32",
}  # fmt: skip
SMALL_INVERSION = {
    "token": "<sks>", "initializer": "dog", "vectors": 3, "steps": 3, "batch_size": 1,
    "learning_rate": 1e-2, "seed": 7, "precision": "fp32",
}  # fmt: skip


# What must hold whatever is trained: on a UNet, a transformer of flow matching, and one whose
# latents have five dimensions. A recipe makes a small model; without one it is the thin SD1.5.
BASES: dict[str, Mapping[str, Any]] = {"sd15": {}, "chroma": CHROMA, "qwen-image": QWEN_IMAGE}
every_base = pytest.mark.parametrize("base", BASES)
every_transformer = pytest.mark.parametrize("base", [name for name in BASES if BASES[name]])

_blanks = itertools.count(1)


def as_new(prompt: str) -> str:
    """The same to a text encoder; a host computes it anew, where it would hand out what it has."""
    return prompt + " " * next(_blanks)


class Graph(dict[str, dict[str, Any]]):
    """A prompt that nodes are added to."""

    def add(self, class_type: str, outputs: int = 1, **inputs: Any) -> list[Link]:
        """Add a node; returns a link to each of its outputs."""
        node_id = str(len(self) + 1)
        self[node_id] = {"class_type": class_type, "inputs": inputs}
        return [[node_id, slot] for slot in range(outputs)]

    def load(self, checkpoint: str = "thin_sd15.safetensors") -> list[Link]:
        """MODEL, CLIP and VAE of a checkpoint."""
        return self.add("CheckpointLoaderSimple", 3, ckpt_name=checkpoint)

    def made(self, recipe: Mapping[str, Any], **more: Any) -> list[Link]:
        """MODEL, CLIP and VAE of a small model; see tests.tiny_transformers."""
        return self.add("ProbeTiny", 3, recipe=json.dumps(recipe), **more)

    def base(self, name: str) -> list[Link]:
        """MODEL, CLIP and VAE of one of BASES."""
        return self.made(BASES[name]) if BASES[name] else self.load()

    def dataset(self, folder: str, prompt: str = "a photo of sks dog", **settings: Any) -> Link:
        values = {"resolution": 64, **settings}
        return self.add("PersonalizeFolderDataset", folder=folder, prompt=prompt, **values)[0]

    def train(
        self, model: Link, clip: Link, vae: Link, dataset: Link, **settings: Any
    ) -> list[Link]:
        """MODEL, CLIP, LORA_MODEL, LOSS_MAP and run of a short LoRA training."""
        sockets = {"model": model, "clip": clip, "vae": vae, "dataset": dataset}
        inputs = self.placed("lora", {**SMALL_LORA, **settings})
        return self.add("PersonalizeTrainLora", 5, **sockets, **inputs)

    def placed(self, method: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a training node; settings that stand elsewhere come by a node of their own."""
        inputs = dict(settings)
        for socket, node in SETTINGS_NODES.items():
            names = [n for n in ON_OTHERS[socket] if n in inputs and n not in ON_TRAINER[method]]
            if names:
                inputs[socket] = self.add(node, **{name: inputs.pop(name) for name in names})[0]
        return inputs

    def dreambooth(
        self, model: Link, clip: Link, vae: Link, dataset: Link, **settings: Any
    ) -> list[Link]:
        """MODEL, CLIP, LOSS_MAP and run of a short DreamBooth training."""
        sockets = {"model": model, "clip": clip, "vae": vae, "dataset": dataset}
        inputs = self.placed("dreambooth", {**SMALL_DREAMBOOTH, **settings})
        return self.add("PersonalizeTrainDreamBooth", 4, **sockets, **inputs)

    def encode(self, clip: Link, text: str) -> Link:
        """The conditioning of a prompt."""
        return self.add("CLIPTextEncode", clip=clip, text=text)[0]

    def sample(self, model: Link, clip: Link, prefix: str, prompt: str = "a photo of sks dog"):
        """Sample two steps at 64 px; the latents are saved under `prefix`."""
        positive, negative = self.encode(clip, prompt), self.encode(clip, "")
        empty = self.add("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
        latents = self.add(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=empty,
            seed=1, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )[0]  # fmt: skip
        self.add("SaveLatent", samples=latents, filename_prefix=prefix)

    def invert(
        self, model: Link, clip: Link, vae: Link, dataset: Link, **settings: Any
    ) -> list[Link]:
        """CLIP, PERSONALIZE_EMBEDDING, LOSS_MAP and run of a short Textual Inversion."""
        sockets = {"model": model, "clip": clip, "vae": vae, "dataset": dataset}
        inputs = self.placed("textual_inversion", {**SMALL_INVERSION, **settings})
        return self.add("PersonalizeTrainTextualInversion", 4, **sockets, **inputs)
