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
  const element = make("section", { className: "detail", ariaLabel: tr("Training run") }, body);
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
    const focused = body.querySelector(":focus");
    body.replaceChildren(...parts(run, plot, strip, act));
    for (const one of body.querySelectorAll("details")) one.open ||= open.has(one.className);
    if (isNew) {
      body.scrollTop = 0;
      body.querySelector("button")?.focus();
    } else if (focused) {
      const again = [...body.querySelectorAll("button, summary")];
      const same = body.contains(focused) ? focused : again.find((b) => keyOf(b) === keyOf(focused));
      same?.focus({ preventScroll: true });
    }
  }
  function wait(title) {
    shown = null;
    body.replaceChildren(button(tr("← all runs"), () => act.back(), { className: "back" }),
      make("p", { role: "status", textContent: tr("Reading {name} …", { name: title }) }));
    body.querySelector("button").focus();
  }
  return [element, show, wait];
}

const keyOf = ({ ariaLabel, className, textContent }) => ariaLabel || className || textContent;

export function curveOf(run) {
  return {
    title: run.title, loss: run.curve.loss, validation: run.curve.validation, best: run.best,
    states: run.states.map(({ step }) => step),
    previews: [...new Set(run.curve.previews.map(({ step }) => step))],
  };
}

function parts(run, plot, strip, act) {
  return [
    button(tr("← all runs"), () => act.back(), { className: "back" }),
    ...heading(run, act),
    facts(run),
    ...(run.problems.length ? [list("problems", run.problems)] : []),
    make("h3", { textContent: tr("Loss") }),
    plot.element,
    ...(run.curve.previews.length ? [make("h3", { textContent: tr("Previews") }), strip] : []),
    make("h3", { textContent: tr("In the graph") }),
    inGraph(run),
    ...kept(run),
    make("h3", { textContent: tr("Settings") }),
    ...settings(run),
    files(run),
    make("h3", { textContent: tr("Disk space") }),
    make("div", { className: "buttons" },
      button(tr("free disk space …"), () => act.free(run), { disabled: run.pinned }),
      button(tr("delete …"), () => act.remove(run),
        { disabled: run.pinned || run.state === "training" }),
      ...(run.pinned ? [make("small", { textContent: tr("Pinned: nothing of it is deleted.") })] : [])),
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
    value: run.note, rows: 2, maxLength: 10_000,
    placeholder: tr("What was tried, what came of it"),
    onchange: () => change({ note: note.value }),
  });
  const pin = button(run.pinned ? tr("pinned") : tr("pin"), () => change({ pinned: !run.pinned }), {
    className: "pin", ariaPressed: String(run.pinned),
    title: tr("A pinned run is neither deleted nor made smaller."),
  });
  return [
    make("label", { className: "field" }, tr("Name"), title),
    make("label", { className: "field" }, tr("Note"), note),
    make("div", { className: "buttons" }, pin),
  ];
}

function facts(run) {
  const pictures = { data: run.data, count: count(run.pictures ?? 0) };
  const rows = [
    [tr("State"), stateName(run.state)],
    [tr("Method"), methodName(run.method)],
    [tr("Model"), run.model || tr("unknown")],
    [tr("Architecture"), run.architecture_title || tr("unknown")],
    [tr("Data"), run.pictures ? tr("{data}, {count} pictures", pictures) : run.data || tr("unknown")],
    [tr("Length"), steps(run)],
    [tr("Last loss"), loss(run.last_loss)],
    [tr("Best"), best(run.best)],
    [tr("Began"), date(run.began, true)],
    [tr("Took"), duration(run.seconds)],
    [tr("Size"), bytes(sizeOf(run))],
    [tr("Folder"), run.run],
  ];
  return make("dl", {}, ...rows.flatMap(([term, textContent]) =>
    [make("dt", { textContent: term }), make("dd", { textContent })]));
}

function best(found) {
  if (!found) return tr("unknown");
  const told = { step: count(found.step), loss: loss(found.loss), kept: count(found.kept ?? 0) };
  const text = found.of === "validation" ? tr("step {step}, held out {loss}", told)
    : tr("step {step}, smoothed loss {loss}", told);
  if (found.kept == null || found.kept === found.step) return text;
  return text + tr("; kept nearest to it: step {kept}", told);
}

const list = (className, texts) => make("ul", { className },
  ...texts.map((textContent) => make("li", { textContent })));

function inGraph(run) {
  const whole = button(tr("open its whole graph"), () => trying(() => loadGraph(run)), {
    disabled: !run.graph,
    title: run.graph ? tr("As a workflow of its own")
      : tr("This run does not say what its graph was."),
  });
  const put = button(tr("put settings into the graph"), () => trying(() => putSettings(run)), {
    title: tr("Onto the selected or only training node of this method, else onto a new one"),
  });
  return make("div", { className: "buttons" }, put, whole);
}

function kept(run) {
  if (!run.states.length) return [];
  const item = ({ step, bytes: size }) => make("li", {},
    make("span", { textContent: tr("step {step}, {size}", { step: count(step), size: bytes(size) }) }),
    button(tr("resume"), () => trying(() => resume(run, step)), {
      ariaLabel: tr("resume from step {step}", { step: count(step) }),
      title: tr("Sets resume_from and resume_step of Run Settings: a new run begins there"),
    }));
  return [make("h3", { textContent: tr("Kept states") }),
    make("ul", { className: "states" }, ...run.states.map(item))];
}

// Those that differ from their defaults come first.
export const differs = ({ value, default: usual }) => usual !== null && value !== usual;

function settings(run) {
  if (!run.settings.length) return [make("p", { textContent: tr("They are not known.") })];
  const changed = run.settings.filter(differs);
  const others = run.settings.filter((one) => !differs(one));
  return [
    changed.length ? table(changed, "changed") : make("p", { textContent: tr("All as by default.") }),
    make("details", { className: "usual" },
      make("summary", {
        textContent: tr("Settings at their defaults: {count}", { count: count(others.length) }),
      }),
      table(others, "same")),
  ];
}

const usually = (one) => tr("default {value}", { value: written(one.default) });

function table(rows, className) {
  const groups = Map.groupBy?.(rows, ({ group }) => group) ?? new Map([["", rows]]);
  const lines = [...groups].flatMap(([group, some]) => [
    make("tr", {}, make("th", { colSpan: 2, scope: "colgroup", textContent: group })),
    ...some.map((one) => make("tr", { title: one.help ?? "" },
      make("td", { textContent: one.label }),
      make("td", {}, written(one.value), ...(className === "changed"
        ? [make("small", { textContent: ` ${usually(one)}` })] : [])))),
  ]);
  return make("table", { className }, make("tbody", {}, ...lines));
}

function files(run) {
  const lines = run.files.map((file) => make("tr", {},
    make("td", { textContent: file.file }), make("td", { textContent: bytes(file.bytes) })));
  const what = { count: count(run.files.length), size: bytes(sizeOf(run)) };
  const summary = run.files.length === 1 ? tr("1 file, {size}", what)
    : tr("{count} files, {size}", what);
  return make("details", { className: "files" }, make("summary", { textContent: summary }),
    make("table", {}, make("tbody", {}, ...lines)));
}
