"""The front-end extensions, in Node.js with stand-ins for the host's app and api."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.host import ROOT
from trainers.runs.catalog.curve import Growing
from trainers.runs.pictures.plot import LOOKS, smooth

APP = """
export const app = {
  registerExtension: (extension) => (globalThis.extension = extension),
  get graph() { return globalThis.graph; },
};
"""
API = """
export const api = Object.assign(new EventTarget(), {
  fetched: [],
  fetchApi(route, options) {
    this.fetched.push([route, options?.method ?? "GET", options?.body]);
    return Promise.resolve({ status: this.status ?? 200, json: () => this.answer });
  },
});
"""
PRESETS = """
import { apply, changesOf, isChange } from "./extensions/personalize/presets/changes.js";
class Node {
  constructor(type, pos, values, inputs = {}) {
    Object.assign(this, { type, title: type, pos, size: [300, 200], mode: 0, told: [] });
    this.inputs = Object.entries(inputs).map(([name, from]) => ({ name, link: from && 1, from }));
    this.widgets = Object.entries(values).map(([name, value]) => (
      { name, value, callback: (now) => this.told.push([name, now]) }
    ));
  }
  getInputNode(slot) { return this.inputs[slot].from ?? null; }
  connect(slot, node, place) { Object.assign(node.inputs[place], { link: 2, from: this }); }
  values() { return Object.fromEntries(this.widgets.map(({ name, value }) => [name, value])); }
}
const DEFAULTS = {
  Optimizer: { optimizer: "adamw", warmup_steps: 0 }, Run: { epochs: 0 }, Loss: { noise_offset: 0 },
};
globalThis.LiteGraph = { createNode: (type) => new Node(type, [0, 0], DEFAULTS[type]) };
const settings = [
  ["steps", 1200, 500, null], ["rank", 16, 16, null], ["seed", 7, 0, null],
  ["optimizer", "lion", "adamw", "optimizer_settings"], ["epochs", 0, 0, "run_settings"],
  ["noise_offset", 0.1, 0, "loss_settings"],
].map(([name, value, usual, input]) => ({ name, value, default: usual, input }));
const nodes = { optimizer_settings: "Optimizer", run_settings: "Run", loss_settings: "Loss" };
function use(others = [], wires = {}, rest = settings) {
  const none = { optimizer_settings: null, run_settings: null, loss_settings: null };
  const own = { steps: 500, rank: 16, seed: 3 };
  const trainer = new Node("Trainer", [500, 100], own, { ...none, ...wires });
  trainer.inputs.push({ name: "seed", widget: { name: "seed" }, link: 9 });
  trainer.graph = { nodes: [trainer, ...others], add(node) { this.nodes.push(node); } };
  const rows = changesOf(trainer, { settings: rest }, nodes);
  const shown = rows.map((row) => [row.name, row.now, row.then, isChange(row), row.why ?? ""]);
  apply(trainer, rows, nodes);
  const after = changesOf(trainer, { settings: rest }, nodes).filter(isChange).length;
  return { shown, after, trainer, values: trainer.values(), told: trainer.told };
}
function outlines({ trainer }) {
  return trainer.graph.nodes.map(({ type, pos, size }) => [type, ...pos, ...size]);
}
const alone = use();
const full = use([new Node("Loader", [100, 0], {}), new Node("Sampler", [500, 340], {})]);
const optimizer = new Node("Optimizer", [0, 0], { optimizer: "prodigy", warmup_steps: 5 });
const reroute = new Node("Reroute", [0, 0], {}, { "": optimizer });
const wired = use([optimizer], { optimizer_settings: reroute });
const muted = new Node("Optimizer", [0, 0], { optimizer: "prodigy" });
muted.mode = 2;
const whys = [muted, new Node("Switch", [0, 0], {}), undefined].map((from) => {
  const row = settings.slice(3, 4);
  const { trainer, shown } = use([], { optimizer_settings: from }, row);
  if (from) return shown[0][4];
  trainer.inputs[0] = { name: "optimizer_settings", link: 5 }; // a subgraph's edge is no node
  return changesOf(trainer, { settings: row }, nodes)[0].why;
});
const { shown, after, values, told } = alone;
console.log(JSON.stringify({
  shown, after, values, told, alone: outlines(alone), full: outlines(full), whys,
  wired: [wired.after, optimizer.values(), optimizer.told, wired.trainer.graph.nodes.length],
}));
"""


CURVE = """
import { inColumns, makeCurve, smooth } from "./extensions/personalize/training/curve.js";
const points = Array.from({ length: 40 }, (_, i) => [i + 1, (i * 7919) % 13]);
const thinned = points.filter(([step]) => step % 4 === 0);
const columns = inColumns(points, 40, 10);
const smoothed = [points, thinned].map((part) => smooth(part));
// Of a long run a page draws no more than it has pixels for.
let lines = 0;
const canvas = { clientWidth: 300, clientHeight: 100, style: {}, dataset: {}, append() {} };
const fixed = {
  measureText: () => ({ width: 9 }),
  getImageData: () => ({ data: [0, 0, 0] }),
  lineTo: () => lines++,
};
const pen = new Proxy({}, { get: (_, name) => fixed[name] ?? (() => 0), set: () => true });
canvas.getContext = () => pen;
globalThis.document = { createElement: () => canvas };
globalThis.getComputedStyle = () => ({ getPropertyValue: () => "" });
const long = Array.from({ length: 100000 }, (_, i) => [i + 1, (i * 7919) % 13]);
makeCurve()[1]({ loss: long, validation: [] });
const late = smooth(points.map(([step, value]) => [step + 400, value]));
console.log(JSON.stringify({ points, smoothed, columns, lines, late }));
"""


FIND = """
import { find } from "./extensions/personalize/training/find.js";
const [trainer, nested] = [1, 2].map(() => ({ comfyClass: "PersonalizeTrainLora" }));
const inside = { getNodeById: (id) => (id === 3 ? nested : undefined) };
const nodes = { 3: trainer, 4: { comfyClass: "KSampler" }, 7: { subgraph: inside } };
globalThis.graph = { id: "a", getNodeById: (id) => nodes[id] };
const ids = ["3", "7:3", "4", "99", "7:9"].map((node) => ({ graph: "a", node }));
const asked = [...ids, { graph: null, node: "3" }, { graph: "b", node: "3" }];
const found = asked.map(find);
console.log(JSON.stringify({ found: found.map((one) => [trainer, nested].indexOf(one)) }));
"""


NOTIFY = """
import { app } from "./scripts/app.js";
import { api } from "./scripts/api.js";
await import("./extensions/personalize/training/notify.js");
const { queueLine } = await import("./extensions/personalize/training/queue.js");
const made = [], warned = [];
let isOn = false;
globalThis.document = { hidden: true };
globalThis.Notification = class {
  static permission = "granted";
  static requestPermission = async () => "denied";
  constructor(title, { body }) { made.push([title, body]); }
};
globalThis.setTimeout = (react) => (globalThis.later = react);
app.extensionManager = {
  setting: { get: () => isOn },
  toast: { add: ({ summary }) => warned.push(summary) },
};
api.answer = { title: "my dog" };
const { setup, settings: [setting] } = globalThis.extension;
setup();
async function train(text, late) {
  const send = (kind, facts) => api.dispatchEvent(
    Object.assign(new Event(`personalize.${kind}`), { detail: { graph: "a", node: "3", ...facts } })
  );
  send("training", { run: "lora-dog", training: true, text: "" });
  send("status", { run: "lora-dog", training: true, text: "step 1/2" });
  send("training", { run: "lora-dog", training: false, text });
  if (late) send("status", { run: "lora-dog", training: false, text: late });
  await globalThis.later?.();
  globalThis.later = undefined;
}
await train("off");
isOn = true;
await train("done: 2 steps in 0:01, loss 0.1000");
await train("step 1/2", "ended by an error: no");
document.hidden = false;
await train("seen");
document.hidden = true;
Notification.permission = "denied";
await train("forbidden");
await setting.onChange(true, undefined);
await setting.onChange(false, true);
await setting.onChange(true, false);
const lines = [[0, 0], [1, 754.4], [2, null], [3, 7325]];
console.log(JSON.stringify({
  made, warned, usual: setting.defaultValue,
  lines: lines.map(([trainings, seconds]) => queueLine({ trainings, seconds })),
}));
"""


UPLOAD = """
globalThis.document = new EventTarget();
await import("./extensions/personalize/pictures/upload.js");
const { api } = await import("./scripts/api.js");
const { app } = await import("./scripts/app.js");
const asked = [], told = [];
let answer = "my dog ";
app.extensionManager = {
  dialog: { prompt: async ({ defaultValue }) => (asked.push(defaultValue), answer) },
  toast: { add: ({ detail }) => told.push(detail) },
};
class Node {
  constructor(comfyClass, folder) {
    this.comfyClass = comfyClass;
    const options = { values: [folder] };
    this.widgets = [{ name: "folder", value: folder, options, callback: (v) => (this.told = v) }];
  }
  addWidget(type, name, value, callback, options) {
    this.widgets.push({ type, name, value, callback, options });
    return this.widgets.at(-1);
  }
  setDirtyCanvas() {}
}
const other = new Node("LoadImage", "x");
globalThis.extension.nodeCreated(other);
const node = new Node("PersonalizeFolderDataset", "(none yet: drop pictures here)");
globalThis.extension.nodeCreated(node);
const files = ["a.PNG", "a.txt", "run.exe", "b.jpeg"].map((name) => new File(["x"], name));
const idle = () => new Promise((resolve) => setTimeout(resolve, 20));
globalThis.extension.setup();
let under = node;
app.canvas = {
  convertEventToCanvasOffset: () => [1, 2],
  graph: { getNodeOnPos: (x, y) => (x === 1 && y === 2 ? under : null) },
};
function drag(type, files, kind = "file") {
  const event = new Event(type, { cancelable: true });
  event.dataTransfer = { items: files.map(() => ({ kind })), files };
  document.dispatchEvent(event);
  return event.defaultPrevented; // and so the page does nothing
}
const takes = [drag("dragover", files), drag("drop", files, "string")];
under = other;
takes.push(drag("drop", files));
under = node;
takes.push(drag("drop", files));
await idle();
const sent = api.fetched.map(([route, method, body]) => [
  route, method, body.get("image").name, body.get("subfolder"), body.get("type"),
]);
const [folder, button] = node.widgets;
const after = { folder: folder.value, told: node.told, listed: folder.options.values.at(-1) };
answer = null; // Cancel
drag("drop", files);
await idle();
answer = "my dog";
api.status = 400;
drag("drop", files.slice(0, 1));
await idle();
drag("drop", files.slice(2, 3));
await idle();
console.log(JSON.stringify({
  takes, sent, after, asked, told, num: api.fetched.length, others: other.widgets.length,
  button: [button.label, button.serialize, button.options.serialize],
}));
"""

RUNS = """
import { freeName } from "./extensions/personalize/runs/graph.js";
import { Growing } from "./extensions/personalize/runs/growing.js";
import { lastOfBoth, previewsOf, shotsOf } from "./extensions/personalize/runs/pairs.js";
const losses = LOSSES;
const growing = new Growing(losses.slice(0, 40), 40);
const isWhole = growing.take(losses.map((loss, place) => [place + 1, loss]));
const coarse = new Growing([4, 2], 6); // stretches of three steps
const preview = ([prompt, seed, step]) => ({ prompt, seed, step });
const runs = [
  [["dog", "5", 10], ["dog", "5", 20], ["cat", "5", 20], ["hat", "1", 20], ["own", "5", 20]],
  [["dog", "5", 10], ["dog", "6", 20], ["cat", "5", 30], ["hat", "2", 20], ["", "", 20]],
  [["", "", 20]],
].map((previews) => ({ curve: { previews: previews.map(preview) } }));
const shots = shotsOf(runs);
const of = (run, shot) => previewsOf(runs[run], shots[shot]).map(({ seed, step }) => [seed, step]);
const taken = new Set(["workflows/dog.json", "workflows/dog (2).json", "workflows/a_b.json"]);
console.log(JSON.stringify({
  sparks: growing.sparkline(), isWhole, misses: growing.take([[999, 1]]),
  coarse: coarse.sparkline(),
  labels: shots.map(({ label }) => label), dog: [of(0, 0), of(1, 0)], hat: [of(0, 3), of(1, 3)],
  steps: [lastOfBoth(previewsOf(runs[0], shots[0]), previewsOf(runs[1], shots[0])),
    lastOfBoth(previewsOf(runs[0], shots[1]), previewsOf(runs[1], shots[1]))],
  names: ["dog", "cat", "a/b", "..", " "].map((name) => freeName(name, (path) => taken.has(path))),
}));
"""

EXPORT = """
const element = () => ({ style: {}, dataset: {}, append() {}, addEventListener() {} });
globalThis.document = { createElement: element };
await import("./extensions/personalize/training/export.js");
class Node {
  constructor(comfyClass) { Object.assign(this, { comfyClass, size: [210, 80], bodies: [] }); }
  addDOMWidget(name, type, element, options) {
    this.bodies.push({ element, options });
    return {};
  }
  computeSize() { return [210, 60 + this.bodies[0].options.getMinHeight()]; }
  setSize(size) { this.size = size; }
}
const [node, other] = ["PersonalizeExportRun", "KSampler"].map((kind) => new Node(kind));
globalThis.extension.nodeCreated(node);
globalThis.extension.nodeCreated(other);
const [{ element: body, options }] = node.bodies;
const before = [body.textContent, node.size];
node.onExecuted({ text: ["output/x", "<b>two</b>", "three"] });
console.log(JSON.stringify({
  before, after: body.textContent, html: body.innerHTML ?? null, size: node.size,
  saved: options.serialize, others: other.bodies.length,
}));
"""

PLOT = """
let colour = "";
const pen = {
  fillRect() {},
  set fillStyle(css) { colour = css.trim(); },
  getImageData: () => ({ data: [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) }),
};
class Element {
  style = {};
  dataset = {};
  children = [];
  clientWidth = 0;
  clientHeight = 0;
  get childElementCount() { return this.children.length; }
  append(...more) { this.children.push(...more); }
  replaceChildren(...others) { this.children = others; }
  setAttribute() {}
  addEventListener() {}
  getContext() { return pen; }
}
const createElement = () => new Element();
globalThis.document = { documentElement: {}, createElement, createElementNS: createElement };
globalThis.ResizeObserver = class { observe() {} };
const shown = {};
globalThis.getComputedStyle = () => ({ getPropertyValue: (name) => shown[name] });
const { runsOf } = await import("./extensions/personalize/training/plot.js");
const { rangeOf, nearest } = await import("./extensions/personalize/runs/plot.js");
const { inColumns, startOf } = await import("./extensions/personalize/training/curve.js");
const bodies = [];
const made = {
  comfyClass: "PersonalizeLossPlot",
  size: [200, 100],
  addDOMWidget(name, type, element, options) { bodies.push(options); return {}; },
  computeSize: () => [200, 100],
  setSize(size) { this.size = size; },
};
const node = { ...made, widgets: [{ name: "theme", value: "auto" }] };
const other = { comfyClass: "KSampler", widgets: [{ name: "theme", value: "auto" }] };
globalThis.extension.nodeCreated(node);
globalThis.extension.nodeCreated(other);
globalThis.extension.nodeCreated({ ...made });
const [widget] = node.widgets;
const queued = [];
for (const background of ["#202020", "#ffffff", " #fdf6e3", "#002b36"]) {
  shown["--bg-color"] = background;
  widget.value = "auto";
  queued.push(widget.serializeValue());
}
widget.value = "light";
queued.push(widget.serializeValue());
const run = (title, loss) => ({ title, loss, validation: [] });
const late = Array.from({ length: 4 }, (_, i) => [405 + 5 * i, i + 1]); // each for five steps
const two = [run("a", late), run("b", [[7, 1]])];
const texts = [two, [run("a", [])]].map((runs) => JSON.stringify(runs));
const heights = [bodies[0].getMinHeight()];
for (const some of [texts.slice(0, 1), texts]) {
  node.onExecuted({ losses: some });
  heights.push(bodies[0].getMinHeight());
}
const hundred = Array.from({ length: 100 }, (_, i) => [i + 1, i === 50 ? 1e6 : 0.1 + i / 1000]);
console.log(JSON.stringify({
  queued, kept: widget.value, others: Object.keys(other.widgets[0]), heights,
  titles: [texts.slice(0, 1), texts].map((some) => runsOf(some).map(({ title }) => title)),
  starts: [startOf(late), startOf([[7, 1]]), startOf([[1, 1], [2, 1]])],
  columns: inColumns(late, 420, 2, 400),
  nearest: [1, 407, 408, 999].map((step) => nearest(late, step)[0]),
  ranges: [false, true].map((isLog) => rangeOf([run("c", hundred)], isLog)),
  nothing: rangeOf([run("d", [])], false),
}));
"""


ERRORS = """
import "./extensions/personalize/errors.js";
import { api } from "./scripts/api.js";
import { app } from "./scripts/app.js";
const shown = [];
globalThis.extension.setup();
function tell(text) {
  const event = new Event("personalize.error");
  event.detail = { node: "3", text };
  api.dispatchEvent(event);
}
tell("A page without toasts.");
app.extensionManager = { toast: { add: ({ severity, summary, detail }) => {
  shown.push([severity, summary, detail]);
} } };
tell("Settings: rank is 0.\\nChange them.");
console.log(JSON.stringify({ shown }));
"""

TITLE_PX = 30  # of a node, above its position


def run(folder: Path, driver: str) -> dict[str, Any]:
    """What `driver` prints with our scripts beside it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    ours = folder / "extensions" / "personalize"
    shutil.copytree(ROOT / "js", ours)
    for name, text in {"scripts/app.js": APP, "scripts/api.js": API, "driver.js": driver}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "package.json").write_text('{"type": "module"}')
    done = subprocess.run([node, "driver.js"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state: dict[str, Any] = json.loads(done.stdout)
    return state


def test_preset_changes_the_trainer_and_the_settings_nodes_it_needs(tmp_path: Path) -> None:
    found = run(tmp_path, PRESETS)
    assert found["shown"] == [
        ["steps", 500, 1200, True, ""],
        ["rank", 16, 16, False, ""],
        ["seed", 3, 7, False, "a wire sets it"],
        ["optimizer", "adamw", "lion", True, ""],
        ["epochs", 0, 0, False, ""],  # the default, so no node is needed for it
        ["noise_offset", 0, 0.1, True, ""],
    ]
    assert found["after"] == 0, "it is so now, by nodes that were made and wired"
    assert found["values"] == {"steps": 1200, "rank": 16, "seed": 3}
    assert found["told"] == [["steps", 1200]], "callbacks hear of what changed, and of that alone"
    assert [node[0] for node in found["alone"]] == ["Trainer", "Optimizer", "Loss"]
    after, values, told, num_nodes = found["wired"]  # through a Reroute
    assert (after, num_nodes) == (0, 3), "the trainer, its Optimizer, and a new Loss"
    assert values == {"optimizer": "lion", "warmup_steps": 5}
    assert told == [["optimizer", "lion"]]
    assert found["whys"] == [
        "Optimizer is muted or bypassed",
        "optimizer_settings comes from Switch",
        "optimizer_settings comes from outside of this subgraph",
    ]


def test_nodes_that_a_preset_makes_lie_apart(tmp_path: Path) -> None:
    found = run(tmp_path, PRESETS)
    for graph in (found["alone"], found["full"]):
        for place, (_, x, y, width, height) in enumerate(graph):
            for _, left, top, w, h in graph[:place]:
                beside = x >= left + w or left >= x + width
                assert beside or y >= top + h + TITLE_PX or top >= y + height + TITLE_PX


def test_curve_is_that_of_plot_loss(tmp_path: Path) -> None:
    found = run(tmp_path, CURVE)
    losses = np.array([loss for _, loss in found["points"]], dtype=float)
    whole, thinned = found["smoothed"]
    assert [value for _, value in whole] == pytest.approx(smooth(losses).tolist())
    assert [step for step, _ in thinned] == list(range(4, 41, 4))
    parts = [losses[max(0, first - 1) : first + 3] for first in range(0, 41, 4)]  # steps from 1
    assert found["columns"] == [
        [max(1, first), min(part), max(part)]
        for first, part in zip(range(0, 41, 4), parts, strict=True)
    ]
    assert 300 < found["lines"] < 3 * 300
    assert [value for _, value in found["late"]] == [value for _, value in whole], "from a state"


def test_curve_has_the_colours_of_plot_loss() -> None:
    text = (ROOT / "js" / "training" / "curve.js").read_text()
    for theme, look in LOOKS.items():
        found = re.search(rf"{theme.upper()} = {{ (.*) }}", text)
        assert found is not None
        assert found[1] == (
            f'smooth: "{look.smooth}", loss: "{look.raw}", held: "{look.validation}"'
        )


def test_nodes_of_events_are_found_in_the_graph_that_is_shown(tmp_path: Path) -> None:
    trainer, nested, none = 0, 1, -1
    found = run(tmp_path, FIND)["found"]
    assert found[:5] == [trainer, nested, none, none, none], "one is of another pack, two are gone"
    assert found[5:] == [none, none], "queued without a graph, and from another one"


def test_errors_are_shown_in_a_toast(tmp_path: Path) -> None:
    found = run(tmp_path, ERRORS)
    assert found["shown"] == [["error", "Settings: rank is 0.", "Change them."]]


def test_plot_is_queued_as_dark_or_light_as_the_page(tmp_path: Path) -> None:
    found = run(tmp_path, PLOT)
    by_page = ["dark", "light", "light", "dark"]
    assert found["queued"] == [*by_page, "light"], "what is chosen stays on a dark page"
    assert found["kept"] == "light"
    assert found["others"] == ["name", "value"], "other nodes are left alone"


def test_plot_in_the_body_has_the_steps_and_losses_of_its_runs(tmp_path: Path) -> None:
    found = run(tmp_path, PLOT)
    assert found["titles"] == [["a", "b"], ["a (1)", "b (1)", "a (2)"]], "a list of loss maps"
    assert found["starts"] == [400, 6, 0], "the step before the first"
    assert found["columns"] == [[405, 1, 1], [410, 2, 3], [420, 4, 4]], "the axis begins at 400"
    assert found["nearest"] == [405, 405, 410, 420]
    plain, log = found["ranges"]
    low, high = 0.102, 0.198  # all but two of a hundred at either end
    margin = 0.06 * (high - low)
    assert plain == pytest.approx([low - margin, high + margin]), "a spike flattens nothing"
    assert log == pytest.approx([low / 1.1, high * 1.1])
    assert found["nothing"] is None
    idle, two, three = found["heights"]
    assert (two - idle, three - two) == (140 + 2 * 24 + 3 * 18 + 2 * 8 - 2 * 18, 18), "a row each"


def test_dropped_pictures_go_into_a_folder_which_is_chosen(tmp_path: Path) -> None:
    found = run(tmp_path, UPLOAD)
    assert found["takes"] == [True, False, False, True]
    assert found["sent"] == [
        ["/upload/image", "POST", name, "my dog", "input"] for name in ("a.PNG", "a.txt", "b.jpeg")
    ]
    assert found["after"] == {"folder": "my dog", "told": "my dog", "listed": "my dog"}
    assert found["asked"] == ["subject", "my dog", "my dog"], "what is chosen, or a first name"
    assert found["num"] == 4, "nothing is sent after Cancel, one more in vain"
    assert found["told"] == ["a.PNG: 400", "None of these files is a picture or a caption."]
    assert found["others"] == 1, "other nodes are left alone"
    assert found["button"] == ["upload pictures", False, False]


def test_export_tells_in_its_body_where_it_lies_as_plain_text(tmp_path: Path) -> None:
    told = run(tmp_path, EXPORT)
    assert told["before"][0].startswith("Where the export lies")
    assert told["after"] == "output/x\n<b>two</b>\nthree"
    assert told["html"] is None
    assert told["size"] == [300, 60 + 3 * 17 + 2 * 10]  # three lines of text and their margins
    assert (told["saved"], told["others"]) == (False, 0)


def test_notification_tells_the_end_to_those_who_look_elsewhere(tmp_path: Path) -> None:
    found = run(tmp_path, NOTIFY)
    assert found["made"] == [
        ["my dog", "done: 2 steps in 0:01, loss 0.1000"],
        ["my dog", "ended by an error: no"],
    ]
    assert found["usual"] is False
    assert found["warned"] == ["The browser shows no notifications"], "asked once, and refused"
    assert found["lines"] == [
        "", "1 more in the queue: about 12:34", "2 more in the queue: time unknown",
        "3 more in the queue: about 2:02:05",
    ]  # fmt: skip


def test_runs_are_compared_by_prompt_seed_and_step_and_their_sparklines_grow(
    tmp_path: Path,
) -> None:
    losses = [0.5 + np.sin(step) / (1 + step) for step in range(137)]
    told = run(tmp_path, RUNS.replace("LOSSES", json.dumps(losses)))
    whole = Growing([{"step": step + 1, "loss": loss} for step, loss in enumerate(losses)])
    np.testing.assert_allclose(told["sparks"], whole.sparkline(), rtol=1e-4)
    assert (told["isWhole"], told["misses"]) == (True, False)
    assert told["coarse"] == [4, 4, 4, 2, 2, 2]
    assert told["labels"] == [
        "dog (seed 5)", "cat (seed 5)", "(empty) (seed unknown)", "hat (seeds differ)"
    ]  # fmt: skip
    assert told["dog"] == [[["5", 10], ["5", 20]], [["5", 10]]]
    assert told["hat"] == [[["1", 20]], [["2", 20]]]
    assert told["steps"] == [10, 20]
    assert told["names"] == ["dog (3)", "cat", "a_b (2)", "_", "run"]
