// A run's settings go back into the graph: onto its method's training node and the settings nodes
// wired to it. Or its whole graph is opened, in a workflow of its own.

import { app } from "../../../scripts/app.js";
import { tr } from "../locale.js";
import { apply, changesOf, isChange } from "../presets/changes.js";
import { RefusedError, get, pathOf, tell } from "./store.js";
import { count, written } from "./words.js";

const TRAINERS = {
  lora: "PersonalizeTrainLora",
  dreambooth: "PersonalizeTrainDreamBooth",
  textual_inversion: "PersonalizeTrainTextualInversion",
};
const NODES = {
  optimizer_settings: "PersonalizeOptimizer",
  loss_settings: "PersonalizeLoss",
  run_settings: "PersonalizeRun",
  memory_settings: "PersonalizeMemory",
};
const INPUTS = Object.fromEntries(Object.entries(NODES).map(([input, type]) => [type, input]));
const RESUME = [
  { name: "resume_from", default: "", input: "run_settings" },
  { name: "resume_step", default: 0, input: "run_settings" },
];

// {settings, prompt?, workflow?, problems}; settings by the class of a node and its widgets.
async function graphOf(run) {
  try {
    return await get(`${pathOf(run)}/graph`);
  } catch (error) {
    if (!(error instanceof RefusedError) || !error.settings) throw error;
    return { settings: error.settings, problems: [], why: error.message };
  }
}

// As changes.js takes them.
function asPreset(settings, shown, method, resume) {
  const usual = Object.fromEntries(shown.map((one) => [one.name, one.default]));
  const rows = [];
  for (const [type, values] of Object.entries(settings)) {
    if (type !== TRAINERS[method] && !INPUTS[type]) continue;
    for (const [name, value] of Object.entries(values)) {
      rows.push({ name, value, default: usual[name], input: INPUTS[type] ?? null });
    }
  }
  if (!resume) return { settings: rows };
  const begin = RESUME.map((row, place) => ({ ...row, value: resume[place] }));
  const others = rows.filter(({ name }) => !begin.some((one) => one.name === name));
  return { settings: [...others, ...begin] };
}

// The training node that is meant: {node}, {} where there is none, or {why} it is not clear.
function trainerOf(type, nodes, selected) {
  const all = nodes.filter((node) => node.type === type);
  const among = all.filter((node) => selected.includes(node));
  if (among.length === 1) return { node: among[0] };
  if (all.length < 2) return { node: all[0] };
  const what = { count: count(all.length), node: all[0].title };
  return { why: tr("The graph has {count} nodes like {node}: select the one that is meant.", what) };
}

function target(type) {
  const selected = Object.values(app.canvas?.selected_nodes ?? {});
  return trainerOf(type, app.canvas?.graph?.nodes ?? [], selected);
}

function newTrainer(type) {
  const node = globalThis.LiteGraph.createNode(type);
  const nodes = app.canvas.graph.nodes;
  const right = nodes.map(({ pos, size }) => pos[0] + size[0]);
  const top = nodes.map(({ pos }) => pos[1]);
  const [width] = node.size;
  node.pos = nodes.length ? [Math.max(...right) + width, Math.min(...top)] : [width + 100, 100];
  app.canvas.graph.add(node);
  return node;
}

async function putBack(run, settings, resume) {
  const type = TRAINERS[run.method];
  if (!type) return tell("error", tr("There is no training node for {run}.", { run: run.method || run.run }));
  const { node, why } = target(type);
  if (why) return tell("warn", why);
  app.canvas.emitBeforeChange?.(); // with the new node, one step of undo
  const trainer = node ?? newTrainer(type);
  const rows = changesOf(trainer, asPreset(settings, run.settings, run.method, resume), NODES);
  const changes = rows.filter(isChange);
  await apply(trainer, rows, NODES);
  app.canvas.emitAfterChange?.();
  app.canvas.selectNode?.(trainer);
  if (!node) app.canvas.centerOnNode?.(trainer);
  said(run, changes, rows.filter((row) => row.why && row.now !== row.then), !node);
}

function said(run, changes, kept, isNew) {
  const words = ({ name, now, then }) => `${name} ${written(now)} → ${written(then)}`;
  const parts = [
    isNew ? tr("A new node has them; wire its model and pictures.") : "",
    changes.length ? changes.map(words).join(", ") : tr("All was set like this already."),
    ...kept.map((row) => tr("Left as it is: {name}, here {value}: {why}.",
      { ...row, value: written(row.then) })),
  ];
  const detail = parts.filter(Boolean).join("\n");
  tell(kept.length ? "warn" : "success", tr("Settings of {title}", run), detail);
}

export async function putSettings(run) {
  const { settings } = await graphOf(run.run);
  await putBack(run, settings);
}

// In a workflow of its own: what was open stays open beside it, changed or not. Under a name that
// no workflow has: the front end would put the graph into the place of that one.
async function openGraph(run, found, asPage = true) {
  const name = freeName(run.title, (path) => app.extensionManager?.workflow?.getWorkflowByPath?.(path));
  if (found.workflow && asPage) await app.loadGraphData(found.workflow, true, true, name);
  else await app.loadApiJson(found.prompt, name);
  if (found.problems.length) tell("warn", tr("Graph of {title}", run), found.problems.join("\n"));
}

// A title as a name of a workflow; `isTaken` knows the paths of those there are.
export function freeName(title, isTaken) {
  const plain = title.replace(/[\\/:*?"<>|]+|^\.+/g, "_").trim() || "run";
  for (let number = 1; ; number++) {
    const name = number === 1 ? plain : `${plain} (${number})`;
    if (!isTaken(`workflows/${name}.json`)) return name;
  }
}

export async function loadGraph(run) {
  const found = await graphOf(run.run);
  if (!found.prompt && !found.workflow) return tell("error", ...halves(found.why));
  await openGraph(run, found);
  const detail = found.workflow ? tr("It is open as a workflow of its own.")
    : tr("It is open as a workflow of its own, without the layout: that was not kept.");
  tell("success", tr("Graph of {title}", run), detail);
}

// A graph that begins with a state of this run: the one that is open if it can, else the run's own.
export async function resume(run, step) {
  const found = await graphOf(run.run);
  const { node, why } = target(TRAINERS[run.method]);
  if (!node && !why && (found.prompt || found.workflow)) {
    // The graph of a sweep has no training node; the run's own in API form has one.
    const asPage = found.workflow?.nodes.some((node) => node?.type === TRAINERS[run.method]);
    await openGraph(run, found, asPage || !found.prompt);
  }
  await putBack(run, found.settings, [run.run, step]);
  const planned = run.settings.find(({ name }) => name === "steps")?.value;
  if (step >= Math.max(planned ?? 0, run.planned_steps)) {
    const at = { step: count(step) };
    const detail = tr("The state is of step {step}: set more steps than that.", at);
    tell("info", tr("Nothing is left to train yet"), detail);
  }
}

function halves(text) {
  const [summary, ...advice] = text.split("\n");
  return [summary, advice.join("\n")];
}
