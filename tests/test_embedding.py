"""The file of a learned token: what is in it, and that diffusers reads it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor
from transformers import CLIPTokenizer

from tests import tiny
from tests.dataset_files import batch
from trainers.contracts import Parts
from trainers.methods.results import Embedding, read, spelled
from trainers.methods.textual_inversion import prepare
from trainers.models.architectures import SD15
from trainers.runs.files import save_tensors
from trainers.runs.metadata import embedding_metadata, needs_metadata

PROMPT = "a photo of <sks>, on a beach"


def embedding(**rows: Tensor) -> Embedding:
    return Embedding("<sks>", rows or {"clip_l": torch.arange(12.0).view(3, 4)}, {})


def test_one_encoders_rows_are_emb_params() -> None:
    rows = {"clip_l": torch.ones(2, 4)}
    assert list(spelled(rows)) == ["emb_params"]
    assert read(spelled(rows), ["clip_l"]).keys() == rows.keys()


def test_two_encoders_rows_are_under_their_names() -> None:
    rows = {"clip_l": torch.ones(2, 4), "clip_g": torch.ones(2, 6)}
    assert list(spelled(rows)) == ["clip_l", "clip_g"]
    tiny.assert_equal(read(spelled(rows), rows), rows)


def test_bundle_is_spelled_as_a1111_reads_it() -> None:
    assert list(embedding().bundled()) == ["bundle_emb.sks.string_to_param.*"]
    two = embedding(clip_l=torch.ones(1, 2), clip_g=torch.ones(1, 3))
    assert list(two.bundled()) == ["bundle_emb.sks.clip_l", "bundle_emb.sks.clip_g"]


@pytest.mark.parametrize(
    ("token", "name"), [("<my-dog>", "my-dog"), ("sks", "sks"), ("S*", "S"), ("*", "token")]
)
def test_file_name_is_what_files_can_be_called(token: str, name: str) -> None:
    assert Embedding(token, {}, {}).file_name == name


def test_fingerprint_is_of_the_rows() -> None:
    assert embedding().fingerprint() == embedding().fingerprint()
    other = embedding(clip_l=torch.zeros(3, 4))
    assert other.fingerprint() != embedding().fingerprint()


def test_needs_name_token_and_rows() -> None:
    (needed,) = json.loads(needs_metadata([embedding()])["personalize.embeddings"])
    assert needed == {"token": "<sks>", "vectors": 3, "sha256": embedding().fingerprint()}
    assert needs_metadata([]) == {}


def test_metadata_is_text_and_names_the_token() -> None:
    config = tiny.run_config("textual_inversion", token="<my-dog>")
    made = embedding_metadata(config, SD15, batch(1, captions=["a"]), "epsilon")
    assert all(type(value) is str for value in made.values())
    assert made["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert made["modelspec.trigger_phrase"] == made["personalize.token"] == "<my-dog>"


@pytest.mark.parametrize("vectors", [1, 16])
def test_file_of_sd15_is_small(tmp_path: Path, vectors: int) -> None:
    path = tmp_path / "sks.safetensors"
    config = tiny.run_config("textual_inversion", vectors=vectors)
    metadata = embedding_metadata(config, SD15, batch(1, captions=["a"]), "epsilon")
    save_tensors(path, spelled({"clip_l": torch.ones(vectors, 768)}), metadata, torch.float32)
    assert path.stat().st_size < 100_000
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["personalize.token"] == "<sks>"


# -- as diffusers reads it ----------------------------------------------------------------


class Pipe(DiffusionPipeline, TextualInversionLoaderMixin):
    """As much of a pipeline as loads an embedding."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: torch.nn.Module) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)


@pytest.fixture
def tokenizer() -> CLIPTokenizer:
    """CLIP's own, which ComfyUI carries."""
    comfyui = os.environ.get("PERSONALIZE_COMFYUI")
    if not comfyui:
        pytest.skip("PERSONALIZE_COMFYUI names no ComfyUI checkout; `python dev.py test` sets it")
    made: CLIPTokenizer = CLIPTokenizer.from_pretrained(Path(comfyui) / "comfy" / "sd1_tokenizer")
    return made


def encoder() -> torch.nn.Module:
    """A tiny text encoder with CLIP's vocabulary."""
    ends = {"eos_token_id": 49407, "pad_token_id": 49407}
    return tiny.seeded(tiny.build("clip_l", vocab_size=49408, **ends), 0)


class Words(tiny.Characters):
    """A text side with CLIP's own words."""

    def __init__(self, clip: torch.nn.Module, tokenizer: CLIPTokenizer) -> None:
        super().__init__(clip)
        self._tokenizer = tokenizer

    def tokenize(self, text: str) -> dict[str, list[int | Tensor]]:
        tokens: list[int | Tensor] = []
        for piece, is_learned in tiny.split_at_tokens(text, self.learned):
            plain = self._tokenizer(piece, add_special_tokens=False)["input_ids"]
            tokens += list(self.learned[piece]["clip_l"]) if is_learned else plain
        return {"clip_l": [49406, *tokens[:75], *[49407] * (76 - len(tokens))]}


def parts_with(tokenizer: CLIPTokenizer) -> Parts:
    clip = tiny.bare(encoder())
    return dataclasses.replace(tiny.parts(), modules={"clip_l": clip}, text=Words(clip, tokenizer))


@pytest.mark.parametrize("vectors", [1, 4])
def test_diffusers_encodes_the_token_alike(
    tmp_path: Path, tokenizer: CLIPTokenizer, vectors: int
) -> None:
    parts = parts_with(tokenizer)
    config = tiny.run_config("textual_inversion", initializer="dog", vectors=vectors)
    trainable = prepare(parts, config)
    (rows,) = trainable.parameters
    rows.data += torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "sks.safetensors"
    save_tensors(path, trainable.export(), {"personalize.token": "<sks>"}, torch.float32)

    pipe = Pipe(tokenizer, encoder())
    pipe.load_textual_inversion(str(path), token="<sks>")
    prompt = pipe.maybe_convert_prompt(PROMPT, tokenizer)
    ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    theirs = pipe.text_encoder(ids).last_hidden_state
    ours = parts.text.encode(PROMPT)["hidden"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    without = parts.text.encode("a photo of dog, on a beach")["hidden"]
    assert (ours - without).abs().max() > 0.1
