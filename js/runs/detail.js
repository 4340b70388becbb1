// One run: its curve, previews, settings, states and files, and what can be done with it.

import { make } from "../body.js";
import { tr } from "../locale.js";
import { makeStrip } from "../training/strip.js";
import { loadGraph, putSettings, resume } from "./graph.js";
import { Plot } from "./plot.js";
import { pathOf, post, trying } from "./store.js";
import { bytes, count, date, duration, loss, methodName, sizeOf, stateName, steps, written } from "./words.js";

const STRIP_PX = 300;
export const button = (textContent, onclick, more = {}) =>
  make("button", { type: "button", textContent, onclick, ...more });

// An element, a function that shows a run in it, and one that says that a run is being read.
// `act`: back(), remove(run), free(run), changed(row).
export function makeDetail(act) {
  const plot = new Plot();
  const [strip, showPreviews, stripHeight] = makeStrip();
  const body = make("div", { className: "scrolled details" });
  const element = make("section", { className: "detail", ariaLabel: "Training run" }, body);
  let shown = null;
  function show(run) {
    const isNew = shown?.run !== run.run;
    const written = body.querySelector(":focus")?.matches?.("input[type=text], textarea");
    shown = run;
    plot.show([curveOf(run)]);
    showPreviews(run.run, run.curve.previews);
    strip.style.maxHeight = `${Math.min(STRIP_PX, stripHeight())}px`;
    if (written && !isNew) return; // what is being typed stays
    const open = new Set([...body.querySelectorAll("details[open]")].map((one) => one.className));
    const focused = body.querySelector(":focus")?.textContent;
    body.replaceChildren(...parts(run, plot, strip, act));
    for (const one of body.querySelectorAll("details")) one.open ||= open.has(one.className);
    if (isNew) {
      body.scrollTop = 0;
      body.querySelector("button")?.focus();
    } else if (focused) {
      [...body.querySelectorAll("button, summary")].find((b) => b.textContent === focused)?.focus();
    }
  }
  function wait(title) {
    shown = null;
    body.replaceChildren(button("← all runs", () => act.back(), { className: "back" }),
      make("p", { role: "status", textContent: tr("Reading {name} …", { name: title }) }));
    body.querySelector("button").focus();
  }
  return [element, show, wait];
}

export function curveOf(run) {
  return {
    title: run.title, loss: run.curve.loss, validation: run.curve.validation, best: run.best,
    states: run.states.map(({ step }) => step),
    previews: [...new Set(run.curve.previews.map(({ step }) => step))],
  };
}

function parts(run, plot, strip, act) {
  return [
    button("← all runs", () => act.back(), { className: "back" }),
    ...heading(run, act),
    facts(run),
    ...(run.problems.length ? [list("problems", run.problems)] : []),
    make("h3", { textContent: "Loss" }),
    plot.element,
    ...(run.curve.previews.length ? [make("h3", { textContent: "Previews" }), strip] : []),
    make("h3", { textContent: "In the graph" }),
    inGraph(run),
    ...kept(run),
    make("h3", { textContent: "Settings" }),
    ...settings(run),
    files(run),
    make("h3", { textContent: "Disk space" }),
    make("div", { className: "buttons" },
      button("free disk space …", () => act.free(run), { disabled: run.pinned }),
      button("delete …", () => act.remove(run), { disabled: run.pinned || run.state === "training" }),
      ...(run.pinned ? [make("small", { textContent: "Pinned: nothing of it is deleted." })] : [])),
  ];
}

function heading(run, act) {
  const change = (asked) => trying(async () => act.changed(await post(pathOf(run.run), asked)));
  const title = make("input", {
    type: "text", value: run.title, maxLength: 200, className: "title",
    onchange: () => change({ title: title.value }),
    onkeydown: ({ key }) => key === "Enter" && title.blur(),
  });
  const note = make("textarea", {
    value: run.note, rows: 2, maxLength: 10_000, placeholder: "What was tried, what came of it",
    onchange: () => change({ note: note.value }),
  });
  const pin = button(run.pinned ? "pinned" : "pin", () => change({ pinned: !run.pinned }), {
    ariaPressed: String(run.pinned), title: "A pinned run is neither deleted nor made smaller.",
  });
  return [
    make("label", { className: "field" }, "Name", title),
    make("label", { className: "field" }, "Note", note),
    make("div", { className: "buttons" }, pin),
  ];
}

function facts(run) {
  const rows = [
    ["State", stateName(run.state)],
    ["Method", methodName(run.method)],
    ["Model", run.model || "unknown"],
    ["Architecture", run.architecture_title || "unknown"],
    ["Data", run.pictures ? `${run.data}, ${count(run.pictures)} pictures` : run.data || "unknown"],
    ["Length", steps(run)],
    ["Last loss", loss(run.last_loss)],
    ["Best", best(run.best)],
    ["Began", date(run.began, true)],
    ["Took", duration(run.seconds)],
    ["Size", bytes(sizeOf(run))],
    ["Folder", run.run],
  ];
  return make("dl", {}, ...rows.flatMap(([term, textContent]) =>
    [make("dt", { textContent: term }), make("dd", { textContent })]));
}

function best(found) {
  if (!found) return "unknown";
  const of = found.of === "validation" ? "held out" : "smoothed loss";
  const near = found.kept != null && found.kept !== found.step
    ? `; kept nearest to it: step ${count(found.kept)}` : "";
  return `step ${count(found.step)}, ${of} ${loss(found.loss)}${near}`;
}

const list = (className, texts) => make("ul", { className },
  ...texts.map((textContent) => make("li", { textContent })));

function inGraph(run) {
  const whole = button("open its whole graph", () => trying(() => loadGraph(run)), {
    disabled: !run.graph,
    title: run.graph ? "As a workflow of its own" : "This run does not say what its graph was.",
  });
  const put = button("put settings into the graph", () => trying(() => putSettings(run)), {
    title: "Onto the selected or only training node of this method, else onto a new one",
  });
  return make("div", { className: "buttons" }, put, whole);
}

function kept(run) {
  if (!run.states.length) return [];
  const item = ({ step, bytes: size }) => make("li", {},
    make("span", { textContent: `step ${count(step)}, ${bytes(size)}` }),
    button("resume", () => trying(() => resume(run, step)), {
      ariaLabel: `resume from step ${count(step)}`,
      title: "Sets resume_from and resume_step of Run Settings: a new run begins there",
    }));
  return [make("h3", { textContent: "Kept states" }),
    make("ul", { className: "states" }, ...run.states.map(item))];
}

// Those that differ from their defaults come first.
export const differs = ({ value, default: usual }) => usual !== null && value !== usual;

function settings(run) {
  if (!run.settings.length) return [make("p", { textContent: "They are not known." })];
  const changed = run.settings.filter(differs);
  const others = run.settings.filter((one) => !differs(one));
  return [
    changed.length ? table(changed, "changed") : make("p", { textContent: "All as by default." }),
    make("details", { className: "usual" },
      make("summary", { textContent: `${count(others.length)} settings at their defaults` }),
      table(others, "same")),
  ];
}

function table(rows, className) {
  const groups = Map.groupBy?.(rows, ({ group }) => group) ?? new Map([["", rows]]);
  const lines = [...groups].flatMap(([group, some]) => [
    make("tr", {}, make("th", { colSpan: 2, scope: "colgroup", textContent: group })),
    ...some.map((one) => make("tr", { title: one.help ?? "" },
      make("td", { textContent: one.label }),
      make("td", {}, written(one.value), ...(className === "changed"
        ? [make("small", { textContent: ` default ${written(one.default)}` })] : [])))),
  ]);
  return make("table", { className }, make("tbody", {}, ...lines));
}

function files(run) {
  const lines = run.files.map((file) => make("tr", {},
    make("td", { textContent: file.file }), make("td", { textContent: bytes(file.bytes) })));
  const summary = `${count(run.files.length)} files, ${bytes(sizeOf(run))}`;
  return make("details", { className: "files" }, make("summary", { textContent: summary }),
    make("table", {}, make("tbody", {}, ...lines)));
}
