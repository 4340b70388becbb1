"""Train LoRA in a real ComfyUI: sockets, file and trainer must agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.conftest import on_a_cpu
from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError

PROMPT = "a photo of sks dog"
TEXT = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3}


@pytest.fixture(params=["host", "old_host"])
def any_host(request: pytest.FixtureRequest) -> Host:
    """Every supported ComfyUI in turn."""
    return request.getfixturevalue(request.param)


def pictures(host: Host) -> str:
    folder = host.base / "input" / "dog"
    if not folder.exists():
        folder.mkdir()
        for number, colour in enumerate(("red", "teal", "gold")):
            Image.new("RGB", (80, 72), colour).save(folder / f"{number}.png")
    return folder.name


def latents(host: Host, name: str) -> torch.Tensor:
    """What the newest SaveLatent under `name` wrote."""
    newest = max((host.base / "output").glob(f"{name}_*.latent"), key=lambda p: p.name)
    return safetensors.torch.load_file(newest)["latent_tensor"]


def found(entry: dict[str, Any]) -> dict[str, Any]:
    """What the one probe of a prompt measured."""
    return json.loads(next(o["found"][0] for o in entry["outputs"].values() if "found" in o))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def probe(graph: Graph, model: Link, clip: Link, text: str = PROMPT) -> None:
    conditioning = graph.add("CLIPTextEncode", clip=clip, text=text)[0]
    graph.add("ProbePrediction", model=model, clip=clip, conditioning=conditioning, text=text)


def saved_lora(host: Host, name: str) -> Path:
    return max((host.base / "output" / "loras").glob(f"{name}_*.safetensors"))


ALIKE: dict[str, dict[str, Any]] = {
    "unet": {},
    "text": TEXT,
    "convolutions": {"targets": "all with convolutions", "rank_stabilized": True},
    "dora": {"variant": "dora", **TEXT},
    "lokr": {"variant": "lokr", **TEXT},
    "loha": {"variant": "loha", "learning_rate": 0.1, **TEXT},
    "oft": {"variant": "oft", **TEXT},
    "pissa": {"initialization": "pissa", **TEXT},
}


def test_files_and_sockets_sample_alike(any_host: Host) -> None:
    host, graph = any_host, Graph()
    log_from = len(host.log())
    model, clip, vae = graph.load()
    graph.sample(model, clip, "before", PROMPT)
    dataset = graph.dataset(pictures(host))
    for name, settings in ALIKE.items():
        trained = graph.train(model, clip, vae, dataset, **settings)
        graph.sample(trained[0], trained[1], f"{name}-sockets", PROMPT)
        graph.add(
            "PersonalizeSaveLora", lora=trained[2], filename_prefix=f"loras/alike-{name}",
            format="kohya fp32", model=model, clip=clip,
        )  # fmt: skip
    host.run(graph)

    graph = Graph()
    model, clip, _ = graph.load()
    graph.sample(model, clip, "after", as_new(PROMPT))
    for name in ALIKE:
        from_file = graph.add(
            "LoraLoader", 2, model=model, clip=clip, strength_model=1.0, strength_clip=1.0,
            lora_name=saved_lora(host, f"alike-{name}").name,
        )  # fmt: skip
        graph.sample(*from_file, f"{name}-file", PROMPT)
    host.run(graph)

    before = latents(host, "before")
    assert torch.equal(before, latents(host, "after"))
    sockets = {name: latents(host, f"{name}-sockets") for name in ALIKE}
    away = {name: difference(latents(host, f"{name}-file"), sockets[name]) for name in ALIKE}
    assert all(one < 1e-5 for one in away.values()), away
    changed = {name: difference(sockets[name], before) for name in ALIKE}
    assert all(one > 1e-3 for one in changed.values()), changed
    assert "lora key not loaded" not in host.log()[log_from:]


def test_file_is_kept_only_where_the_model_has_a_place_for_all_of_it(any_host: Host) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load()
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)), seed=91)
    other, other_clip, _ = graph.load("thin_sdxl.safetensors")
    graph.add(
        "PersonalizeSaveLora", lora=trained[2], filename_prefix="loras/foreign",
        format="kohya fp16", model=other, clip=other_clip,
    )  # fmt: skip
    with pytest.raises(HostError, match=r"no place in this model for \d+ of its \d+ tensors"):
        host.run(graph)
    assert not list((host.base / "output" / "loras").glob("foreign*"))


def test_file_has_a_thumbnail_and_on_request_the_graph(host: Host) -> None:
    graph = Graph()
    model, clip, vae = graph.load()
    preview = graph.add(
        "PersonalizePreview", prompts="a secret", every_steps=2, width=64, height=64, steps=1,
        cfg=5.0, sampler_name="euler", scheduler="normal", seed=1,
    )  # fmt: skip
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)), seed=90)
    graph[trained[0][0]]["inputs"]["preview"] = preview[0]
    for name, workflow in (("bare", False), ("full", True)):
        graph.add(
            "PersonalizeSaveLora", lora=trained[2], filename_prefix=f"loras/{name}",
            format="kohya fp16", workflow=workflow, thumbnail=not workflow,
        )  # fmt: skip
    host.run(graph)
    bare, full = saved_lora(host, "bare"), saved_lora(host, "full")
    previews = (host.base / "output" / "personalize").glob("lora-*/previews/step_00000004_0.png")
    newest = max(previews, key=lambda file: file.stat().st_mtime)
    with Image.open(bare.with_suffix(".png")) as ours, Image.open(newest) as theirs:
        assert ours.tobytes() == theirs.convert("RGB").tobytes()
        assert not ours.info
    assert not full.with_suffix(".png").exists()
    for path, there in ((bare, False), (full, True)):
        with safetensors.safe_open(path, "pt") as file:
            assert ("prompt" in file.metadata()) == there
    assert b"a secret" not in bare.read_bytes()


def test_core_loader_takes_the_lora_socket(any_host: Host) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load()
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)))
    graph.sample(trained[0], clip, "sockets", PROMPT)
    by_core = graph.add(
        "LoraModelLoader", model=model, lora=trained[2], strength_model=1.0, bypass=False
    )
    graph.sample(by_core[0], clip, "core", PROMPT)
    ours = graph.add(
        "PersonalizeApplyLora", 2, model=model, clip=clip, lora=trained[2],
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    graph.sample(*ours, "applied", PROMPT)
    host.run(graph)
    assert difference(latents(host, "core"), latents(host, "sockets")) < 1e-5
    assert difference(latents(host, "applied"), latents(host, "sockets")) < 1e-5


def test_lora_alone_from_disk_warns_of_no_keys(host: Host) -> None:
    graph = Graph()
    lora = graph.train(*graph.load(), graph.dataset(pictures(host)), seed=41)[2]
    graph.add("PersonalizeSaveLora", lora=lora, filename_prefix="loras/d", format="kohya fp32")
    host.run(graph)
    other = Graph()  # after which the host has forgotten the training
    other.sample(*other.load()[:2], "other", as_new(PROMPT))
    host.run(other)
    log_from = len(host.log())
    host.run(graph)
    assert "lora key not loaded" not in host.log()[log_from:]


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"variant": "dora"},
        {"variant": "lokr", "lokr_factor": 4},
        {"variant": "loha"},
        {"variant": "oft", "alpha": 1.0},
        {"initialization": "pissa"},
    ],
    ids=lambda kind: ", ".join(map(str, kind.values())) or "lora",
)
@pytest.mark.parametrize(
    ("targets", "text"), [("attention", True), ("all with convolutions", False)]
)
def test_trainer_predicts_as_the_host_with_the_lora(
    fp32_host: Host, kind: dict[str, Any], targets: str, text: bool
) -> None:
    host, graph = fp32_host, Graph()
    log_from = len(host.log())
    model, clip, vae = graph.load()
    settings = {"targets": targets, "train_text_encoder": text, **kind}
    dataset = graph.dataset(pictures(host))
    trained = graph.train(model, clip, vae, dataset, text_encoder_learning_rate=1e-3, **settings)
    conditioning = graph.add("CLIPTextEncode", clip=trained[1], text=PROMPT)[0]
    graph.add(
        "ProbeTrained", model=model, clip=clip, lora=trained[2], settings=json.dumps(settings),
        text=PROMPT, trained_model=trained[0], conditioning=conditioning,
    )  # fmt: skip
    measured = found(host.run(graph))
    assert measured["unused keys"] == 0
    assert measured["text"] < 1e-5
    assert measured["prediction"] < 1e-5
    assert "lora key not loaded" not in host.log()[log_from:]


def test_trainer_predicts_as_the_host_with_a_lora_wired_in_before(any_host: Host) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load()
    settings = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3}
    first = graph.train(model, clip, vae, graph.dataset(pictures(host)), **settings)
    probe(graph, first[0], first[1])
    measured = found(host.run(graph))
    assert measured["prediction"] < 1e-5
    assert measured["text"] < 1e-5


def test_training_starts_from_the_lora_wired_in_before(any_host: Host) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load()
    dataset = graph.dataset(pictures(host))
    first = graph.train(model, clip, vae, dataset, train_text_encoder=True)
    graph.train(model, clip, vae, dataset, steps=1, seed=3)
    graph.train(first[0], first[1], vae, dataset, steps=1, seed=3)
    host.run(graph)
    plain, patched = one_step_losses(host)
    assert plain != patched


@pytest.mark.parametrize("text", [PROMPT, "a (photo) of [sks], 1.5 dogs", "word " * 90])
def test_captions_encode_as_the_host_encodes_them(any_host: Host, text: str) -> None:
    graph = Graph()
    model, clip, _ = graph.load()
    literal = text.replace("(", r"\(").replace(")", r"\)")  # the host's way to mean parentheses
    conditioning = graph.add("CLIPTextEncode", clip=clip, text=literal)[0]
    graph.add("ProbePrediction", model=model, clip=clip, conditioning=conditioning, text=text)
    assert found(any_host.run(graph))["text"] < 1e-5


def test_clip_skip_is_honoured(any_host: Host) -> None:
    graph = Graph()
    model, clip, _ = graph.load()
    skipped = graph.add("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)[0]
    probe(graph, model, skipped)
    assert found(any_host.run(graph))["text"] < 1e-5


@on_a_cpu
def test_weights_are_shared_with_the_host(any_host: Host) -> None:
    graph = Graph()
    model, clip, _ = graph.load()
    graph.add("ProbeSharing", model=model, clip=clip)
    measured = found(any_host.run(graph))
    for shared, total in measured.values():
        assert shared == total > 0


def test_notes_of_a_host_that_streams_stay_its_own(any_host: Host) -> None:
    graph = Graph()
    model, clip, _ = graph.load()
    graph.add("ProbeStreamed", model=model, clip=clip)
    assert found(any_host.run(graph)) == {"twin": [], "host": ["_v_weight", "_pin_state"]}


def test_models_on_the_cpu_beside_a_gpu_make_room_too(any_host: Host) -> None:
    graph = Graph()
    _, clip, _ = graph.load()
    graph.add("ProbeRoom", clip=clip)
    measured = found(any_host.run(graph))
    assert measured["before"] > 0
    assert measured["after"] == 0


def test_a_model_given_up_in_a_circle_is_in_nobodys_way(any_host: Host) -> None:
    graph = Graph()
    graph.add("ProbeGivenUp")
    assert found(any_host.run(graph)) == {"after": 0}


def one_step_losses(host: Host) -> list[float]:
    """The first losses of the two newest runs."""
    runs = sorted((host.base / "output" / "personalize").glob("*/metrics.jsonl"), key=_age)[-2:]
    return [json.loads(run.read_text().splitlines()[0])["loss"] for run in runs]


def _age(path: Path) -> float:
    return path.stat().st_mtime
