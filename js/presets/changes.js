// What a preset would change on a training node and on the settings nodes wired to it, and the
// changing itself. Where a needed settings node is missing, it is made, wired, and put beside.

import { app } from "../../../scripts/app.js";
import { tr } from "../locale.js";

const TITLE_PX = 30; // of a node, above its position
const GAP_PX = 40;
const TALLER_PX = 90; // at most, than a new node says: Nodes 2.0 draws its widgets larger
const MEASURED_MS = 250; // what a new node may take to be drawn and measured
const PASSES = new Set(["Reroute"]); // hands on what comes in
const MUTED = new Set([2, 4]); // never, bypassed

// Where an input's settings stand: {node}, {} where none is wired, or {why} they cannot be changed.
function placeOf(trainer, input, nodes) {
  if (input === null) return { node: trainer };
  const slot = trainer.inputs?.findIndex((one) => one.name === input) ?? -1;
  if (slot < 0) return { why: tr("this node has no {input}", { input }) };
  if (trainer.inputs[slot].link == null) return {};
  let node = trainer.getInputNode(slot);
  while (node && PASSES.has(node.type)) node = node.getInputNode(0);
  if (!node) return { why: tr("{input} comes from outside of this subgraph", { input }) };
  const from = { input, node: node.title };
  if (node.type !== nodes[input]) return { why: tr("{input} comes from {node}", from) };
  if (MUTED.has(node.mode)) return { why: tr("{node} is muted or bypassed", from) };
  return { node };
}

function whyKept(node, widget) {
  if (!widget) return tr("this node has no such widget");
  const input = node.inputs?.find((one) => one.widget?.name === widget.name);
  return input?.link == null ? undefined : tr("a wire sets it");
}

function widgetOf(node, name) {
  return node?.widgets?.find((one) => one.name === name);
}

// One row for each setting of the preset: {name, input, now, then, node?, why?}. Those with a `why`
// stay as they are; those without a node need one to be made, unless `now`, the default, is right.
export function changesOf(trainer, preset, nodes) {
  const places = new Map();
  return preset.settings.map(({ name, value: then, default: now, input }) => {
    if (!places.has(input)) places.set(input, placeOf(trainer, input, nodes));
    const { node, why } = places.get(input);
    if (!node) return { name, input, now, then, why };
    const widget = widgetOf(node, name);
    return { name, input, now: widget?.value, then, node, why: whyKept(node, widget) };
  });
}

export function isChange(row) {
  return !row.why && row.now !== row.then;
}

// Makes the rows so, as one step of undo where the front end can. That step ends when Nodes 2.0 has
// measured what is new: a size that comes later would be an undo of its own.
export async function apply(trainer, rows, nodes) {
  app.canvas?.emitBeforeChange?.();
  const made = new Map();
  for (const { name, input, then, node } of rows.filter(isChange)) {
    if (!node && !made.has(input)) {
      made.set(input, make(trainer, input, nodes[input], [...made.values()]));
    }
    set(node ?? made.get(input), name, then);
  }
  trainer.setDirtyCanvas?.(true, true);
  if (made.size) await new Promise((resolve) => setTimeout(resolve, MEASURED_MS));
  app.canvas?.emitAfterChange?.();
}

function set(node, name, value) {
  const widget = widgetOf(node, name);
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}

function make(trainer, input, type, made) {
  const node = globalThis.LiteGraph.createNode(type);
  const sizeOf = (one, isNew) => [one.size[0], one.size[1] + (isNew ? TALLER_PX : 0)];
  const taken = trainer.graph.nodes.map((one) => [...one.pos, ...sizeOf(one, made.includes(one))]);
  node.pos = freeSpot(taken, trainer, ...sizeOf(node, true));
  trainer.graph.add(node);
  const slot = trainer.inputs.findIndex((one) => one.name === input);
  node.connect(0, trainer, slot);
  return node;
}

// Left of the trainer or below it, whichever is nearer, moved down past what lies there already.
function freeSpot(taken, { pos: [x, y], size }, width, height) {
  const beside = firstFree(taken, x - width - GAP_PX, y, width, height);
  const below = firstFree(taken, x, y + size[1] + TITLE_PX + GAP_PX, width, height);
  return beside[1] <= below[1] ? beside : below;
}

function firstFree(taken, left, top, width, height) {
  const room = TITLE_PX + GAP_PX;
  const column = taken.filter(([x, , w]) => x < left + width + GAP_PX && left < x + w + GAP_PX);
  column.sort((a, b) => a[1] - b[1]);
  for (const [, y, , h] of column) {
    if (y < top + height + room && top < y + h + room) top = y + h + room;
  }
  return [left, top];
}
