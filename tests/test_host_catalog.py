"""The routes for the runs on disk in a real ComfyUI: lists, labels, the trash, every refusal."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.graphs import Graph
from tests.host import Host
from tests.run_folders import make_run

ROUTE = "/personalize/runs"
JSON = {"Content-Type": "application/json"}


def ask(
    host: Host, path: str, body: Any = None, headers: Mapping[str, str] = JSON
) -> tuple[int, Any]:
    """(status, what was said); a body is posted."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(host.url + ROUTE + path, content, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text else None


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def run(host: Host) -> Iterator[Path]:
    """A run of this file's own on the shared host."""
    parent = host.base / "output" / "personalize"
    made = make_run(parent, "catalog", states=[20, 40], previews=[20, 40])
    ask(host, "/trash/empty", {})
    yield made
    shutil.rmtree(made, ignore_errors=True)
    ask(host, "/trash/empty", {})


@pytest.mark.parametrize("which", ["host", "old_host"])
def test_runs_are_listed_opened_and_labelled(request: pytest.FixtureRequest, which: str) -> None:
    host: Host = request.getfixturevalue(which)
    made = make_run(host.base / "output" / "personalize", "listed", previews=[40])
    row = {one["run"]: one for one in host.get(ROUTE)["runs"]}[made.name]
    assert (row["title"], row["state"], row["steps"]) == ("listed", "done", 40)
    status, row = ask(host, f"/{made.name}", {"title": "<b>my</b> dog", "pinned": True})
    assert (status, row["title"], row["pinned"]) == (200, "<b>my</b> dog", True)
    detail = host.get(f"{ROUTE}/{made.name}")
    assert {**row, "problems": detail["problems"]}.items() <= detail.items()
    settings = {one["name"]: one for one in detail["settings"]}
    assert settings["rank"]["group"] == "Train LoRA from Images"
    assert settings["optimizer"]["group"] == "Optimizer Settings"
    graph = host.get(f"{ROUTE}/{made.name}/graph")
    assert graph["prompt"][graph["node"]]["class_type"] == "PersonalizeTrainLora"
    assert graph["settings"]["PersonalizeTrainLora"]["rank"] == settings["rank"]["value"]
    assert "checkpoints/sub/base.sft is no longer there." in graph["problems"]
    preview = detail["preview"]["file"]
    place = {"filename": preview, "subfolder": f"personalize/{made.name}/previews"}
    with urllib.request.urlopen(f"{host.url}/view?{urllib.parse.urlencode(place)}") as reply:
        assert reply.read() == (made / "previews" / preview).read_bytes()
    shutil.rmtree(made)


def test_page_that_has_the_list_gets_it_once(host: Host, run: Path) -> None:
    with urllib.request.urlopen(host.url + ROUTE) as reply:
        tag = reply.headers["ETag"]
    assert ask(host, "", headers={"If-None-Match": tag}) == (304, None)
    ask(host, f"/{run.name}", {"note": "good hands"})
    status, listing = ask(host, "", headers={"If-None-Match": tag})
    assert (status, {one["note"] for one in listing["runs"]} >= {"good hands"}) == (200, True)


def test_deleted_run_comes_back_as_it_was(host: Host, run: Path) -> None:
    before = everything(run)
    status, answer = ask(host, f"/{run.name}/delete", {})
    assert (status, [one["run"] for one in answer["trash"]]) == (200, [run.name])
    assert ask(host, f"/{run.name}")[0] == ask(host, f"/{run.name}/delete", {})[0] == 404
    assert run.name not in {one["run"] for one in host.get(ROUTE)["runs"]}
    assert ask(host, f"/{run.name}/restore", {})[0] == 200
    assert everything(run) == before
    assert host.get(ROUTE)["trash"] == []
    assert ask(host, f"/{run.name}/restore", {})[0] == 404


def test_kinds_of_files_are_freed_and_pinned_runs_stay(host: Host, run: Path) -> None:
    asked = {"runs": [run.name], "kinds": ["states"], "dry": True}
    status, counted = ask(host, "/free", asked)
    assert (status, counted["bytes"]) == (200, host.get(f"{ROUTE}/{run.name}")["bytes"]["states"])
    ask(host, f"/{run.name}", {"pinned": True})
    _, answer = ask(host, "/free", {**asked, "dry": False})
    assert (answer["bytes"], "is pinned" in answer["problems"][0]) == (0, True)
    status, answer = ask(host, f"/{run.name}/delete", {})
    assert (status, "is pinned" in answer["error"]) == (409, True)
    ask(host, f"/{run.name}", {"pinned": False})
    assert ask(host, "/free", {**asked, "dry": False}) == (200, counted)
    detail = host.get(f"{ROUTE}/{run.name}")
    assert (detail["states"], len(detail["results"]), detail["bytes"]["states"]) == ([], 1, 0)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "%2e%2e", "..%2f..", "..%5c", "C%3a", "a%00b", "trash", "exports", "gone", "~",
     "lora-x-00000000", "%2fetc"],
)  # fmt: skip
def test_names_that_are_no_runs_lead_nowhere(host: Host, run: Path, name: str) -> None:
    before = everything(run.parent)
    for path in (f"/{name}", f"/{name}/graph"):
        assert ask(host, path)[0] in (403, 404, 405)
    for path in (f"/{name}/delete", f"/{name}/restore"):
        assert ask(host, path, {})[0] in (403, 404, 405)
    assert ask(host, f"/{name}", {"title": "x"})[0] in (403, 404, 405)
    assert everything(run.parent) == before


def test_what_is_sent_is_looked_at(host: Host, run: Path) -> None:
    before = everything(run)
    evil = {**JSON, "Origin": "http://evil.example"}
    assert ask(host, f"/{run.name}/delete", {}, evil)[0] == 403
    assert ask(host, "", headers={"Origin": "http://evil.example"})[0] == 403
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ask(host, f"/{run.name}/delete", {}, form)[0] == 415
    for body in ([], {"titel": "x"}, {"title": 3}, {"title": "x" * 201}, {"pinned": "yes"}):
        status, answer = ask(host, f"/{run.name}", body)
        assert (status, "llowed" in answer["error"]) == (400, True)
    assert ask(host, f"/{run.name}", {"note": "x" * 300_000})[0] == 413
    for body in ({}, {"runs": "all", "kinds": ["states"]}, {"runs": [], "kinds": ["results"]}):
        assert ask(host, "/free", body)[0] == 400
    assert ask(host, "/free", {"runs": ["../x"], "kinds": ["states"]})[0] == 404
    assert everything(run) == before


def queue_as_page(host: Host, graph: Graph, workflow: dict[str, Any] | None) -> None:
    """Run a graph as a page does, which sends its saved form along."""
    extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
    body = {"prompt": graph, "client_id": "catalog", "extra_data": extra}
    host.wait(host.post("/prompt", body)["prompt_id"])


def as_shown(word: str) -> dict[str, Any]:
    """A saved graph whose note has a word that is nowhere else."""
    note = {"id": 1, "type": "Note", "pos": [10, 20], "size": [200, 90], "widgets_values": [word]}
    return {"id": f"id-{word}", "nodes": [note], "links": [], "version": 0.4}


def test_whole_graph_is_kept_with_the_run_and_goes_nowhere_else(host: Host) -> None:
    picture(host, "catalog_whole")
    graph = Graph()
    trained = graph.train(*graph.load(), graph.dataset("catalog_whole"), steps=1, seed=78)
    graph.add("PersonalizeSaveLora", lora=trained[2], filename_prefix="loras/catalog_whole",
              format="kohya fp16")  # fmt: skip
    graph.add("PersonalizeExportRun", run=trained[4], name="catalog_whole")
    queue_as_page(host, graph, as_shown("zebra1"))
    (run,) = (host.base / "output" / "personalize").glob("lora-catalog_whole-*")
    reply = host.get(f"{ROUTE}/{run.name}/graph")
    assert reply["workflow"] == as_shown("zebra1")
    assert reply["prompt"][reply["node"]]["class_type"] == "PersonalizeTrainLora"
    row = next(one for one in host.get(ROUTE)["runs"] if one["run"] == run.name)

    swept = Graph()
    model, clip, vae = swept.load()
    swept.add("PersonalizeSweep", 5, model=model, clip=clip, vae=vae, method="lora",
              dataset=swept.dataset("catalog_whole"), settings="rank: 2\nsteps: 1\nseed: 79",
              run_settings=swept.add("PersonalizeRun", state_every=1)[0])  # fmt: skip
    queue_as_page(host, swept, as_shown("zebra3"))

    queue_as_page(host, graph, as_shown("zebra2"))  # ComfyUI forgot it: taken from disk
    queue_as_page(host, swept, None)
    queue_as_page(host, graph, None)  # the command line has no page's graph
    assert host.get(f"{ROUTE}/{run.name}/graph")["workflow"] == as_shown("zebra2")
    again = next(one for one in host.get(ROUTE)["runs"] if one["run"] == run.name)
    assert again["changed"] == row["changed"], "nothing was trained"

    kept = {
        json.loads(one.read_bytes())["id"]: one.parent for one in run.parent.glob("*/workflow*")
    }
    assert kept.keys() >= {"id-zebra2", "id-zebra3"}

    (run / "workflow.json").write_text('{"nodes": [')
    reply = host.get(f"{ROUTE}/{run.name}/graph")
    assert (reply["workflow"], "workflow.json is not JSON" in reply["problems"][0]) == (None, True)
    assert reply["prompt"]
    written = [one for one in (host.base / "output").rglob("*") if one.is_file()]
    assert {one.name for one in written if b"zebra" in one.read_bytes()} == {"workflow.json"}
    for folder in (run, kept["id-zebra3"]):
        shutil.rmtree(folder)


def picture(host: Host, name: str) -> None:
    """A folder of the input folder with a picture in it."""
    folder = host.base / "input" / name
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (40, 90, 160)).save(folder / "0.png")


def test_run_at_work_is_shown_live_and_not_deleted(host: Host) -> None:
    picture(host, "catalog_dog")
    graph = Graph()
    graph.train(*graph.base("sd15"), graph.dataset("catalog_dog"), steps=4000, seed=77)
    seen: list[Any] = []

    def on_event(event: Any) -> None:
        if event.kind == "progress" and event.data["value"] >= 3 and not seen:
            row = next(one for one in host.get(ROUTE)["runs"] if one["data"] == "catalog_dog")
            seen.append(row)
            name = row["run"]
            seen.append(ask(host, f"/{name}/delete", {}))
            seen.append(ask(host, "/free", {"runs": [name], "kinds": ["states", "previews"]}))
            seen.append(host.get(f"{ROUTE}/{name}"))
            host.interrupt()

    with pytest.raises(Exception, match="interrupted|cancel|Interrupt"):
        host.follow(graph, on_event)
    row, (status, refusal), (_, freed), detail = seen
    assert (row["state"], row["planned_steps"], detail["state"]) == ("training", 4000, "training")
    assert row["steps"] >= 3
    assert len(detail["curve"]["loss"]) == detail["curve"]["steps"] >= row["steps"]
    assert (status, "is at work" in refusal["error"]) == (409, True)
    assert (freed["bytes"], "is at work" in freed["problems"][0]) == (0, True)
    after = host.get(f"{ROUTE}/{row['run']}")
    assert (after["state"], after["steps"] >= row["steps"]) == ("unfinished", True)
    assert ask(host, f"/{row['run']}/delete", {})[0] == 200
    assert ask(host, "/trash/empty", {})[1]["bytes"] > 0
