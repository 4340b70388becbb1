"""Push to a stand-in of the Hub: whole, broken, refused; what goes there, and what a card says."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from PIL import Image, PngImagePlugin

from tests.hub import OWNER, StandIn
from tests.test_hub import MODEL, PICTURE, Cancelled, files_in, no_token_is_told, server, work
from trainers.errors import HubError, SettingsError
from trainers.hub import connection, push
from trainers.hub.artifact import CHECKPOINT, EMBEDDING, LORA, artifact_at
from trainers.hub.card import Base, Told, captions_of, card, prompt_of
from trainers.hub.connection import connected

__all__ = ["no_token_is_told", "server"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub, of httpx
NASTY = "a `dog` <script>alert(1)</script>\n---\n# [x](y) | 'q' \"p\": *b* {c} ```\nend \\"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "output" / "dog.safetensors"
    path.parent.mkdir()
    told = {"modelspec.architecture": "stable-diffusion-v1/lora", "ss_sd_model_name": "v1.ckpt"}
    tensors = {
        f"lora_unet_mid_block_attentions_0_{n}": torch.ones(4, 4)
        for n in ("proj.lora_up.weight", "proj.lora_down.weight")
    }
    safetensors.torch.save_file(tensors, path, told)
    return path


def pushed(server: StandIn, path: Path, text: str | None = "# card", **more: Any) -> push.Pushed:
    with pytest.MonkeyPatch.context() as patch, work(server, more.get("shown")) as hub:
        # Before 1.0 huggingface_hub reads a commit's address with its own endpoint alone.
        patch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        repo_id = push.repository_for(
            hub, more.get("repo_id", "dog-lora"), more.get("private", True)
        )
        pictures = more.get("pictures", [])
        message, without = more.get("message", "Add dog"), more.get("without", ())
        return push.push(hub, repo_id, artifact_at(path), text, pictures, message, without)


def test_push_makes_one_commit_in_a_private_repository(server: StandIn, lora: Path) -> None:
    picture = push.Picture("images/preview_1.png", "a dog", PICTURE)
    shown: list[str] = []
    done = pushed(server, lora, pictures=[picture], shown=shown)
    repo = server.models[f"{OWNER}/dog-lora"]
    assert repo.private
    assert repo.files == {
        "dog.safetensors": lora.read_bytes(), "README.md": b"# card", picture.name: PICTURE,
    }  # fmt: skip
    assert len(repo.commits) == 2  # the empty one, and this
    assert done == push.Pushed(
        f"{OWNER}/dog-lora", f"{server.url}/{OWNER}/dog-lora", repo.branches["main"]
    )
    size = lora.stat().st_size
    assert shown[-1] == f"committing dog.safetensors {size}/{size}"
    to_storage = [asked.token for asked in server.asked if asked.host == "localhost"]
    assert to_storage == [None, None]
    again = pushed(server, lora, text=None, message="Again")
    assert repo.files["README.md"] == b"# card"
    assert again.commit == repo.branches["main"]


def test_metadata_that_is_not_to_go_stays_here(server: StandIn, tmp_path: Path) -> None:
    told = {
        "workflow": NASTY,
        "ss_tag_frequency": "secret",
        "ss_steps": "5",
        "author": "ü",
    }
    path = save(tmp_path, {"a.lora_A.weight": torch.arange(3e5), "b": torch.ones(2)}, told)
    before = path.read_bytes()
    found = artifact_at(path)
    pushed(server, path, without=[*found.told_of_pictures, *found.told_of_the_graph])
    sent = server.models[f"{OWNER}/dog-lora"].files[path.name]
    assert path.read_bytes() == before
    assert len(sent) == len(before)
    assert b"secret" not in sent
    (tmp_path / "sent").write_bytes(sent)
    with safetensors.safe_open(tmp_path / "sent", "pt") as file:
        assert file.metadata() == {"ss_steps": "5", "author": "ü"}
        assert torch.equal(file.get_tensor("a.lora_A.weight"), torch.arange(3e5))
        assert torch.equal(file.get_tensor("b"), torch.ones(2))


def test_a_public_repository_is_not_taken_for_a_private_one(server: StandIn, lora: Path) -> None:
    server.add("models", f"{OWNER}/dog-lora", {"a": b""})
    with pytest.raises(HubError, match="(?s)there and public.*nothing was sent"):
        pushed(server, lora)
    assert server.models[f"{OWNER}/dog-lora"].files == {"a": b""}
    pushed(server, lora, private=False)
    assert "dog.safetensors" in server.models[f"{OWNER}/dog-lora"].files


def test_a_push_that_breaks_off_leaves_no_commit(
    server: StandIn, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits between tries
    server.trouble.uploads = [100] * 6
    with pytest.raises(HubError, match="(?s)connection broke.*goes on where it stopped"):
        pushed(server, lora)
    assert server.models[f"{OWNER}/dog-lora"].files == {}
    server.trouble.uploads = [100]
    pushed(server, lora)
    assert server.models[f"{OWNER}/dog-lora"].files["dog.safetensors"] == lora.read_bytes()


def test_a_push_that_is_cancelled_leaves_no_commit(server: StandIn, lora: Path) -> None:
    server.trouble.hold = threading.Event()
    cancelled = threading.Event()

    def check() -> None:
        if any(asked.method == "PUT" for asked in server.asked):
            cancelled.set()
            raise Cancelled

    began = time.monotonic()
    with connected(check, lambda *shown: None, server.url) as hub:
        repo_id = push.repository_for(hub, "dog-lora", private=True)
        with pytest.raises(Cancelled):
            push.push(hub, repo_id, artifact_at(lora), "# card", [], "Add dog")
    assert time.monotonic() - began < 2
    server.trouble.hold.set()
    time.sleep(0.3)
    assert cancelled.is_set()
    assert server.models[f"{OWNER}/dog-lora"].files == {}
    assert [asked for asked in server.asked if "/commit/" in asked.path] == []


def test_what_may_not_be_written_is_said(
    server: StandIn, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.can_write = False
    with pytest.raises(HubError, match=r"(?s)does not take the token \(403\).*permission to write"):
        pushed(server, lora)
    server.can_write = True
    monkeypatch.setenv("HF_TOKEN", "hf_AnotherOneThatIsWrong")
    with pytest.raises(HubError, match=r"does not take the token \(401\)"):
        pushed(server, lora)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="(?s)no token to write.*hf auth login"):
        pushed(server, lora)
    assert server.models == {}


def test_a_card_that_the_hub_does_not_take_is_said(server: StandIn, lora: Path) -> None:
    with pytest.raises(HubError, match=r'refused \(400\). "license" must be one of openrail'):
        pushed(server, lora, "---\nlicense: mine\n---\n")
    assert server.models[f"{OWNER}/dog-lora"].files == {}


def test_the_base_model_tells_its_licence(server: StandIn) -> None:
    named = {"license": "other", "license_name": "mine", "license_link": "https://a.b/c"}
    server.add("models", MODEL, {}, card=named)
    with work(server) as hub:
        assert push.base_of(hub, MODEL) == Base(MODEL, named)
        with pytest.raises(HubError, match="'someone/other' is not on the Hub"):
            push.base_of(hub, "someone/other")


# -- what is pushed -----------------------------------------------------------


def test_files_are_known_by_what_is_in_them(lora: Path, tmp_path: Path) -> None:
    found = artifact_at(lora)
    assert (found.kind, found.architecture, found.in_diffusers) == (LORA, "sd15", True)
    dora = save(tmp_path, {"a.dora_scale": torch.ones(1), "a.lora_up.weight": torch.ones(1)})
    assert not artifact_at(dora, "sdxl").in_diffusers
    assert artifact_at(save(tmp_path, {"emb_params": torch.ones(1, 4)})).kind == EMBEDDING
    assert artifact_at(save(tmp_path, {"clip_g": torch.ones(1, 4)})).kind == EMBEDDING
    for start, reads in (("transformer", True), ("diffusion_model", False)):
        sd3 = save(tmp_path, {f"{start}.joint_blocks.0.x.lora_A.weight": torch.ones(1)})
        assert artifact_at(sd3, "sd3").in_diffusers is reads
    assert not artifact_at(sd3, "generic").in_diffusers
    whole = save(tmp_path, {"model.diffusion_model.out.weight": torch.ones(1)}, {"workflow": "{}"})
    found = artifact_at(whole)
    assert (found.kind, found.told_of_the_graph) == (CHECKPOINT, ["workflow"])
    titled = save(tmp_path, {"a.lora_A.weight": torch.ones(1)}, {"modelspec.title": "our dog"})
    assert artifact_at(titled).told_of_pictures == ["modelspec.title"]
    assert artifact_at(titled.rename(tmp_path / "our dog")).told_of_pictures == []
    lora.write_bytes(lora.read_bytes()[:-5])
    with pytest.raises(SettingsError, match="'output/dog.safetensors', which is not a whole"):
        artifact_at(lora)


def save(
    folder: Path, tensors: dict[str, torch.Tensor], told: dict[str, str] | None = None
) -> Path:
    path = folder / f"{len(files_in(folder))}.safetensors"
    safetensors.torch.save_file(tensors, path, told)
    return path


def test_previews_lose_what_their_files_say(tmp_path: Path) -> None:
    for step, number in ((4, 0), (8, 0), (8, 1)):
        facts = PngImagePlugin.PngInfo()
        facts.add_itxt("prompt", f"prompt {number} at {step}")
        (tmp_path / "previews").mkdir(exist_ok=True)
        path = tmp_path / "previews" / f"step_{step:08}_{number}.png"
        Image.new("RGB", (8, 8), (step, 0, 0)).save(path, pnginfo=facts)
    pictures = push.last_previews(tmp_path)
    assert [(p.name, p.prompt) for p in pictures] == [
        ("images/preview_1.png", "prompt 0 at 8"), ("images/preview_2.png", "prompt 1 at 8"),
    ]  # fmt: skip
    assert all(b"prompt" not in picture.png for picture in pictures)


def run_facts() -> dict[str, Any]:
    """What of run.json a card may read, and what it may not tell."""
    return {
        "method": "lora", "architecture": "sd15",
        "training": {"steps": 700, "learning_rate": 1e-4, "optimizer": "prodigy", "seed": 3},
        "objective": {"min_snr_gamma": 0.0, "class_prompt": "a secret dog"},
        "own": {"rank": 8, "dropout": 0.1, "variant": "lora", "unknown": 1},
        "store": {"state_every": 77},
        "dataset": {"name": "secretfolder", "resolution_px": 512, "pictures": [
            {"name": "secret1.png", "caption": "a photo of sks dog"},
            {"name": "secret2.png", "caption": "a photo of sks dog"},
        ]},
        "versions": {"torch": "2.11.0"},
    }  # fmt: skip


def test_a_card_tells_the_run_and_nothing_private(lora: Path) -> None:
    run, base = run_facts(), Base(MODEL, {"license": "openrail"})
    previews = [("images/preview_1.png", "a sks dog")]
    told = Told("painter/dog-lora", base, run, instance_prompt=prompt_of(run), previews=previews)
    found = ModelCard(card(artifact_at(lora), told))
    assert found.data.to_dict() == {
        "base_model": MODEL, "base_model_relation": "adapter", "library_name": "diffusers",
        "license": "openrail", "pipeline_tag": "text-to-image",
        "instance_prompt": "a photo of sks dog",
        "tags": ["text-to-image", "lora", "stable-diffusion", "comfyui", "personalize",
                 "template:sd-lora"],
        "widget": [{"text": "a sks dog", "output": {"url": "images/preview_1.png"}}],
    }  # fmt: skip
    for line in (
        "# dog-lora", "<Gallery />", "- steps: `700`", "- learning_rate: `0.0001`", "- rank: `8`",
        "- optimizer: `prodigy`", "- dropout: `0.1`", "- seed: `3`", "- pictures: `2`",
        "- resolution: `512`", "Write `a photo of sks dog` in the prompt.",
        'pipe.load_lora_weights("painter/dog-lora", weight_name="dog.safetensors")',
        "The licence of the base model covers what is trained on it: `openrail`.",
    ):  # fmt: skip
        assert line in found.text.splitlines(), found.text
    secrets = ("secret", "77", "min_snr_gamma", "variant", "unknown", str(lora.parent))
    assert [word for word in secrets if word in found.content] == []


def test_captions_are_told_when_asked(lora: Path) -> None:
    run = run_facts()
    run["dataset"]["pictures"][1]["caption"] = "our garden"
    assert prompt_of(run) == ""
    assert captions_of(run) == ["a photo of sks dog", "our garden"]
    assert "our garden" not in card(artifact_at(lora), Told("a/b", run=run))
    assert "- `our garden`" in card(artifact_at(lora), Told("a/b", run=run, captions=True))


def test_no_word_of_a_user_breaks_a_card(lora: Path) -> None:
    run = run_facts()
    run["dataset"]["pictures"][0]["caption"] = NASTY
    run["training"]["optimizer"] = NASTY
    told = Told(
        "painter/dog-lora", None, run, license=NASTY, instance_prompt=NASTY,
        previews=[("images/preview_1.png", NASTY)], captions=True,
    )  # fmt: skip
    text = card(artifact_at(lora), told)
    found = ModelCard(text)
    assert found.data.license == found.data.instance_prompt == NASTY
    assert found.data.widget == [{"text": NASTY, "output": {"url": "images/preview_1.png"}}]
    body = found.text
    one_line = "a `dog` <script>alert(1)</script> --- # [x](y) | 'q' \"p\": *b* {c} ``` end \\"
    assert f"Write ````{one_line}```` in the prompt." in body.splitlines()
    assert body.count("<script>") == body.count(f"````{one_line}````") + body.count("]({") + 1
    assert f'image = pipe.to("cuda")({json.dumps(NASTY)}).images[0]' in body.splitlines()


def test_the_kinds_say_how_to_use_them(tmp_path: Path) -> None:
    word = save(tmp_path, {"emb_params": torch.ones(1, 4)}, {"personalize.token": "<sks>"})
    run = {"method": "textual_inversion", "own": {"token": "<sks>", "vectors": 1}}
    text = card(artifact_at(word, "sd15"), Told("a/b", run=run, instance_prompt=prompt_of(run)))
    assert f"write `embedding:{word.stem}` in the prompt" in text
    assert f'load_textual_inversion("a/b", weight_name="{word.name}", token="<sks>")' in text
    assert "- textual_inversion" in text
    whole = save(tmp_path, {"model.diffusion_model.out.weight": torch.ones(1)})
    text = card(artifact_at(whole, "sdxl"), Told("a/b", Base(MODEL), {"method": "dreambooth"}))
    assert "StableDiffusionXLPipeline.from_single_file" in text
    assert "base_model_relation: finetune" in text
    assert "Read it before you use or share this." in text
    flux = card(artifact_at(whole, "flux"), Told("a/b"))
    assert "diffusers" not in flux
    assert connection.SITE in card(artifact_at(whole), Told("a/b", Base(MODEL)))
