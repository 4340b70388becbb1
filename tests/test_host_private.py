"""What this pack writes and says names no token, no user and no folder of the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINTS, HOST_ARGUMENTS, _checkout, model_file
from tests.graphs import Graph
from tests.host import Host
from tests.test_host_lora import pictures

USER = "secretuser"
TOKENS = {
    "HF_TOKEN": "hf_qzSecretTokenOfNobody",
    "HUGGING_FACE_HUB_TOKEN": "hf_qzOtherTokenOfNobody",
    "CIVITAI_API_TOKEN": "c1v1taiSecretOfNobody",
    "WANDB_API_KEY": "wandbSecretOfNobody",
}
pytestmark = pytest.mark.host
OURS = re.compile(r"personalize", re.IGNORECASE)


@pytest.fixture(params=["PERSONALIZE_COMFYUI", "PERSONALIZE_COMFYUI_OLD"])
def private(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    """A host of somebody who has a name, a home and tokens; a pack of probes is not there."""
    home = tmp_path / "home" / USER
    (home / "ComfyUI").mkdir(parents=True)
    for name, value in {**TOKENS, "HOME": str(home), "USER": USER, "LOGNAME": USER}.items():
        monkeypatch.setenv(name, value)
    name = "thin_sd15.safetensors"
    files = {name: model_file(*CHECKPOINTS[name])}
    host = Host(
        _checkout(request.param), base=home / "ComfyUI", checkpoints=files, args=HOST_ARGUMENTS
    )
    with host as running:
        yield running


def everything() -> Graph:
    """A training of each method, with previews and plots, and all that saves what they made."""
    graph = Graph()
    model, clip, vae = graph.load()
    dataset = graph.dataset("dog", "a photo of <sks> dog", resolution=64)
    preview = graph.add(
        "PersonalizePreview", prompts="a dog", every_steps=1, width=64, height=64, steps=1,
        cfg=5.0, sampler_name="euler", scheduler="normal", seed=1,
    )[0]  # fmt: skip
    token = graph.invert(model, clip, vae, dataset, steps=2, preview=preview)
    lora = graph.train(
        model, token[0], vae, dataset, steps=2, preview=preview, state_every=1,
        train_text_encoder=True,
    )  # fmt: skip
    dream = graph.dreambooth(model, clip, vae, dataset, steps=2, preview=preview)
    for maps in (token[2], lora[3], dream[2]):
        plot = graph.add("PersonalizeLossPlot", loss_map=maps)[0]
        graph.add("SaveImage", images=plot, filename_prefix="plot")
    graph.add("PersonalizeSaveEmbedding", embedding=token[1], filename_prefix="embeddings/sks")
    for spelling, captions in (("kohya fp16", True), ("diffusers fp32", False)):
        graph.add(
            "PersonalizeSaveLora", lora=lora[2], filename_prefix=f"loras/{spelling[:5]}",
            format=spelling, captions=captions, model=model, clip=clip,
        )  # fmt: skip
    graph.add(
        "CheckpointSave", model=dream[0], clip=dream[1], vae=vae, filename_prefix="checkpoints/a"
    )
    return graph


def test_no_file_and_no_line_of_the_log_tells_of_the_machine(private: Host) -> None:
    pictures(private)
    graph = everything()
    private.run(graph)
    private.run(graph)  # which takes all from disk
    secrets = {USER.encode(), str(private.base).encode(), *(t.encode() for t in TOKENS.values())}
    written = [path for path in (private.base / "output").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in written}
    assert kinds >= {".safetensors", ".json", ".jsonl", ".png"}
    found = {
        path.relative_to(private.base).as_posix(): secret
        for path in written
        for secret in secrets
        if secret in path.read_bytes()
    }
    assert found == {}
    lines = [line for line in private.log().splitlines() if OURS.search(line)]
    ours = [line for line in lines if "custom_nodes" not in line and "base-directory" not in line]
    assert [line for line in ours if any(s.decode() in line for s in secrets)] == []
