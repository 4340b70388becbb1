"""Edit models in a real ComfyUI: pairs of pictures, previews with control images, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny_transformers as transformers
from tests.base_models import EDITS, Row, pairs
from tests.dataset_files import noise, save
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_dataset_nodes import folder_prompt, shown_text, was_cached
from tests.test_host_lora import PROMPT, latents, pictures
from tests.test_host_store import facts, run_folders

KONTEXT, QWEN = EDITS[0], EDITS[2]
EDITED = "make the dog blue"


def image(host: Host, graph: Graph, size: tuple[int, int], count: int = 1) -> Link:
    """A picture of its own, or a batch of equal ones."""
    name = "{}x{}.png".format(*size)
    noise(*size).save(host.base / "input" / name)
    loaded = graph.add("LoadImage", 2, image=name)[0]
    return loaded if count == 1 else graph.add("RepeatImageBatch", image=loaded, amount=count)[0]


def with_preview(graph: Graph, shown: Link) -> Link:
    return graph.add(
        "PersonalizePreview", prompts=f"{PROMPT}\n{EDITED}", every_steps=1, seed=1, width=64,
        height=64, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal",
        control_images=shown,
    )[0]  # fmt: skip


# The dataset nodes


def test_folder_node_takes_a_control_folder(host: Host) -> None:
    inputs = host.base / "input"
    for name in ("after/a.png", "after/b.png", "before/a.png", "before/b.jpg"):
        save(inputs / name)
    prompt = folder_prompt("after", control_folder="before")
    assert "2 pictures at 128 px, each with 1 control image" in shown_text(host.run(prompt))
    save(inputs / "before" / "b.jpg", colour=(0, 0, 255))
    assert not was_cached(host.run(prompt))  # nothing but a control image has changed
    (inputs / "before" / "b.jpg").unlink()
    with pytest.raises(HostError, match=r"1 of 2 images have no control image: b\.png"):
        host.run(prompt)
    for wrong, words in (("gone", "'gone' does not exist"), ("..", "is not inside")):
        with pytest.raises(HostError, match=words) as error:
            host.run(folder_prompt("after", control_folder=f"before, {wrong}"))
        assert error.value.kind == "invalid prompt"


def test_batch_node_takes_control_images(host: Host) -> None:
    graph = Graph()
    given = {
        "images": image(host, graph, (128, 128), 2), "prompt": PROMPT, "resolution": 128,
        "control_images": image(host, graph, (64, 96), 2),
        "control_images_2": image(host, graph, (128, 64), 2),
    }  # fmt: skip
    (made,) = graph.add("PersonalizeImageDataset", **given)
    assert "2 pictures at 128 px, each with 2 control images" in shown_text(
        host.run(graph), made[0]
    )
    graph[made[0]]["inputs"]["control_images_2"] = image(host, graph, (128, 64))
    with pytest.raises(HostError, match=r"1 control images no\. 2 for 2 images"):
        host.run(graph)


# Training


@pytest.mark.parametrize("row", [KONTEXT, QWEN], ids=str)
def test_previews_show_an_edit(host: Host, row: Row) -> None:
    recorder, graph = Graph(), Graph()
    recorder.add("ProbePreviewed", no_memory=False)
    host.run(recorder)
    base = row.load(host, graph)
    shown = image(host, graph, (64, 64))
    preview = with_preview(graph, shown)
    dataset = graph.dataset(pairs(host), PROMPT)
    trained = graph.train(*base, dataset, steps=1, learning_rate=1e-2, seed=70, preview=preview)
    latent = graph.add("VAEEncode", pixels=shown, vae=base[2])[0]
    told = []
    for text in (EDITED, ""):
        said = graph.encode(base[1], text)
        if row.encoder:
            said = graph.add(row.encoder, clip=base[1], prompt=text, image1=shown)[0]
        told += graph.add("ReferenceLatent", conditioning=said, latent=latent)
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    made = graph.add(
        "KSampler", model=trained[0], positive=told[0], negative=told[1], latent_image=empty,
        seed=1, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )[0]  # fmt: skip
    graph.add("SaveLatent", samples=made, filename_prefix=f"edited-{row}")
    host.run(graph)
    ours = load_file(host.base / "output" / "previewed.safetensors")["0001"]
    theirs = latents(host, f"edited-{row}")
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_text_encoder_that_looks_at_pictures_is_trained(host: Host) -> None:
    before, graph = run_folders(host), Graph()
    base = QWEN.load(host, graph)
    settings = {
        "train_text_encoder": True, "batch_size": 3, "held_out": 0.3, "caption_dropout": 0.3,
        "prior": "output preservation", "class_prompt": "a photo of a dog", "targets": "attention",
    }  # fmt: skip
    graph.train(*base, graph.dataset(pairs(host), PROMPT), steps=2, seed=71, **settings)
    host.run(graph)
    (run,) = run_folders(host) - before
    listed = [picture["controls"] for picture in facts(run)["dataset"]["pictures"]]
    assert [(one["name"], one["size_px"]) for (one,) in listed] == [
        (f"{n}.control.png", [80, 48]) for n in range(3)
    ]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["validation"] > 0


def test_class_images_may_have_no_control_images(host: Host) -> None:
    graph = Graph()
    base = KONTEXT.load(host, graph)
    trained, classes = graph.dataset(pairs(host)), graph.dataset(pictures(host))
    graph.train(*base, trained, class_dataset=classes, steps=1, seed=72, batch_size=2)
    host.run(graph)


# Refusals


def refusal(host: Host, graph: Graph) -> str:
    with pytest.raises(HostError) as error:
        host.run(graph)
    assert error.value.node.startswith("PersonalizeTrain")
    return str(error.value)


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (None, "SD15"),
        (transformers.Z_IMAGE, "ZImage"),
        (transformers.CHROMA, "Chroma"),
        (transformers.KREA2, "Krea2"),
    ],
)
def test_model_that_takes_none_is_refused(
    host: Host, recipe: transformers.Recipe | None, kind: str
) -> None:
    runs, graph = run_folders(host), Graph()
    base = graph.load() if recipe is None else graph.made(recipe)
    graph.train(*base, graph.dataset(pairs(host)))
    assert (
        f"Input 'dataset' ('pairs') has control images, but input 'model' is a {kind}, which takes "
        "none.\nLoad a model that edits pictures"
    ) in refusal(host, graph)
    assert run_folders(host) == runs


def test_counts_that_do_not_go_together_are_refused(host: Host) -> None:
    folder = host.base / "input" / "four"
    save(folder / "a.png")
    for number in range(1, 5):
        save(folder / f"a.control{number}.png")

    def said(trained: str, **more: Any) -> str:
        graph = Graph()
        base = QWEN.load(host, graph)
        others = {
            name: graph.dataset(value) if isinstance(value, str) else value(graph)
            for name, value in more.items()
        }
        graph.train(*base, graph.dataset(trained), **others)
        return refusal(host, graph)

    def preview(graph: Graph) -> Link:
        return with_preview(graph, image(host, graph, (64, 64), 3))

    assert "has 4 control images with each picture; Qwen-Image takes at most 3" in said("four")
    pictures(host)
    assert (
        "Input 'validation_dataset' ('dog') has no control images with each picture, but 'dataset' "
        "('pairs') has 1 control image.\nGive them the same."
    ) in said(pairs(host), validation_dataset="dog")
    assert "'class_dataset' ('four') has 4 control images with each picture, but" in said(
        pairs(host), class_dataset="four"
    )
    assert (
        "Preview Settings has 3 control images; allowed: 1 for all prompts, or 2: 1 for each prompt"
    ) in said(pairs(host), preview=preview)
    assert "3 control images; allowed: none, since the dataset has none" in said(
        pictures(host), preview=preview
    )
