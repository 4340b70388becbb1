"""Subject Similarity in a real ComfyUI: its numbers are those of transformers' own classes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_host_lora import any_host
from trainers.data.dataset import folder_dataset
from trainers.settings.dataset import DatasetConfig

__all__ = ["any_host"]  # a fixture

FOLDER = "judges"  # of models/ and of input/
CLIP_PX, DINO_PX = 64, 518  # the oldest host's DINOv2 takes no other size
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": CLIP_PX, "patch_size": 16, "projection_dim": 32, "hidden_act": "quick_gelu",
    "num_channels": 3,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "projection_dim": 32, "hidden_act": "quick_gelu",
}  # fmt: skip
DINO = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": DINO_PX,
    "patch_size": 14, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
PROMPTS = ["a photo of a (red) dog", "a cat in the snow, oil painting"]
SIZES = {"real": [(64, 64), (64, 64), (96, 64)], "made": [(96, 64), (96, 64)]}


class Reference:
    """Small models of transformers, and what they say of the test's pictures."""

    def __init__(self, host: Host) -> None:
        torch.manual_seed(5)
        config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)
        self.clip = lively(CLIPModel(config))
        self.dino = lively(Dinov2Model(Dinov2Config(**DINO)))
        self.tokenizer = CLIPTokenizer.from_pretrained(host.comfyui / "comfy" / "sd1_tokenizer")
        self.folder = host.base / "models" / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, model in (("clip", self.clip), ("dino", self.dino)):
            model.save_pretrained(self.folder / name)  # by the names that published files have
            (self.folder / name / "model.safetensors").replace(self.folder / f"{name}.safetensors")
        weights = load_file(self.folder / "clip.safetensors")
        texts = {k: v for k, v in weights.items() if k.startswith("text_model.")}
        save_file(texts, self.folder / "clip_l.safetensors")
        told = {
            "clip": {**VISION, "model_type": "clip_vision_model"},
            "dino": {**DINO, "model_type": "dinov2"},
            "text": TEXT,
        }
        (self.folder / "config.json").write_text(json.dumps(told))

    def pictures(self, pictures: list[Image.Image], crop: str) -> Tensor:
        whole = {"height": CLIP_PX, "width": CLIP_PX}
        center = crop == "center"
        processor = CLIPImageProcessor(
            size={"shortest_edge": CLIP_PX} if center else whole,
            do_center_crop=center,
            crop_size={"height": CLIP_PX, "width": CLIP_PX},
        )
        pixels = processor(images=pictures, return_tensors="pt")
        return pooled(self.clip.get_image_features(**pixels))

    def dinos(self, pictures: list[Image.Image]) -> Tensor:
        """Enlarged as the host does; transformers' own processor is 1e-3 off in such a cosine."""
        planes = [torch.from_numpy(np.array(one)).movedim(-1, 0)[None] / 255 for one in pictures]
        size = (DINO_PX, DINO_PX)
        large = [nn.functional.interpolate(p, size, mode="bicubic", antialias=True) for p in planes]
        processor = BitImageProcessor(
            do_resize=False, do_center_crop=False, image_mean=DINO["image_mean"],
            image_std=DINO["image_std"],
        )  # fmt: skip
        whole = (255 * torch.cat(large)).clamp(0, 255).round().byte()
        return pooled(self.dino(**processor(images=list(whole), return_tensors="pt")))

    def texts(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return pooled(self.clip.get_text_features(**tokens))


def pooled(output: Any) -> Tensor:
    """Newer releases of transformers answer with more than the embedding."""
    found: Tensor = getattr(output, "pooler_output", output)
    return found


def lively(model: nn.Module) -> Any:
    """Weights so large that pictures differ, which fp16 holds as they are."""
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
        weight.data = weight.data.half().float()
    return model.eval()


def files(host: Host) -> dict[str, list[Path]]:
    """Pictures of blurred noise: three of the subject in a folder, two samples beside it."""
    made: dict[str, list[Path]] = {}
    noise = np.random.default_rng(6)
    for kind, sizes in SIZES.items():
        for number, size in enumerate(sizes):
            small = noise.integers(0, 256, (5, 7, 3)).astype(np.uint8)
            folder = host.base / "input" / (FOLDER if kind == "real" else "")
            folder.mkdir(exist_ok=True)
            path = folder / f"{FOLDER}_{kind}_{number}.png"
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
            made.setdefault(kind, []).append(path)
    return made


def batch_of(graph: Graph, paths: list[Path]) -> Link:
    first, second = (graph.add("LoadImage", image=path.name)[0] for path in paths)
    return graph.add("ImageBatch", image1=first, image2=second)[0]


def measuring(graph: Graph, paths: list[Path], **inputs: Any) -> list[Link]:
    """Subject Similarity of the two samples; a judge is given by its name."""
    judges = graph.add("ProbeJudges", 3, folder=FOLDER, text=inputs.pop("text", "clip.safetensors"))
    by_name = dict(zip(("clip_vision", "dino", "clip"), judges, strict=True))
    wired = {
        n: by_name.get(item, item) if type(item) is str else item for n, item in inputs.items()
    }
    return graph.add(
        "PersonalizeSimilarity", 6, images=batch_of(graph, paths),
        dataset=graph.dataset(FOLDER, resolution=64, masks="auto" if "masks" in inputs else "none"),
        **{"prompts": "", "images_per_row": 0, **wired},
    )  # fmt: skip


ALL = {"clip_vision": "clip_vision", "dino": "dino", "clip": "clip"}


@torch.no_grad()
def test_numbers_are_those_of_transformers(any_host: Host) -> None:
    host, reference, shown = any_host, Reference(any_host), files(any_host)
    graph, crops = Graph(), ("none", "center")
    labels = {"prompts": "\n".join(PROMPTS), "images_per_row": 1, "row_labels": "half\nfull"}
    found = {crop: measuring(graph, shown["made"], **ALL, **labels, crop=crop) for crop in crops}
    shows = {
        crop: [graph.add("PreviewAny", source=link)[0][0] for link in outputs[:5]]
        for crop, outputs in found.items()
    }
    outputs = host.run(graph)["outputs"]

    real, made = trained(host), [Image.open(path) for path in shown["made"]]
    for crop, nodes in shows.items():
        samples = reference.pictures(made, crop)
        expected = {
            "CLIP-I": cosine(reference.pictures(real, crop), samples).mean(0),
            "CLIP-T": cosine(reference.texts(PROMPTS), samples).diagonal(),
        }
        if crop == "none":
            expected["DINO"] = cosine(*map(reference.dinos, (real, made))).mean(0)
        *means, table, lines = (outputs[node]["text"][0] for node in nodes)
        rows = list(csv.DictReader(io.StringIO(lines)))
        assert [row["row"] for row in rows] == ["half", "full"]
        for (name, each), mean in zip(expected.items(), means, strict=False):
            ours = [float(row[name]) for row in rows]
            assert ours == pytest.approx(each.tolist(), abs=1e-4)
            assert abs(ours[0] - ours[1]) > 1e-3  # or it could not tell them apart
            assert float(mean) == pytest.approx(sum(ours) / 2, abs=1e-6)
            assert f"{name} {max(ours):.3f} ({'half' if ours[0] > ours[1] else 'full'})" in table


def alone(picture: Image.Image) -> Image.Image:
    """What a mask of this box leaves."""
    square = Image.new("RGB", (CLIP_PX, CLIP_PX), (128, 128, 128))  # needs no resizing
    square.paste(picture.crop((0, 16, 64, 40)), (0, 20))
    return square


@torch.no_grad()
def test_masks_leave_the_subject_alone(host: Host) -> None:
    reference, shown, graph = Reference(host), files(host), Graph()
    masks = []
    for path in (shown["real"][0], shown["made"][0]):
        mask = Image.new("L", Image.open(path).size)
        mask.paste(255, (0, 16, 64, 40))
        masks.append(path.with_name(f"{path.stem}.mask.png"))
        mask.save(masks[-1])
    of_samples = graph.add("LoadImageMask", image=masks[1].name, channel="red")[0]
    settings = {"dataset_masks": True, "masks": of_samples, "clip_vision": "clip_vision"}
    lines = graph.add("PreviewAny", source=measuring(graph, shown["made"], **settings)[4])[0][0]
    rows = list(csv.DictReader(io.StringIO(host.run(graph)["outputs"][lines]["text"][0])))
    masks[0].unlink()

    real, made = trained(host), [Image.open(path) for path in shown["made"]]
    real[0], made = alone(real[0]), list(map(alone, made))
    each = cosine(reference.pictures(real, "none"), reference.pictures(made, "none")).mean(0)
    assert [float(row["CLIP-I"]) for row in rows] == pytest.approx(each.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "neither clip_vision nor dino is wired"),
        ({"dino": "dino", "clip": "clip"}, "clip is wired but not clip_vision"),
        ({**ALL, "prompts": " "}, "clip is wired but prompts is empty"),
        ({"dino": "clip_vision"}, "dino is a 'clip_vision_model'; allowed: DINOv2"),
        ({"clip_vision": "dino"}, "clip_vision is a 'dinov2' without the projection of a CLIP"),
        ({"dino": "dino", "dataset_masks": True}, "no picture of the dataset has a mask"),
        (
            {**ALL, "prompts": "a dog", "text": "clip_l.safetensors"},
            "holds no text_projection of 32 x 32",
        ),
        ({"dino": "dino", "images_per_row": 3}, "2 images are no whole rows of 3"),
    ],
)
def test_what_cannot_be_measured_is_told(host: Host, inputs: dict[str, Any], words: str) -> None:
    Reference(host)
    graph, shown = Graph(), files(host)
    measuring(graph, shown["made"], **inputs)
    with pytest.raises(HostError, match=words) as failed:
        host.run(graph)
    assert failed.value.node == "PersonalizeSimilarity"
    assert failed.value.summary.count("\n") == 1


def test_a_number_that_was_not_measured_stops_what_takes_it(host: Host) -> None:
    Reference(host)
    graph, shown = Graph(), files(host)
    *means, _, _, _ = measuring(graph, shown["made"], dino="dino")
    clip_i, clip_t, dino = (graph.add("PreviewAny", source=link)[0][0] for link in means)
    told: list[str] = []
    follow = host.follow(graph, lambda event: told.append(json.dumps(event.data)))
    assert {clip_i, clip_t, dino} & set(follow["outputs"]) == {dino}
    assert any("was not measured: wire what it needs" in text for text in told)


def trained(host: Host) -> list[Image.Image]:
    """The subject's pictures as they are trained."""
    dataset = folder_dataset(host.base / "input" / FOLDER, DatasetConfig(resolution=64))
    pixels = (dataset.pixels(place) for place in range(len(dataset)))
    return [Image.fromarray((255 * one).round().numpy().astype(np.uint8)) for one in pixels]


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
