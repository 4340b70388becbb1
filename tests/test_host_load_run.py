"""Load Run in a real ComfyUI: what the training node hands out, to the bit; also resume_from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import on_a_cpu
from tests.events import Event
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.scanned.unets import UNETS
from tests.test_host_compare import compare, pixels, save, saved, stock
from tests.test_host_compare import facts as facts_of
from tests.test_host_store import facts, pictures, run_folders
from tests.tiny_transformers import CHROMA
from trainers.runs.story import read_metrics

OUTPUTS = {
    "lora": ("model", "clip", "lora", "loss_map", "run"),
    "dreambooth": ("model", "clip", "loss_map", "run"),
    "invert": ("clip", "embedding", "loss_map", "run"),
}
OF_LOAD_RUN = ("model", "clip", "lora", "embedding", "loss_map", "run")
SD15 = UNETS["Stable Diffusion 1.5"]  # a small one, since DreamBooth keeps its states
PROMPT = "a photo of a dog"
KEEP: dict[str, Any] = {"state_every": 2, "keep_states": 9}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"train_text_encoder": True, "dropout": 0.2, "seed": 301}),
    "dreambooth": ("dreambooth", {"train_text_encoder": True, "ema_decay": 0.9, "seed": 302}),
    "textual inversion": ("invert", {"seed": 303}),
    "pivotal tuning": ("lora", {"train_token": True, "seed": 304}),
}
Found = dict[str, Any]


def trained(host: Host, case: str, base: list[Link], graph: Graph, **more: Any) -> list[Link]:
    """The outputs of a short training of a case."""
    method, settings = CASES[case]
    train = {"lora": graph.train, "dreambooth": graph.dreambooth, "invert": graph.invert}[method]
    dataset = graph.dataset(pictures(host, "load-run"), "a photo of <sks> dog")
    return train(*base, dataset, **{"steps": 4, **KEEP, **settings, **more})


def load(graph: Graph, run: str, base: list[Link] | None, step: str = "last") -> dict[str, Link]:
    """Load Run's outputs by name."""
    wired = dict(zip(("model", "clip"), base or (), strict=False))
    return dict(
        zip(OF_LOAD_RUN, graph.add("PersonalizeLoadRun", 6, run=run, step=step, **wired),
            strict=True)
    )  # fmt: skip


def base_of(case: str, graph: Graph, token: str) -> list[Link]:
    """Model, clip and VAE; the clip of a run where a learned token is trained further."""
    model, clip, vae = graph.made(SD15)
    if CASES[case][1].get("train_token"):
        clip = load(graph, token, [model, clip])["clip"]
    return [model, clip, vae]


def handed_out(host: Host, case: str) -> tuple[str, Found]:
    """The run's name of a case, and what its training node hands out; trained once."""
    method, graph = CASES[case][0], Graph()
    token = handed_out(host, "textual inversion")[0] if case == "pivotal tuning" else ""
    links = trained(host, case, base_of(case, graph, token), graph)
    told = found(host, graph, dict(zip(OUTPUTS[method], links, strict=True)))
    return Path(told["run"]).name, told


def found(host: Host, graph: Graph, wired: dict[str, Link]) -> Found:
    """What the probe says of these outputs."""
    (node, _) = graph.add("ProbeOutputs", 1, **wired)[0]
    outputs = host.run(graph)["outputs"]
    told: Found = json.loads(outputs[node]["found"][0])
    return told


def refused(host: Host, graph: Graph, words: str) -> HostError:
    with pytest.raises(HostError, match=words) as failed:
        host.run(graph)
    return failed.value


def without_times(told: Found) -> Found:
    """All but when a file was made, and what it cost."""
    cut = json.loads(json.dumps(told))
    for name in ("lora", "embedding"):
        if name in cut:
            for key in [k for k in cut[name][-1] if "_training_" in k or k == "modelspec.date"]:
                del cut[name][-1][key]
    cut.get("loss_map", {}).pop("states", None)
    return cut


@on_a_cpu
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_training_node(host: Host, case: str) -> None:
    method, (name, theirs) = CASES[case][0], handed_out(host, case)
    token = handed_out(host, "textual inversion")[0] if case == "pivotal tuning" else ""
    graph = Graph()
    outputs = load(graph, name, base_of(case, graph, token))
    assert found(host, graph, {n: outputs[n] for n in OUTPUTS[method]}) == theirs
    patched = [theirs[n][0] for n in ("model", "clip") if n in theirs]
    assert any(patched) or method == "invert"

    # a state as a step, and then the run with so many steps, which makes the result of it
    graph = Graph()
    outputs = load(graph, name, base_of(case, graph, token), "2")
    of_state = found(host, graph, {n: outputs[n] for n in OUTPUTS[method]})
    assert of_state["loss_map"]["loss"] == theirs["loss_map"]["loss"][:2]
    graph = Graph()
    links = trained(host, case, base_of(case, graph, token), graph, steps=2)
    shorter = found(host, graph, dict(zip(OUTPUTS[method], links, strict=True)))
    assert without_times(of_state) == without_times(shorter)
    changed = "embedding" if method == "invert" else "model"
    assert of_state[changed] != theirs[changed]


@on_a_cpu
def test_what_needs_no_base_loads_none(host: Host) -> None:
    for case, output in (("lora", "lora"), ("textual inversion", "embedding")):
        name, theirs = handed_out(host, case)
        graph, sent = Graph(), []
        outputs = load(graph, name, graph.made(SD15)[:2], "4")
        wired = {n: outputs[n] for n in (output, "loss_map", "run")}
        (node, _) = graph.add("ProbeOutputs", 1, **wired)[0]
        shown = host.follow(graph, sent.append)["outputs"]
        assert json.loads(shown[node]["found"][0]) == {n: theirs[n] for n in wired}
        ran = {graph[e.data["node"]]["class_type"] for e in sent
               if e.kind == "executing" and e.data["node"]}  # fmt: skip
        assert ran == {"PersonalizeLoadRun", "ProbeOutputs"}
        assert f"{name}: step 4; kept: 2, 4" in [
            e.data["text"] for e in sent if e.kind == "progress_text"
        ]
        # the base was not asked for, and now is
        wired = {n: outputs[n] for n in ("model", "clip") if n in theirs}
        assert found(host, graph, wired) == {n: theirs[n] for n in wired}


def test_what_cannot_be_handed_out_is_said_in_a_sentence(host: Host) -> None:
    lora, inversion = (handed_out(host, case)[0] for case in ("lora", "textual inversion"))
    for name, output, words in (
        (inversion, "lora", "Output lora of Load Run is wired, but .* of textual_inversion; allow"),
        (lora, "embedding", "Output embedding of Load Run is wired, but .* is a run of lora"),
        (lora, "model", "its input model is not; allowed: the base that .*\nWire model of Load C"),
    ):
        graph = Graph()
        outputs = load(graph, name, None)
        graph.add("ProbeOutputs", 1, **{output: outputs[output]})
        assert refused(host, graph, words).node == "PersonalizeLoadRun"
    for run, step, words in (
        ("lora-nobody-00000000", "last", "is no run; allowed: a folder of output/personalize"),
        ("../../input", "last", "is no run"),
        (lora, "3", "step is '3'; allowed for run '.*': last, best, 2, 4"),
    ):
        graph = Graph()
        graph.add("ProbeOutputs", 1, run=load(graph, run, None, step)["run"])
        assert refused(host, graph, words).kind == "invalid prompt"
    other = Graph()
    other.add("ProbeOutputs", 1, model=load(other, lora, other.made(CHROMA))["model"])
    refused(host, other, "was trained on .*, but input 'model' is Chroma")


def test_list_of_runs_is_made_anew(host: Host) -> None:
    def listed() -> list[str]:
        facts = host.object_info("PersonalizeLoadRun")["input"]["required"]["run"]
        options: list[str] = facts[1]["options"] if isinstance(facts[0], str) else facts[0]
        return options

    name, before = handed_out(host, "lora")[0], listed()
    assert name in before
    graph = Graph()
    trained(host, "lora", graph.made(SD15), graph, steps=2, seed=310)
    old = run_folders(host)
    host.run(graph)
    (made,) = run_folders(host) - old
    assert listed() == [made.name, *before]


@on_a_cpu
def test_compare_has_a_row_for_each_kept_step(host: Host) -> None:
    graph = Graph()
    base = graph.made(SD15)
    run = trained(host, "lora", base, graph, seed=311, learning_rate=1e-2)[4]
    settings = {"strengths": "1", "prompts": PROMPT, "run": run}
    save(graph, compare(graph, base, **settings)[1], "rows")
    old = run_folders(host)
    host.run(graph)
    (made,) = run_folders(host) - old
    cells = {facts_of(file)[0]: pixels(file) for file in made.glob("compare/*/*.png")}
    assert cells.keys() == {"2 steps", "4 steps"}  # the base's is in another folder

    for step in ("2", "4"):
        graph = Graph()
        model, clip, vae = graph.made(SD15)
        loaded = load(graph, made.name, [model, clip], step)
        stock(graph, [loaded["model"], loaded["clip"], vae], PROMPT, f"loaded{step}")
        host.run(graph)
        assert saved(host, f"loaded{step}") == [cells[f"{step} steps"]]
    assert cells["2 steps"] != cells["4 steps"]


# -- resume_from --------------------------------------------------------------


@on_a_cpu
def test_run_begins_with_a_state_of_another_one(host: Host) -> None:
    source, theirs = handed_out(host, "lora")
    told: dict[str, Found] = {}
    for name, changed in {
        "same": {}, "other rate": {"learning_rate": 1e-2}, "longer": {"steps": 5},
    }.items():  # fmt: skip
        graph = Graph()
        resume = {"resume_from": source, "resume_step": 0 if name == "longer" else 2}
        links = trained(host, "lora", graph.made(SD15), graph, **resume, **changed)
        told[name] = found(host, graph, dict(zip(OUTPUTS["lora"], links, strict=True)))
    same, other, longer = told.values()
    assert len({source, *(Path(t["run"]).name for t in told.values())}) == 4
    assert all(same[name] == theirs[name] for name in ("model", "clip"))
    assert same["lora"][0] == theirs["lora"][0]
    assert same["loss_map"]["loss"] == theirs["loss_map"]["loss"][2:]
    assert other["model"] != theirs["model"]
    assert [row["step"] for row in read_metrics(Path(other["run"]))] == [3, 4]
    assert longer["loss_map"]["first_step"] == [5]
    resumed = facts(Path(longer["run"]))["resumed"]
    assert resumed == {"fingerprint": facts(Path(theirs["run"]))["fingerprint"], "step": 4}

    graph, said = Graph(), []
    trained(host, "lora", graph.made(SD15), graph, resume_from=source, resume_step=2)
    host.free()
    host.follow(graph, lambda event: said.append(event))
    texts = [e.data["text"] for e in said if e.kind == "personalize.status"]
    assert "trained before, 4 steps: taken from disk" in texts[-1]


def test_state_that_does_not_fit_is_refused_before_pictures_are_encoded(host: Host) -> None:
    source = handed_out(host, "lora")[0]
    for changed, words in (
        ({"rank": 2, "targets": "attention", "steps": 4, "resume_step": 4},
         "rank is 2, but the run in resume_from.*; .*the training has 4 steps, but begins at"),
        ({"resume_step": 3, "steps": 9}, "has no state of step 3 .* allowed in resume_step: 2, 4"),
        ({"resume_from": "nothing"}, "resume_from: 'nothing' is no run"),
    ):  # fmt: skip
        graph = Graph()
        settings: dict[str, Any] = {"resume_from": source, **changed}
        trained(host, "lora", graph.made(SD15), graph, **settings)
        sent: list[Event] = []
        with pytest.raises(HostError, match=words):
            host.follow(graph, sent.append)
        said = [e.data["text"] for e in sent if e.kind == "personalize.status"]
        assert not any(text.startswith("encoding") for text in said)
