"""Adapter Stack and Apply LoRA's hooks in a real ComfyUI: the same as its own loaders, chained."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.events import Event
from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError
from tests.test_host_lora import difference, latents, pictures

PROMPT = "a photo of sks dog"
UNET, TEXT = "model.diffusion_model.", "cond_stage_model."
ROW = ("lora", "strength_model", "strength_clip", "on")
names = itertools.count(1)


@pytest.fixture(params=["host", "old_host"])
def any_host(request: pytest.FixtureRequest) -> Host:
    """Every supported ComfyUI in turn."""
    return request.getfixturevalue(request.param)


def lora_tensors(checkpoint: Path, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for attention in the UNet and in the text encoder, strong enough to see."""
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, weight in safetensors.torch.load_file(checkpoint).items():
        name = key.removesuffix(".weight")
        if key.startswith(UNET) and ".attn" in key and weight.ndim == 2:
            spelled = "lora_unet_" + name.removeprefix(UNET).replace(".", "_")
        elif key.startswith(TEXT) and "_proj.weight" in key:
            spelled = "lora_te_text_model_" + name.split("text_model.")[1].replace(".", "_")
        else:
            continue
        wide, high = weight.shape[1], weight.shape[0]
        tensors[f"{spelled}.lora_down.weight"] = torch.randn(2, wide, generator=noise) / wide**0.5
        tensors[f"{spelled}.lora_up.weight"] = torch.randn(high, 2, generator=noise) * 0.2
        tensors[f"{spelled}.alpha"] = torch.tensor(2.0)
    return tensors


def add_lora(
    host: Host, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> str:
    """A file of its own in models/loras; its name."""
    name = f"stack_{next(names)}.safetensors"
    safetensors.torch.save_file(tensors, host.base / "models" / "loras" / name, metadata)
    return name


def stack(graph: Graph, *rows: tuple[Any, ...], **sockets: Any) -> list[Link]:
    """MODEL, CLIP, LORA_STACK, triggers and HOOKS of rows with values for ROW, in that order."""
    inputs = dict(sockets)
    for number, row in enumerate(rows, start=1):
        for name, value in zip(ROW, row, strict=False):
            inputs[f"{name}_{number}"] = value
    return graph.add("PersonalizeAdapterStack", 5, **inputs)


def load_lora(graph: Graph, base: list[Link], name: str, model: float, clip: float) -> list[Link]:
    return graph.add(
        "LoraLoader", 2, model=base[0], clip=base[1], lora_name=name,
        strength_model=model, strength_clip=clip,
    )  # fmt: skip


def shown(graph: Graph, link: Link) -> str:
    return graph.add("PreviewAny", source=link)[0][0]


def text_of(entry: dict[str, Any], node: str) -> str:
    return entry["outputs"][node]["text"][0]


def refused(host: Host, graph: Graph, words: str, kind: str = "AdapterError") -> None:
    with pytest.raises(HostError, match=words) as failed:
        host.run(graph)
    assert failed.value.node == "PersonalizeAdapterStack"
    assert failed.value.kind.endswith(kind)
    assert str(failed.value.summary).count("\n") == 1  # what and what is allowed; what to do


def files_of(host: Host) -> set[Path]:
    """All that lies in the host's folders, but for its database."""
    return {path for path in host.base.rglob("*") if not path.name.startswith("comfy.db")}


def one_row(host: Host, item: Any, *strengths: float) -> Graph:
    graph = Graph()
    model, clip, _ = graph.load()
    stacked = stack(graph, (item, *strengths), model=model, clip=clip)
    graph.sample(*stacked[:2], "refused")
    return graph


def test_a_stack_is_the_same_as_loaders_one_behind_the_other(
    any_host: Host, checkpoint: Path
) -> None:
    host, graph = any_host, Graph()
    first, second = (add_lora(host, lora_tensors(checkpoint, seed)) for seed in (1, 2))
    model, clip, vae = graph.load()
    dataset = graph.dataset(pictures(host))
    lora = graph.train(model, clip, vae, dataset, train_text_encoder=True, steps=2)[2]
    embedding = graph.invert(model, clip, vae, dataset, token="<sks>", steps=1)[1]
    prompt = "a photo of <sks> dog"

    chained = load_lora(graph, [model, clip], first, 0.8, 0.5)
    chained = load_lora(graph, chained, second, -0.6, 0.0)
    chained = graph.add(
        "PersonalizeApplyLora", 3, model=chained[0], clip=chained[1], lora=lora,
        strength_model=1.5, strength_clip=1.0,
    )  # fmt: skip
    knowing = graph.add("PersonalizeApplyEmbedding", clip=chained[1], embedding=embedding)[0]
    graph.sample(chained[0], knowing, "chained", prompt)

    rows = [(embedding,), (first, 0.8, 0.5), (lora, 1.5, 1.0), (second, -0.6, 0.0)]
    ours = stack(graph, *rows, model=model, clip=clip)
    graph.sample(ours[0], ours[1], "ours", prompt)
    seen, triggers = shown(graph, ours[2]), shown(graph, ours[3])
    files = stack(graph, rows[1], rows[3])[2]  # of another node, with no model
    mixed = stack(graph, rows[2], rows[0], model=model, clip=clip, lora_stack=files)
    graph.sample(mixed[0], mixed[1], "mixed", prompt)
    graph.sample(model, clip, "base", prompt)
    entry = host.run(graph)

    assert difference(latents(host, "ours"), latents(host, "chained")) < 1e-5
    assert difference(latents(host, "mixed"), latents(host, "chained")) < 1e-5
    assert difference(latents(host, "base"), latents(host, "chained")) > 1e-2
    assert json.loads(text_of(entry, seen)) == [[first, 0.8, 0.5], [second, -0.6, 0.0]]
    assert text_of(entry, triggers) == "<sks>, a photo of sks dog"


def test_what_is_off_is_not_there_and_not_computed(any_host: Host, checkpoint: Path) -> None:
    host, graph, executed = any_host, Graph(), []
    name = add_lora(host, lora_tensors(checkpoint, 3), {"modelspec.trigger_phrase": "sks dog"})
    model, clip, _ = graph.load()
    lora = graph.add("ProbeLora", name=name)[0]
    prompt = as_new(PROMPT)
    graph.sample(model, clip, "base", prompt)
    rows = [(name, 1.0, 1.0, False), (lora, 1.0, 1.0, False), (name, 0.0, 0.0), ("None", 1.0)]
    off = stack(graph, *rows, model=model, clip=clip)
    graph.sample(off[0], off[1], "off", prompt)
    seen, triggers = shown(graph, off[2]), shown(graph, off[3])

    def on_event(event: Event) -> None:
        if event.kind == "executing":
            executed.append(event.data["node"])

    entry = host.follow(graph, on_event)
    assert torch.equal(latents(host, "off"), latents(host, "base"))
    assert text_of(entry, seen) == "[]"
    assert text_of(entry, triggers) == ""
    assert lora[0] not in executed


@pytest.mark.parametrize(("of_model", "of_clip"), [(0.0, 1.0), (1.0, 0.0), (-1.0, -0.5)])
def test_strengths_are_the_hosts(
    any_host: Host, checkpoint: Path, of_model: float, of_clip: float
) -> None:
    host, graph = any_host, Graph()
    name = add_lora(host, lora_tensors(checkpoint, 4))
    base = graph.load()
    theirs = load_lora(graph, base, name, of_model, of_clip)
    graph.sample(*theirs, "theirs")
    ours = stack(graph, (name, of_model, of_clip), model=base[0], clip=base[1])
    graph.sample(*ours[:2], "ours")
    graph.sample(*base[:2], "base")
    host.run(graph)
    assert torch.equal(latents(host, "ours"), latents(host, "theirs"))
    assert difference(latents(host, "ours"), latents(host, "base")) > 1e-3


def test_trigger_words_of_files_are_handed_out(host: Host, checkpoint: Path) -> None:
    graph, tensors = Graph(), lora_tensors(checkpoint, 5)
    kohya = {
        "ss_tag_frequency": json.dumps({"9_cat": {"zwx cat": 4, "grass": 1}}),
        "ss_dataset_dirs": json.dumps({"9_cat": {"n_repeats": 9, "img_count": 4}}),
    }
    told = [{"modelspec.trigger_phrase": "sks <dog>"}, kohya, {}, {"ss_tag_frequency": "{"}]
    files = [add_lora(host, tensors, metadata) for metadata in told]
    model, clip, _ = graph.load()
    stacked = stack(graph, *((name, 0.1, 0.1) for name in files), model=model, clip=clip)
    entry = host.run({**graph, "t": {"class_type": "PreviewAny", "inputs": {"source": stacked[3]}}})
    assert text_of(entry, "t") == "sks <dog>, zwx cat"


def test_one_part_is_enough(host: Host, checkpoint: Path) -> None:
    tensors = lora_tensors(checkpoint, 6)
    parts = ("lora_unet_", "lora_te_")
    unet, text = ({k: t for k, t in tensors.items() if k.startswith(p)} for p in parts)
    graph, both = Graph(), [add_lora(host, part) for part in (unet, text)]
    model, clip, _ = graph.load()
    stacked = stack(graph, *((name, 1.0, 1.0) for name in both), model=model, clip=clip)
    whole = load_lora(graph, [model, clip], add_lora(host, tensors), 1.0, 1.0)
    graph.sample(*stacked[:2], "parts")
    graph.sample(*whole, "whole")
    of_model = stack(graph, (both[0],), model=model)
    graph.sample(of_model[0], clip, "model")
    of_clip = stack(graph, (both[1],), clip=clip)
    graph.sample(model, of_clip[1], "clip")
    host.run(graph)
    assert difference(latents(host, "parts"), latents(host, "whole")) < 1e-5
    assert difference(latents(host, "model"), latents(host, "clip")) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "gone.safetensors", "../../x.safetensors", "..\\..\\x.safetensors", "/etc/passwd",
        "a:b", "C:x.safetensors", "x.safetensors:stream", "a\0b", "", "x.pt",
    ],
)  # fmt: skip
def test_only_files_of_the_folder_are_opened(host: Host, name: str) -> None:
    (host.base / "x.safetensors").write_bytes(b"outside")
    (host.base / "models" / "loras" / "x.pt").write_bytes(b"pickled")
    before = files_of(host)
    refused(host, one_row(host, name), "No such file: lora_1: '.*'; allowed: .safetensors files")
    assert files_of(host) == before


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_what_only_has_the_name_of_a_lora_is_not_opened(any_host: Host, tmp_path: Path) -> None:
    host, trace = any_host, tmp_path / "trace"
    path = host.base / "models" / "loras" / add_lora(any_host, {"a": torch.ones(1)})
    zipped, saved = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../written.txt", "outside")
        archive.writestr("data.pkl", pickle.dumps(Harmful(trace)))
    torch.save({"lora_unet_a.lora_up.weight": Harmful(trace)}, saved)
    before = files_of(host)
    for content in (zipped.getvalue(), pickle.dumps(Harmful(trace)), saved.getvalue(), b""):
        path.write_bytes(content)
        refused(host, one_row(host, path.name), f"'{path.name}' cannot be read .* allowed: a whole")
    assert files_of(host) == before
    assert not trace.exists()


def test_files_for_other_models_are_named(any_host: Host, checkpoint: Path) -> None:
    host, right = any_host, lora_tensors(checkpoint, 7)
    text = {k: t for k, t in right.items() if k.startswith("lora_te_")}
    down = torch.ones(2, 8)
    flux = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down, **text}
    xl_says = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    foreign = [
        (add_lora(host, flux), "seems to be for Flux"),
        (add_lora(host, right, xl_says), "seems to be for Stable Diffusion XL; 'model' is Stable"),
        (add_lora(host, {"emb_params": down}), "seems to be for an embedding: put it into"),
        (add_lora(host, {"model.diffusion_model.a.weight": down}), "a whole checkpoint"),
        (add_lora(host, {"odd": down}), "something unknown: its first tensor is 'odd'"),
        (add_lora(host, {}), "seems to be for nothing"),
    ]
    for name, words in foreign:
        refused(host, one_row(host, name), words)


def test_broken_files_and_strengths_are_refused(any_host: Host, checkpoint: Path) -> None:
    host, tensors = any_host, lora_tensors(checkpoint, 8)
    key = next(iter(tensors))
    broken = {**tensors, key: torch.full_like(tensors[key], float("nan"))}
    refused(host, one_row(host, add_lora(host, broken)), f"NaN or infinite, in 1 of .*{key}")
    name = add_lora(host, tensors)
    path = host.base / "models" / "loras" / name
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:-1], whole[:20], struct.pack("<Q", 10**15)):
        path.write_bytes(cut)
        refused(host, one_row(host, name), f"'{name}' cannot be read")
    refused(
        host, one_row(host, add_lora(host, tensors), float("nan")), "has the strength nan; allowed"
    )
    host.post("/history", {"clear": True})  # NaN is no JSON, and pages that open would say so


def test_the_same_twice_is_refused(host: Host, checkpoint: Path) -> None:
    name = add_lora(host, lora_tensors(checkpoint, 9))
    graph = Graph()
    model, clip, vae = graph.load()
    both = {"model": model, "clip": clip}
    files = stack(graph, (name, 0.5))[2]
    ours = stack(graph, (name,), lora_stack=files, **both)
    graph.sample(*ours[:2], "refused")
    refused(host, graph, f"lora_1: '{name}' is in lora_stack, entry 1 as well")

    graph = Graph()
    model, clip, vae = graph.load()
    embedding = graph.invert(model, clip, vae, graph.dataset(pictures(host)), steps=1)[1]
    ours = stack(graph, (embedding,), ("None",), (embedding,), model=model, clip=clip)
    graph.sample(*ours[:2], "refused")
    refused(host, graph, "token '<sks>' is in lora_1 as well")

    graph = Graph()
    model, clip, vae = graph.load()
    embedding = graph.invert(model, clip, vae, graph.dataset(pictures(host)), steps=1)[1]
    ours = stack(graph, (embedding,), model=model)
    graph.sample(ours[0], clip, "refused")
    refused(host, graph, "the token '<sks>' needs a clip")


@pytest.mark.parametrize("entries", ['[["a", 1]]', '["a.safetensors"]', "[[1, 1, 1]]", "[null]"])
def test_stacks_of_another_form_are_refused(host: Host, entries: str) -> None:
    graph = Graph()
    model, clip, _ = graph.load()
    theirs = graph.add("ProbeStack", entries=entries)[0]
    graph.sample(*stack(graph, model=model, clip=clip, lora_stack=theirs)[:2], "refused")
    refused(host, graph, "lora_stack: entry 1 is .*; allowed: a file's name and two strengths")


def hooked(graph: Graph, base: list[Link], hooks: Link, prefix: str) -> None:
    """Sample with hooks on the text encoder and the model, at half strength from the middle on."""
    frame = graph.add("CreateHookKeyframe", strength_mult=0.5, start_percent=0.5)[0]
    scheduled = graph.add("SetHookKeyframes", hooks=hooks, hook_kf=frame)[0]
    clip = graph.add(
        "SetClipHooks", clip=base[1], hooks=scheduled, apply_to_conds=True, schedule_clip=False
    )[0]
    graph.sample(base[0], clip, prefix)


@pytest.mark.parametrize(("of_model", "of_clip"), [(1.0, 1.0), (-2.0, 0.5), (0.0, 0.0)])
def test_hooks_are_those_of_create_hook_lora(
    any_host: Host, of_model: float, of_clip: float
) -> None:
    host = any_host

    def trained() -> tuple[Graph, list[Link], Link]:
        graph = Graph()
        base = graph.load()
        dataset = graph.dataset(pictures(host))
        settings = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3}
        return graph, base, graph.train(*base, dataset, learning_rate=1e-2, **settings)[2]

    graph, _, lora = trained()
    prefix = {"filename_prefix": "loras/hook", "format": "kohya fp32"}
    graph.add("PersonalizeSaveLora", lora=lora, **prefix)
    host.run(graph)
    file = max((host.base / "output" / "loras").glob("hook_*.safetensors")).name

    strengths = {"strength_model": of_model, "strength_clip": of_clip}
    graph, base, lora = trained()
    wired = {"model": base[0], "clip": base[1], "lora": lora}
    ours = graph.add("PersonalizeApplyLora", 3, **wired, **strengths)[2]
    theirs = graph.add("CreateHookLora", lora_name=file, **strengths)[0]
    hooked(graph, base, ours, "ours")
    hooked(graph, base, theirs, "theirs")
    graph.sample(*base[:2], "base")
    host.run(graph)
    assert difference(latents(host, "ours"), latents(host, "theirs")) < 1e-5
    changed = difference(latents(host, "ours"), latents(host, "base"))
    assert changed > 1e-3 if of_model else changed == 0
