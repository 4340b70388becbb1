"""Fetch from a stand-in of the Hub: whole, broken, refused; test_hub_push.py pushes to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import safetensors.torch
import torch

from tests.hub import TOKEN, StandIn, stand_in
from trainers.errors import HubError, PersonalizeError, SaveError, SettingsError
from trainers.hub import fetch
from trainers.hub.connection import Hub, checked_id, connected

PAINTER = "someone/pictures"
MODEL = "someone/base"
WEIGHTS = safetensors.torch.save({"weight": torch.arange(5000.0)})
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub, of httpx


class Cancelled(BaseException):
    """As the host's interrupt is."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in, and somebody who is logged in to it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(fetch, "LEAST_BYTES", 4000)
    new_sessions()
    with stand_in() as running:
        yield running


@pytest.fixture(autouse=True)
def no_token_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no line of any log has the token, or an address that is signed."""
    caplog.set_level(logging.DEBUG)
    yield
    assert TOKEN not in caplog.text
    assert "signed=secret" not in caplog.text


def new_sessions() -> None:
    """Before huggingface_hub 1.0, a session that was made off-line stays so."""
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def work(server: StandIn, shown: list[str] | None = None) -> AbstractContextManager[Hub]:
    """A connection that tells what it shows."""

    def show(what: str, done: int, total: int) -> None:
        if shown is not None:
            shown.append(f"{what} {done}/{total}")

    return connected(lambda: None, show, server.url, pauses=(0.01, 0.01))


def fetched(
    server: StandIn, folder: Path, repo_id: str, commit: str, files: str = "", **more: Any
) -> Path:
    kind = more.get("kind", fetch.MODEL)
    with work(server, more.get("shown")) as hub:
        repository = fetch.pinned(hub, repo_id, kind, commit)
        return fetch.fetch(hub, repository, files, folder)[0]


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# -- fetching -----------------------------------------------------------------


def test_a_model_comes_whole_with_progress_and_no_network_is_needed_again(
    server: StandIn, tmp_path: Path
) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS, "v1.ckpt": b"pickle"})
    shown: list[str] = []
    path = fetched(server, tmp_path, MODEL, commit, shown=shown)
    assert path == tmp_path / f"someone--base-{commit[:8]}" / "v1.safetensors"
    assert path.read_bytes() == WEIGHTS
    assert files_in(tmp_path) == {f"{path.parent.name}/{n}" for n in (path.name, ".hub.json")}
    size = len(WEIGHTS)
    assert [f"fetching v1.safetensors {n}/{size}" for n in (0, 4000, 12000, size)] == [
        line for line in shown if line.startswith("fetching")
    ]
    asked = len(server.asked)
    assert fetched(server, tmp_path, MODEL, commit) == path
    assert len(server.asked) == asked


def test_the_token_goes_to_the_hub_alone_and_is_kept_nowhere(
    server: StandIn, tmp_path: Path
) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS}, private=True)
    fetched(server, tmp_path, MODEL, commit)
    tokens = {asked.host: asked.token for asked in server.asked}
    assert tokens == {"127.0.0.1": TOKEN, "localhost": None}
    held = [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert held == []


def test_a_cut_connection_is_taken_up_again(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    server.trouble.downloads = [0, 1500]
    shown: list[str] = []
    path = fetched(server, tmp_path, MODEL, commit, shown=shown)
    assert path.read_bytes() == WEIGHTS
    assert sum("the connection broke, trying again" in line for line in shown) == 2


def test_a_connection_that_stays_broken_leaves_a_part_to_go_on_from(
    server: StandIn, tmp_path: Path
) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    server.trouble.downloads = [10**6, 0, 0, 0]  # the first range comes whole, then none
    with pytest.raises(HubError, match="(?s)someone/base.*connection broke.*goes on where it"):
        fetched(server, tmp_path, MODEL, commit)
    folder = tmp_path / f"someone--base-{commit[:8]}"
    assert files_in(folder) == {"v1.safetensors.part"}
    assert (folder / "v1.safetensors.part").read_bytes() == WEIGHTS[:4000]
    server.asked.clear()
    assert fetched(server, tmp_path, MODEL, commit).read_bytes() == WEIGHTS
    ranges = [asked.range for asked in server.asked if asked.host == "localhost"]
    assert ranges[0] == "bytes=4000-7999"


def test_cancel_ends_a_stalled_fetch_at_once(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    server.trouble.hold = threading.Event()
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 0.5:
            raise Cancelled

    with (
        pytest.raises(Cancelled),
        connected(check, lambda *shown: None, server.url) as hub,
    ):
        fetch.fetch(hub, fetch.pinned(hub, MODEL, fetch.MODEL, commit), "", tmp_path)
    assert time.monotonic() - began < 1.5
    server.trouble.hold.set()
    server.trouble.hold = None
    assert fetched(server, tmp_path, MODEL, commit).read_bytes() == WEIGHTS


def test_other_bytes_than_the_hash_says_are_not_kept(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    server.trouble.other_bytes = True
    with pytest.raises(HubError, match=r"(?s)'v1.safetensors'.*another hash.*deleted"):
        fetched(server, tmp_path, MODEL, commit)
    assert files_in(tmp_path) == set()
    server.trouble.other_bytes = False
    assert fetched(server, tmp_path, MODEL, commit).read_bytes() == WEIGHTS


def test_a_file_that_was_changed_here_is_not_replaced(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    path = fetched(server, tmp_path, MODEL, commit)
    path.write_bytes(b"mine")
    with pytest.raises(SaveError, match="changed here"):
        fetched(server, tmp_path, MODEL, commit)
    assert path.read_bytes() == b"mine"


def test_a_data_set_comes_with_its_captions_and_nothing_that_runs(
    server: StandIn, tmp_path: Path
) -> None:
    captions = {"train/a.txt": b"a dog", "train/b.caption": b"", "train/metadata.jsonl": b"{}\n"}
    others = {"load.py": b"import os", "data.parquet": b"P", ".gitattributes": b""}
    pictures = {"train/a.png": PICTURE, "train/b.jpg": PICTURE[::-1]}
    commit = server.add("datasets", PAINTER, {**captions, **others, **pictures})
    with work(server) as hub:
        repository = fetch.pinned(hub, PAINTER, fetch.DATASET, commit)
        folder, told = fetch.fetch(hub, repository, "", tmp_path)
    assert folder == tmp_path / f"someone--pictures-{commit[:8]}" / "train"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name.removeprefix("train/"): content for name, content in {**captions, **pictures}.items()
    }
    assert told.startswith("fetched: 5 files")
    assert "left out: 1 .py, 1 .parquet, 1 .gitattributes" in told


def test_half_a_data_set_is_none(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("datasets", PAINTER, {"a.png": PICTURE, "b.png": PICTURE[::-1]})
    server.trouble.downloads = [10**6, 0, 0, 0]
    with pytest.raises(HubError, match="connection broke"):
        fetched(server, tmp_path, PAINTER, commit, kind=fetch.DATASET)
    names = {Path(name).name for name in files_in(tmp_path)}
    assert names == {"a.png.part", "b.png.part"}
    folder = fetched(server, tmp_path, PAINTER, commit, kind=fetch.DATASET)
    assert files_in(folder) == {"a.png", "b.png", ".hub.json"}


def test_folders_that_count_keep_the_folder_around_them(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("datasets", PAINTER, {"10_dog/a.png": PICTURE})
    folder = fetched(server, tmp_path, PAINTER, commit, kind=fetch.DATASET)
    assert folder == tmp_path / f"someone--pictures-{commit[:8]}"


@pytest.mark.parametrize(
    "name",
    ["../out.safetensors", "a/../../out.safetensors", "/out.safetensors", "..\\out.safetensors",
     "C:out.safetensors", "a//out.safetensors", "con.safetensors", ".ssh/out.safetensors"],
)  # fmt: skip
def test_names_that_lead_elsewhere_never_come(server: StandIn, tmp_path: Path, name: str) -> None:
    commit = server.add("models", MODEL, {name: WEIGHTS})
    folder = tmp_path / "models" / "loras"
    with pytest.raises(SettingsError, match="nothing of 'someone/base' that may come fits"):
        fetched(server, folder, MODEL, commit)
    assert files_in(tmp_path) == set()


def test_what_files_may_come_is_said(server: StandIn, tmp_path: Path) -> None:
    files = {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[::-1], "c.bin": b"pickle"}
    commit = server.add("models", MODEL, files)
    with pytest.raises(SettingsError, match=r"2 files of 'someone/base' fit: a.safetensors \(0 MB"):
        fetched(server, tmp_path, MODEL, commit)
    with pytest.raises(SettingsError, match="what there is: 1 .bin; allowed: .safetensors"):
        fetched(server, tmp_path, MODEL, commit, "*.bin")
    with pytest.raises(SettingsError, match="no file has such a name"):
        fetched(server, tmp_path, MODEL, commit, "d.*")
    assert fetched(server, tmp_path, MODEL, commit, "b.*").name == "b.safetensors"


def test_a_branch_is_refused_and_its_commit_named(server: StandIn, tmp_path: Path) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    server.models[MODEL].tags["v1.0"] = commit
    for revision in ("main", ""):
        with pytest.raises(
            SettingsError, match=f"(?s)'main' is now {commit}; allowed:.*tags? v1.0"
        ):
            fetched(server, tmp_path, MODEL, revision)
    with pytest.raises(SettingsError, match="revision is 'v2'; allowed: a commit's hash"):
        fetched(server, tmp_path, MODEL, "v2")
    assert fetched(server, tmp_path, MODEL, "v1.0").parent.name == f"someone--base-{commit[:8]}"


def test_a_disk_that_is_too_small_is_said_before(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS})
    usage = shutil_usage(free=1000)
    monkeypatch.setattr("trainers.hub.fetch.shutil.disk_usage", lambda path: usage)
    with pytest.raises(SaveError, match="0.0 GB left"):
        fetched(server, tmp_path, MODEL, commit)


def shutil_usage(free: int) -> Any:
    return type("Usage", (), {"free": free})()


# -- refusals -----------------------------------------------------------------


def refusal(server: StandIn, tmp_path: Path, commit: str = "0" * 40) -> str:
    with pytest.raises(PersonalizeError) as told:
        fetched(server, tmp_path, MODEL, commit)
    assert files_in(tmp_path) == set()
    assert TOKEN not in str(told.value)
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__
    return str(told.value)


def test_refusals_say_what_to_do(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not on the Hub (404), or the token" in refusal(server, tmp_path)
    commit = server.add("models", MODEL, {"v1.safetensors": WEIGHTS}, private=True)
    assert "does not have this revision" in refusal(server, tmp_path)
    server.models[MODEL].gated = True
    assert "is gated (403)" in refusal(server, tmp_path, commit)
    server.models[MODEL].gated = False
    monkeypatch.setenv("HF_TOKEN", "hf_AnotherOneThatIsWrong")
    text = refusal(server, tmp_path, commit)
    assert "the Hub does not take the token (401)" in text
    assert "hf auth login" in text
    monkeypatch.delenv("HF_TOKEN")
    assert "it wants a token" in refusal(server, tmp_path, commit)
    server.trouble.statuses = {"/api/models": 503}
    assert "in trouble or busy (503)" in refusal(server, tmp_path, commit)
    server.trouble.statuses = {"/api/models": 418}
    assert "the Hub refused (418)" in refusal(server, tmp_path, commit)


def test_a_server_that_repeats_the_token_is_not_quoted(server: StandIn, tmp_path: Path) -> None:
    server.trouble.statuses = {"/api/models": 418}
    assert "told to fail for hf_..." in refusal(server, tmp_path)


def test_off_line_and_no_network_are_said(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = server.url
    server.url = "http://127.0.0.1:9"
    assert "the Hub cannot be reached, or the connection broke" in refusal(server, tmp_path)
    server.url = gone
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    new_sessions()
    assert "ComfyUI is off-line: HF_HUB_OFFLINE" in refusal(server, tmp_path)


@pytest.mark.parametrize("name", ["", "a/b/c", "https://huggingface.co/a/b", "a--b", "../a"])
def test_ids_that_nothing_has_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="repo_id is '.*'; allowed: owner/name"):
        checked_id("repo_id", name)
    assert checked_id("repo_id", " a/b ") == "a/b"
