"""Tries every model that a ComfyUI knows, small and with random weights, and writes docs/models.md.

    python -m docs.scan [--comfyui DIR] [--only EXPRESSION] [--write]

Each is trained for two steps by Train LoRA in a graph, or refused by it. A class that ComfyUI
lists and tests.scanned has no recipe of shows as such: it is new, write one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import DEV_DIR, PROBES
from tests.graphs import Graph
from tests.host import ROOT, Host, HostError
from tests.scanned import MODELS
from tests.test_host_lora import PROMPT, pictures
from trainers.models.architectures import GENERIC, architecture_of

PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- by docs.scan -->\n", "<!-- end of docs.scan -->\n"
STEPS = 2  # what a module keeps of one shows in the next
NAME = "scanned"  # of the files
TRACE_LINES = 9  # of the error where a training fails
ROUNDING = 1e-4
SLOPE = 0.05  # where the loss is nearly flat, rounding shows
PREDICTIONS = {
    "EPS": "noise", "V_PREDICTION": "v", "FLOW": "flow", "FLUX": "flow", "FLOW_COSMOS": "flow",
    "V_PREDICTION_EDM": "v, at EDM's noise levels", "EDM": "EDM's mixture",
    "STABLE_CASCADE": "noise, on Cascade's schedule", "IMG_TO_IMG": "a picture from a picture",
    "IMG_TO_IMG_FLOW": "a flow from a picture", "V_PREDICTION_DDPM": "v, without scaling",
    "V_PREDICTION_CONTINUOUS": "v, at continuous noise levels",
}  # fmt: skip


class Tried(NamedTuple):
    """What became of a model: a row of the table."""

    name: str
    kind: str
    predicts: str
    result: str
    why: str
    tried: str
    record: str


def scan(host: Host, only: str) -> Iterator[Tried]:
    """Tries the models whose names match `only`, then lists the classes that no recipe makes."""
    known = host.get("/probes/models")["models"]
    for name, recipe in MODELS.items():
        if recipe["model"] in known and re.search(only, f"{name} {recipe['model']}"):
            yield tried(host, name, recipe)
            host.free()
            host.delete_large_files(0)
    made = {recipe["model"] for recipe in MODELS.values()}
    for kind in sorted(set(known) - made) if not only else ():
        yield Tried("", kind, "", "no recipe yet", "", "", "")


def tried(host: Host, name: str, recipe: Mapping[str, Any]) -> Tried:
    """Makes a model, trains it, and loads what it learned."""
    kind = recipe["model"]
    predicts, tried_with, result = "", "", "trains"
    try:
        predicts = found(host.run(made(recipe)[0]))["predicts"]
        predicts = PREDICTIONS.get(predicts, predicts)
        log_from = len(host.log())
        measured = found(host.run(trained(host, recipe)))
        measured |= found(host.run(loaded(host, recipe)))
        tried_with = parts_of(recipe)
        why = wrong(measured, host.log()[log_from:])
        result = "fails" if why else result
        why = why or recipe.get("note", "")
    except HostError as error:
        result = "refused" if error.kind.endswith("UnsupportedModelError") else "fails"
        why = said(error)
        if result == "fails":
            print("\n".join(str(error).splitlines()[-TRACE_LINES:]))
    record = record_of(kind) if result == "trains" else ""
    return Tried(name, kind, predicts, result, why, tried_with, record)


def made(recipe: Mapping[str, Any]) -> tuple[Graph, list[Any]]:
    """A graph with the MODEL, CLIP and VAE of a recipe, and what it predicts."""
    graph = Graph()
    base = graph.add("ProbeTiny", 3, recipe=json.dumps(recipe))
    graph.add("ProbeKind", model=base[0])
    return graph, base


def trained(host: Host, recipe: Mapping[str, Any]) -> Graph:
    """A graph that trains a LoRA and saves it."""
    graph, base = made(recipe)
    _trained(host, graph, base, recipe)
    return graph


def loaded(host: Host, recipe: Mapping[str, Any]) -> Graph:
    """The same, and what ComfyUI predicts with the file; and with the base, as the pack does."""
    graph, base = made(recipe)
    model = _trained(host, graph, base, recipe)
    newest = max((host.base / "output/loras").glob(f"{NAME}_*"), key=lambda path: path.name)
    from_file, _ = graph.add(
        "LoraLoader", 2, model=base[0], clip=base[1], lora_name=newest.name, strength_model=1.0,
        strength_clip=1.0,
    )  # fmt: skip
    said = graph.encode(base[1], PROMPT)
    graph.add("ProbeLoaded", base=base[0], trained=model, loaded=from_file, conditioning=said)
    sockets = {"model": base[0], "clip": base[1], "text": PROMPT}
    graph.add("ProbePrediction", conditioning=said, **sockets)
    graph.add("ProbeGradients", of_text_encoders=False, **sockets)
    return graph


def _trained(host: Host, graph: Graph, base: list[Any], recipe: Mapping[str, Any]) -> Any:
    """Adds the training; gives the MODEL."""
    resolution = recipe.get("resolution", 64)
    dataset = graph.dataset(pictures(host), PROMPT, resolution=resolution, upscale=True)
    model, _, lora, losses, _ = graph.train(
        *base, dataset, steps=STEPS, learning_rate=1e-2, targets="all with convolutions"
    )
    graph.add("ProbeLearned", lora=lora, loss_map=losses)
    graph.add(
        "PersonalizeSaveLora", lora=lora, filename_prefix=f"loras/{NAME}", format="kohya fp32"
    )
    return model


def found(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the probes of a prompt measured, all in one."""
    shown = (json.loads(o["found"][0]) for o in entry["outputs"].values() if "found" in o)
    return {name: value for measured in shown for name, value in measured.items()}


def wrong(measured: Mapping[str, Any], log: str) -> str:
    """What is wrong with a training; nothing if all is well."""
    unmatched = log.count("lora key not loaded")
    checks = {
        "the loss or the weights are not finite": measured["finite"],
        f"{measured['steps']} steps": measured["steps"] == STEPS,
        f"ComfyUI's loader leaves out {unmatched} keys": not unmatched,
        f"the LoRA changes the prediction by {measured['changed']:.0e} alone":
            measured["changed"] > 1e-3,
        f"the file predicts otherwise than the socket, by {measured['away']:.0e}":
            measured["away"] < ROUNDING,
        f"the pack predicts otherwise than ComfyUI, by {measured['prediction']:.0e}":
            measured["prediction"] < ROUNDING,
        f"a batch is not its samples, by {measured['batch']:.0e}": measured["batch"] < ROUNDING,
        f"gradients are off the slope of the loss by {measured['numeric']:.0e}":
            measured["numeric"] < SLOPE,
        f"gradient_checkpointing changes gradients by {measured['difference']:.0e}":
            measured["difference"] < ROUNDING,
        f"{measured['moved']} of {measured['adapters']} adapters learned":
            measured["moved"] > 0.5 * measured["adapters"],
    }  # fmt: skip
    return "; ".join(said for said, well in checks.items() if not well)


def said(error: HostError) -> str:
    """The first sentence of an error, without the node's name."""
    words = (error.summary.split(": ", 1)[-1].splitlines() or [error.kind])[0]
    return words.removeprefix("Input 'model' ").rstrip(".")


def parts_of(recipe: Mapping[str, Any]) -> str:
    """Whether the text encoder is the model's own."""
    if recipe.get("stands_in"):
        return "a T5 in its place"
    return "its own, with letters for words" if "vocabulary" in recipe else "its own"


def record_of(kind: str) -> str:
    record = architecture_of(kind)
    return "none" if record is GENERIC else record.name


def table(rows: Iterable[Tried]) -> str:
    """The rows as Markdown."""
    head = "| model | ComfyUI's class | predicts | | why, or how | text encoder | record |"
    lines = [head, "|---|---|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def rows_of(page: str) -> list[Tried]:
    """The rows of the page's table."""
    lines = page.split(START)[1].split(END)[0].strip().splitlines()[2:]
    return [Tried(*(cell.strip() for cell in line.split("|")[1:-1])) for line in lines]


def write(rows: list[Tried], all_of_them: bool) -> None:
    """Puts rows into the page's table, in place of all or of those of the same models."""
    page = PAGE.read_text(encoding="utf-8")
    before = [] if all_of_them else rows_of(page)
    known = {row.name or row.kind: row for row in (*before, *rows)}
    ordered = [known.pop(name) for name in MODELS if name in known]
    head, rest = page.split(START)
    written = f"{head}{START}\n{table((*ordered, *known.values()))}\n{END}{rest.split(END)[1]}"
    PAGE.write_text(written, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("PERSONALIZE_COMFYUI") or DEV_DIR / "ComfyUI-0.30.0"
    parser.add_argument("--comfyui", type=Path, default=Path(default))
    parser.add_argument("--only", default="", help="an expression for names and classes")
    parser.add_argument("--write", action="store_true", help="into docs/models.md")
    asked = parser.parse_args()
    rows = []
    with Host(asked.comfyui, more_packs={"probes": PROBES}) as host:
        for row in scan(host, asked.only):
            rows.append(row)
            print(f"{time.strftime('%X')} {' | '.join(row)}", flush=True)
    if asked.write:
        write(rows, all_of_them=not asked.only)
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
