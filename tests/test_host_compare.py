"""Compare in a real ComfyUI: what the stock nodes give, made once and kept."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.events import Event
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_host_lora import any_host, pictures
from tests.test_host_stack import add_lora, load_lora, lora_tensors
from tests.test_host_store import run_folders

__all__ = ["any_host"]  # a fixture

SMALL = {
    "strengths": "0.5, 1", "prompts": "a photo of a dog", "negative_prompt": "", "width": 64,
    "height": 64, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "seed": 3,
}  # fmt: skip
Facts = tuple[str, str, str]  # adapter, strength and prompt of a cell
Cells = dict[Path, tuple[int, bytes]]


def compare(graph: Graph, base: list[Link], *adapters: Any, **settings: Any) -> list[Link]:
    """The sheet and the images of adapters: files or wires."""
    sockets = dict(zip(("model", "clip", "vae"), base, strict=True))
    rows = {f"lora_{number}": item for number, item in enumerate(adapters, start=1)}
    return graph.add("PersonalizeCompare", 2, **sockets, **rows, **{**SMALL, **settings})


def asking(*adapters: Any, checkpoint: str = "thin_sd15.safetensors", **settings: Any) -> Graph:
    graph = Graph()
    compare(graph, graph.load(checkpoint), *adapters, **settings)
    return graph


def stock(graph: Graph, base: list[Link], prompt: str, prefix: str, **changed: Any) -> None:
    """A picture by the nodes that ComfyUI comes with."""
    settings: dict[str, Any] = {**SMALL, **changed}
    positive, negative = (graph.encode(base[1], text) for text in (prompt, ""))
    size = {"width": settings["width"], "height": settings["height"], "batch_size": 1}
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler")
    latents = graph.add(
        "KSampler", model=base[0], positive=positive, negative=negative, denoise=1.0,
        latent_image=graph.add("EmptyLatentImage", **size)[0],
        **{name: settings[name] for name in names},
    )[0]  # fmt: skip
    decoded = graph.add("VAEDecode", samples=latents, vae=base[2])[0]
    save(graph, decoded, prefix)


def save(graph: Graph, images: Link, prefix: str) -> None:
    graph.add("SaveImage", images=images, filename_prefix=prefix)


def saved(host: Host, prefix: str) -> list[bytes]:
    files = sorted((host.base / "output").glob(f"{prefix}_*.png"))
    return [pixels(file) for file in files]


def pixels(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.convert("RGB").tobytes()


def kept(host: Host) -> Cells:
    """Each cell's time and pixels."""
    files = (host.base / "output" / "personalize").glob("**/compare/*/*.png")
    return {file: (file.stat().st_mtime_ns, pixels(file)) for file in files}


def facts(file: Path) -> Facts:
    with Image.open(file) as picture:
        return tuple(picture.info[name] for name in ("adapter", "strength", "prompt"))


def told(host: Host, graph: Graph) -> str:
    """Run the graph; what Compare says under itself in the end."""
    texts = []

    def on_event(event: Event) -> None:
        if event.kind == "progress_text":
            texts.append(event.data["text"])

    host.follow(graph, on_event)
    return texts[-1]


def refused(host: Host, graph: Graph, words: str) -> None:
    """It ends with two lines that say this, and makes no cell."""
    before = kept(host)
    with pytest.raises(HostError, match=words) as failed:
        host.run(graph)
    assert failed.value.node == "PersonalizeCompare"
    assert failed.value.summary.count("\n") == 1
    assert kept(host) == before


# -- what they are ------------------------------------------------------------


def test_cells_are_what_the_stock_nodes_give(any_host: Host, checkpoint: Path) -> None:
    host, graph = any_host, Graph()
    name = add_lora(host, lora_tensors(checkpoint, 21))
    base = graph.load()
    dataset = graph.dataset(pictures(host))
    lora = graph.train(*base, dataset, steps=2, learning_rate=1e-2)[2]
    token = graph.invert(*base, dataset, token="<sks>", steps=1, learning_rate=1.0)[1]
    prompts = ["a photo of <sks> dog", "a (red:1.3) dog"]

    rows = [base]
    rows += [[*load_lora(graph, base[:2], name, s, s), base[2]] for s in (0.5, 1.0)]
    for strength in (0.5, 1.0):
        strengths = {"strength_model": strength, "strength_clip": strength}
        wired = {"model": base[0], "clip": base[1], "lora": lora}
        rows.append([*graph.add("PersonalizeApplyLora", 2, **wired, **strengths), base[2]])
    knowing = graph.add("PersonalizeApplyEmbedding", clip=base[1], embedding=token)[0]
    rows.append([base[0], knowing, base[2]])
    for number, (row, prompt) in enumerate(itertools.product(rows, prompts)):
        stock(graph, row, prompt, f"stock{number:02}", cfg=4.0)
    ours = compare(graph, base, name, lora, token, prompts="\n".join(prompts), cfg=4.0)
    save(graph, ours[1], "ours")
    save(graph, ours[0], "sheet")
    before = kept(host)
    entry = host.run(graph)

    theirs = saved(host, "stock*")
    assert saved(host, "ours") == theirs
    assert len(theirs) == len({*theirs}) + 1  # the token is not in the second prompt
    cells = {file: cell for file, cell in kept(host).items() if file not in before}
    assert {pixel for _, pixel in cells.values()} == {*theirs}
    titles = {facts(file)[:2] for file in cells}
    file = name.removesuffix(".safetensors")
    assert {("base", ""), (file, "0.5"), (file, "1"), ("<sks>", "")} < titles
    (shown,) = [p for p in host.images(entry) if p.parent.name == "temp"]
    assert pixels(shown) == saved(host, "sheet")[-1]
    for path in (host.base / "output").glob("*_*.png"):
        path.unlink()


def test_cells_of_a_model_of_videos_are_pictures(host: Host) -> None:
    graph = Graph()
    base = graph.base("qwen-image")
    lora = graph.train(*base, graph.dataset(pictures(host)), steps=1, learning_rate=1e-2)[2]
    stock(graph, base, SMALL["prompts"], "video stock")
    ours = compare(graph, base, lora, strengths="1")
    save(graph, ours[1], "video ours")
    host.run(graph)
    (theirs,) = saved(host, "video stock")
    first, second = saved(host, "video ours")
    assert first == theirs != second


def test_only_what_is_missing_is_made(host: Host, checkpoint: Path) -> None:
    tensors = lora_tensors(checkpoint, 22)
    name = add_lora(host, tensors)
    settings: dict[str, Any] = {"seed": 22}
    assert told(host, asking(name, **settings)) == "3 cells: 0 from disk, 3 made"
    first = kept(host)

    settings["prompts"] = "a photo of a dog\na cat"
    assert told(host, asking(name, **settings)) == "6 cells: 3 from disk, 3 made"
    settings["strengths"] = "1, 0, 0.5, 2"
    assert told(host, asking(name, **settings)) == "10 cells: 8 from disk, 2 made"
    renamed = add_lora(host, tensors)
    assert told(host, asking(renamed, **settings)) == "10 cells: 10 from disk, 0 made"
    other = add_lora(host, lora_tensors(checkpoint, 23))
    assert told(host, asking(other, **settings, baseline=False)) == "8 cells: 2 from disk, 6 made"
    assert told(host, asking(name, seed=22)) == "3 cells: 3 from disk, 0 made"
    last = kept(host)
    assert {file: last[file] for file in first} == first


@pytest.mark.parametrize(
    "changed",
    [
        {"checkpoint": "thin_sd15_fp16.safetensors"},
        {"negative_prompt": "blurry"},
        {"width": 128},
        {"steps": 3},
        {"cfg": 4.0},
        {"sampler_name": "heun"},
        {"scheduler": "karras"},
        {"seed": 25},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_cells_are_never_reused(
    host: Host, checkpoint: Path, changed: dict[str, Any]
) -> None:
    name = add_lora(host, lora_tensors(checkpoint, 24))
    settings = {"strengths": "1", "seed": 24}
    host.run(asking(name, **settings))
    assert told(host, asking(name, **{**settings, **changed})) == "2 cells: 0 from disk, 2 made"


def test_cancel_keeps_what_is_done_and_asking_again_makes_the_rest(
    any_host: Host, checkpoint: Path
) -> None:
    host, before, texts = any_host, kept(any_host), []
    settings = {"strengths": "0.2, 0.4, 0.6, 0.8, 1", "prompts": "a\nb\nc", "seed": 26}
    graph = asking(add_lora(host, lora_tensors(checkpoint, 25)), **settings)

    def on_event(event: Event) -> None:
        if event.kind == "progress" and event.data["value"] >= 7 * SMALL["steps"]:
            host.interrupt()
        if event.kind == "progress_text":
            texts.append(event.data["text"])

    with pytest.raises(HostError) as failed:
        host.follow(graph, on_event)
    assert failed.value.kind == "interrupted"
    first = {file: cell for file, cell in kept(host).items() if file not in before}
    assert 6 <= len(first) < 18
    assert texts[-1] == f"{len(first)} of 18 cells are kept; run again makes the others"
    assert not list((host.base / "output" / "personalize" / "compare").glob("**/*.part"))

    said = told(host, graph)
    assert said == f"18 cells: {len(first)} from disk, {18 - len(first)} made"
    assert {file: cell for file, cell in kept(host).items() if file in first} == first


def test_hostile_names_and_prompts_are_text(host: Host, checkpoint: Path) -> None:
    name = add_lora(host, lora_tensors(checkpoint, 28))
    folder = host.base / "models" / "loras"
    odd = "<img src=x onerror=alert(1)> 'a' $(b) ..写\u202e.safetensors"
    shutil.copy(folder / name, folder / odd)
    prompt = "../../<b>\U0001f600 embedding:../../x ((( %s {a|b}\u202e"
    graph = asking(odd, prompts=prompt, strengths="1", seed=28)
    before = kept(host)
    assert told(host, graph) == "2 cells: 0 from disk, 2 made"
    new = [file for file in kept(host) if file not in before]
    assert {file.parent.parent for file in new} == {host.base / "output/personalize/compare"}
    assert all(re.fullmatch(r"[0-9a-f]{16}\.png", file.name) for file in new)
    assert odd.removesuffix(".safetensors") in {facts(file)[0] for file in new}


# -- one run ------------------------------------------------------------------


def trained(host: Host, method: str, steps: int, seed: int) -> tuple[Graph, list[Link], list[Link]]:
    """A graph with a training; its base, and what comes out of the node."""
    graph = Graph()
    base = graph.load()
    train = {"lora": graph.train, "dreambooth": graph.dreambooth, "invert": graph.invert}[method]
    rates = {"lora": 1e-2, "dreambooth": 1e-3, "invert": 1.0}
    dataset = graph.dataset(pictures(host))
    return graph, base, train(*base, dataset, steps=steps, seed=seed, learning_rate=rates[method])


@pytest.mark.parametrize("method", ["lora", "dreambooth", "invert"])
def test_lengths_of_a_run_are_rows(any_host: Host, method: str) -> None:
    host, before = any_host, run_folders(any_host)
    prompt = "a photo of <sks> dog"
    graph, base, out = trained(host, method, 2, 31)
    model = base[0] if method == "invert" else out[0]
    clip = out[0] if method == "invert" else out[1]
    stock(graph, [model, clip, base[2]], prompt, f"two_{method}", seed=31)
    host.run(graph)
    graph, base, out = trained(host, method, 4, 31)
    model = base[0] if method == "invert" else out[0]
    clip = out[0] if method == "invert" else out[1]
    stock(graph, [model, clip, base[2]], prompt, f"four_{method}", seed=31)
    sheet = compare(graph, base, run=out[-1], strengths="1", prompts=prompt, seed=31)
    save(graph, sheet[1], f"run_{method}")
    host.run(graph)
    (run,) = run_folders(host) - before

    ours = saved(host, f"run_{method}")[-3:]
    assert ours[1:] == [saved(host, f"two_{method}")[-1], saved(host, f"four_{method}")[-1]]
    assert len({*ours}) == 3
    cells = {facts(file)[:2] for file in (run / "compare").glob("*/*.png")}
    strength = "1" if method == "lora" else ""
    assert cells == {("2 steps", strength), ("4 steps", strength)}
    again = asking(run=str(run), strengths="1", prompts=prompt, seed=31)
    assert told(host, again) == "3 cells: 3 from disk, 0 made"
    for path in (host.base / "output").glob(f"*_{method}_*.png"):
        path.unlink()


@pytest.mark.parametrize("run", ["../..", "/etc", "gone", "a\0b", "compare", "class_images"])
def test_only_runs_are_opened(host: Host, run: str) -> None:
    (host.base / "output" / "personalize").mkdir(exist_ok=True)
    refused(host, asking(run=run), "is no run; allowed: a folder of output/personalize")


def test_run_without_a_result_is_named(host: Host) -> None:
    before = run_folders(host)
    graph, _, out = trained(host, "lora", 2, 32)
    graph.add("PersonalizeLossPlot", loss_map=out[-2])
    host.run(graph)
    (run,) = run_folders(host) - before
    shutil.rmtree(run / "state")  # else it is the result of its step
    (result,) = run.glob("result-*")
    result.write_bytes(result.read_bytes()[:-1000])
    words = f"the result of 2 steps in '{run.name}' cannot be read|'{run.name}' has no result"
    refused(host, asking(run=run.name), words)
    result.unlink()
    refused(host, asking(run=run.name), f"run: '{run.name}' has no result; allowed")


def test_run_on_another_kind_of_model_is_named(host: Host) -> None:
    before = run_folders(host)
    graph, _, out = trained(host, "dreambooth", 1, 33)
    graph.add("PersonalizeLossPlot", loss_map=out[-2])
    host.run(graph)
    (run,) = run_folders(host) - before
    (result,) = run.glob("result-*")
    with safetensors.safe_open(result, "pt") as file:
        metadata = file.metadata()
    foreign = {**load_file(result), "denoiser.joint_blocks.weight": torch.ones(1)}
    save_file(foreign, result, metadata)
    words = "run, 1 steps: it is a trained model of another kind than 'model': 1 of "
    refused(host, asking(run=run.name), words)


# -- what is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strengths": "0.5, much"}, "strengths has 'much'; allowed: numbers from -10 to 10"),
        ({"strengths": ","}, "strengths has nothing"),
        ({"prompts": "\n \n"}, "prompts is empty; allowed: one prompt a line"),
    ],
)
def test_settings_are_refused_when_queued(host: Host, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(HostError, match=words) as failed:
        host.queue(asking(**wrong))
    assert failed.value.kind == "invalid prompt"


def test_what_cannot_be_compared_is_named_before_anything_is_sampled(
    any_host: Host, checkpoint: Path
) -> None:
    host, tensors = any_host, lora_tensors(checkpoint, 29)
    name = add_lora(host, tensors)
    flux = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 8)}
    refused(host, asking(), "No adapter is chosen; allowed")
    refused(host, asking("None", "gone.safetensors"), "No such file: lora_2: 'gone.safetensors'")
    refused(host, asking(name, add_lora(host, flux)), "lora_2: .* seems to be for Flux")
    many = "\n".join(map(str, range(200)))
    refused(host, asking(name, prompts=many), "3 rows by 200 prompts are 600 cells; allowed: 400")
