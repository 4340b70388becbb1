"""Previews: what KSampler gives, nothing learned otherwise, no memory no harm."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.conftest import on_the_cpu
from tests.graphs import BASES, Graph, Link
from tests.host import Host
from tests.test_host_store import METHODS, run_folders, training

PROMPT = "a photo of sks dog"


def recorder(no_memory: bool = False) -> Graph:
    graph = Graph()
    graph.add("ProbePreviewed", no_memory=no_memory)
    return graph


def with_previews(host: Host, method: str, base: str, **settings: Any) -> tuple[Graph, list[Link]]:
    graph, sockets = training(host, method, base, **settings)
    preview = graph.add(
        "PersonalizePreview", prompts=f"{PROMPT}\na photo of a dog", every_steps=2, seed=1,
        width=64, height=64, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    graph[sockets[0][0]]["inputs"]["preview"] = preview[0]
    return graph, sockets


@pytest.mark.parametrize(
    ("base", "method"),
    [
        *(("sd15", method) for method in METHODS),
        *((base, "lora") for base in BASES if BASES[base]),
    ],
)
def test_previews_are_what_sampling_gives_and_change_nothing(
    fp32_host: Host, base: str, method: str
) -> None:
    host = fp32_host  # by default the host rounds trained text encoders to fp16
    settings: dict[str, Any] = {
        "seed": 60,
        "steps": 4,
        "train_text_encoder": method == "dreambooth",
    }
    if method == "invert":
        del settings["train_text_encoder"]
    host.run(recorder())
    before = run_folders(host)
    graph, sockets = with_previews(host, method, base, **settings)
    model = sockets[0] if method != "invert" else ["1", 0]
    graph.sample(model, sockets[0 if method == "invert" else 1], f"preview_{base}_{method}", PROMPT)
    host.run(graph)
    (run,) = run_folders(host) - before
    story = host.get(f"/personalize/trainings/{run.name}")
    assert story["steps"] == len(story["loss"]) == 4
    assert [(one["step"], one["prompt"]) for one in story["previews"]] == [
        (step, prompt) for step in (2, 4) for prompt in (PROMPT, "a photo of a dog")
    ]
    names = sorted(path.name for path in (run / "previews").glob("*.png"))
    assert names == [f"step_{step:08}_{row}.png" for step in (2, 4) for row in (0, 1)]
    (sampled,) = (host.base / "output").glob(f"preview_{base}_{method}_*")
    theirs = load_file(sampled)["latent_tensor"]
    previewed = load_file(host.base / "output" / "previewed.safetensors")
    assert len(previewed) == 4
    ours = previewed["0002"]  # the first prompt after the last step
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()

    if not on_the_cpu():
        return  # where two trainings of the same are not the same to the bit
    with_them = load_file(run / "result-00000004.safetensors")
    plain, sockets = training(host, method, base, **settings, if_run_exists="start anew")
    host.run(plain)
    tiny.assert_equal(with_them, load_file(run / "result-00000004.safetensors"))


def test_preview_without_memory_is_skipped_and_told(host: Host) -> None:
    host.run(recorder(no_memory=True))
    before = run_folders(host)
    graph, _ = with_previews(host, "lora", "sd15", seed=61, steps=4)
    host.run(graph)
    (run,) = run_folders(host) - before
    assert not list(run.glob("previews/*"))
    assert (run / "result-00000004.safetensors").exists()
    assert "too little memory for the preview of step 2" in host.log()
    host.run(recorder())


@pytest.mark.parametrize("name", ["", "..", "%2e%2e", "nobody-00000000", "a%2F..%2F..", "%00"])
def test_routes_tell_of_runs_alone(host: Host, name: str) -> None:
    with pytest.raises(OSError, match="404"):
        host.get(f"/personalize/trainings/{name}")
