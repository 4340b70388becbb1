"""Before and After in a real ComfyUI: both sides are what the stock nodes make of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_host_lora import any_host, pictures

__all__ = ["any_host"]  # a fixture

# Each step of this sampler draws noise anew, by the seed.
SMALL = {
    "prompt": "a photo of sks dog", "negative_prompt": "red", "count": 2, "width": 64, "height": 96,
    "steps": 2, "cfg": 4.0, "sampler_name": "euler_ancestral", "scheduler": "normal", "seed": 51,
}  # fmt: skip


def before_after(graph: Graph, base: list[Link], **more: Any) -> list[Link]:
    """Before, after and the sheet."""
    sockets = dict(zip(("model", "clip", "vae"), base, strict=True))
    return graph.add("PersonalizeBeforeAfter", 3, **sockets, **{**SMALL, **more})


def by_stock(graph: Graph, base: list[Link], prompt: str) -> list[Link]:
    """The picture of each seed, by the nodes that ComfyUI comes with."""
    positive, negative = (graph.encode(base[1], t) for t in (prompt, SMALL["negative_prompt"]))
    size = {"width": SMALL["width"], "height": SMALL["height"], "batch_size": 1}
    latent = graph.add("EmptyLatentImage", **size)[0]
    how = {name: SMALL[name] for name in ("steps", "cfg", "sampler_name", "scheduler")}
    made = []
    for seed in (51, 52):
        samples = graph.add(
            "KSampler", model=base[0], positive=positive, negative=negative, latent_image=latent,
            denoise=1.0, seed=seed, **how,
        )[0]  # fmt: skip
        made += graph.add("VAEDecode", samples=samples, vae=base[2])
    return made


def hashes(host: Host, graph: Graph, wanted: dict[str, list[Link]]) -> dict[str, list[Any]]:
    """Shape and hash of every picture, in fp32, by what it is called."""
    probes = {
        name: [graph.add("ProbeOutputs", images=link)[0][0] for link in links]
        for name, links in wanted.items()
    }
    shown = host.run(graph)["outputs"]
    return {
        name: [one for node in nodes for one in json.loads(shown[node]["found"][0])["images"]]
        for name, nodes in probes.items()
    }


def test_sides_are_what_ksampler_makes_to_the_bit(any_host: Host) -> None:
    graph = Graph()
    base = graph.load()
    dataset = graph.dataset(pictures(any_host))
    lora = graph.train(
        *base, dataset, steps=1, learning_rate=1e-2, train_text_encoder=True, seed=51
    )
    word, plain = "a photo of <sks> dog", "a photo of a dog"
    token = graph.invert(*base, dataset, token="<sks>", steps=1, learning_rate=1.0, seed=51)[0]
    same = before_after(graph, base, trained_model=base[0], trained_clip=base[1])
    both = before_after(graph, base, trained_model=lora[0], trained_clip=lora[1])
    text = before_after(graph, base, trained_clip=token, prompt=word, base_prompt=plain)
    model = before_after(graph, base, trained_model=lora[0])
    found = hashes(any_host, graph, {
        "base": by_stock(graph, base, SMALL["prompt"]),
        "lora": by_stock(graph, [*lora[:2], base[2]], SMALL["prompt"]),
        "plain": by_stock(graph, base, plain),
        "word": by_stock(graph, [base[0], token, base[2]], word),
        "model": by_stock(graph, [lora[0], *base[1:]], SMALL["prompt"]),
        "same before": [same[0]], "same after": [same[1]],
        "both before": [both[0]], "both after": [both[1]],
        "text before": [text[0]], "text after": [text[1]],
        "model before": [model[0]], "model after": [model[1]],
        "sheet": [both[2]],
    })  # fmt: skip
    assert found["same before"] == found["same after"] == found["base"]
    assert found["both before"] == found["model before"] == found["base"]
    assert found["both after"] == found["lora"]
    assert found["model after"] == found["model"], "with the clip of the base"
    assert found["text before"] == found["plain"]
    assert found["text after"] == found["word"]
    every = [one for name in ("base", "lora", "plain", "word", "model") for one in found[name]]
    assert {(*shape,) for *shape, _ in every} == {(96, 64, 3)}
    assert len({one[-1] for one in every}) == 10, "each seed and each side differ"
    ((height, width, _, _),) = found["sheet"]
    assert height > 2 * 96
    assert width > 2 * 64


def test_models_of_videos_and_transformers_make_pictures(host: Host) -> None:
    graph = Graph()
    wanted: dict[str, list[Link]] = {}
    for name in ("chroma", "qwen-image"):
        base = graph.base(name)
        out = before_after(graph, base, trained_model=base[0])
        wanted |= {name: by_stock(graph, base, SMALL["prompt"]), f"{name} ours": out[:1]}
        wanted |= {f"{name} after": out[1:2]}
    found = hashes(host, graph, wanted)
    for name in ("chroma", "qwen-image"):
        assert found[name] == found[f"{name} ours"] == found[f"{name} after"]


def test_pages_are_told_what_each_node_of_their_graph_showed(any_host: Host) -> None:
    graph = Graph()
    base = graph.load()
    before_after(graph, base, trained_clip=base[1], base_prompt="a dog", seed=2**60)
    shown = [shown_in(any_host, graph, name) for name in ("first", "second")]
    assert shown[0] == shown[1], "the host has it cached"
    (pairs,) = shown[0].values()
    seeds = [str(2**60), str(2**60 + 1)]
    assert [pair["seed"] for pair in pairs] == seeds, "as text: numbers of a page are too small"
    assert [pair["prompts"] for pair in pairs] == [["a dog", SMALL["prompt"]]] * 2
    files = [any_host.base / "temp" / one["filename"] for pair in pairs for one in pair["files"]]
    assert len({*files}) == 4
    assert all(file.is_file() for file in files)
    graph["2"]["inputs"]["seed"] = 5
    assert [pair["seed"] for pair in shown_in(any_host, graph, "first")["2"]] == ["5", "6"]
    assert any_host.get("/personalize/before_after?graph=second")["shown"] == shown[1]
    assert any_host.get("/personalize/before_after?graph=third")["shown"] == {}


def shown_in(host: Host, graph: Graph, graph_id: str) -> dict[str, Any]:
    """What a page with this graph is told after it has run."""
    more = {"extra_data": {"extra_pnginfo": {"workflow": {"id": graph_id}}}}
    asked = {"prompt": graph, "client_id": "before and after", **more}
    host.wait(host.post("/prompt", asked)["prompt_id"])
    told: dict[str, Any] = host.get(f"/personalize/before_after?graph={graph_id}")["shown"]
    return told


# -- what is refused ----------------------------------------------------------


def test_nothing_that_was_trained_is_refused(any_host: Host) -> None:
    graph = Graph()
    before_after(graph, graph.load())
    words = "trained_model and trained_clip are both empty; allowed: either or both; wire"
    with pytest.raises(HostError, match=words) as failed:
        any_host.run(graph)
    assert failed.value.kind.endswith("SettingsError")


def test_models_and_clips_that_do_not_fit_are_refused(host: Host) -> None:
    graph = Graph()
    base = graph.load()
    before_after(graph, base, trained_model=graph.load("thin_sdxl.safetensors")[0])
    with pytest.raises(HostError, match="'clip'") as failed:
        host.run(graph)
    assert failed.value.kind.endswith("UnsupportedModelError")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 26, "width": 2048, "height": 2048}, "count is 26; allowed: 1 to 25 pairs of"),
        ({"count": 0}, "count is 0; allowed: 1 to 200"),
        ({"width": 32}, "width is 32; allowed: 64 to 2048"),
    ],
)
def test_settings_are_refused_when_queued(host: Host, wrong: dict[str, Any], words: str) -> None:
    graph = Graph()
    before_after(graph, graph.load(), **wrong)
    with pytest.raises(HostError, match=words) as failed:
        host.queue(graph)
    assert failed.value.kind == "invalid prompt"
