// Plot Loss shows its losses in its body, to be looked at by pointer and keys. And "auto" becomes
// what the page shows, dark or light, when a graph with it is queued.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addBody, after, make } from "../body.js";
import { tr } from "../locale.js";
import { Plot } from "../runs/plot.js";
import { isLight } from "./curve.js";
import { find } from "./find.js";

const NODE = "PersonalizeLossPlot";
const JOBS = "/jobs"; // of the host
const ENDED = "completed,failed,cancelled";
const MOST_JOBS = 8; // that are asked what a node has shown
const [WIDTH_PX, HEIGHT_PX] = [440, 520];
const LABELS_PX = 60; // what more room there is goes to the plot
const PALETTE_MS = 200; // until a new one is in place
const PADDING_PX = 6;
const STYLE = `
.personalize-plot { color: var(--input-text, #ddd); font: 12px/1.4 system-ui, sans-serif; }
.personalize-plot .plotted { box-sizing: border-box; height: 100%; padding: ${PADDING_PX}px;
  overflow: hidden; display: flex; flex-direction: column; border-radius: 6px;
  background: var(--comfy-menu-bg, #353535); }
.personalize-plot .plotted > * { flex: none; }
.personalize-plot .plotted .frame { flex: 1; height: auto; min-height: 0; }
.personalize-plot :focus-visible { outline: 2px solid var(--p-primary-color, #58f); }
`;

const views = new WeakMap(); // by node

class View {
  constructor(node) {
    this.plot = new Plot(tr("The losses show here when the graph has run."));
    this.element = make("div", { className: "personalize-plot" }, this.plot.element);
    this.fit = addBody(node, "loss_plot", this.element, () => this.height(), true);
    this.grow();
    // In place of the picture, which other nodes get: with Nodes 2.0, and on the canvas.
    node.hideOutputImages = true;
    node.onDrawBackground = () => {};
    after(node, "onExecuted", (output) => this.take(output));
  }

  height() {
    return 2 * PADDING_PX + this.plot.needs();
  }

  grow() {
    this.element.style.minHeight = `${this.height()}px`;
    this.fit();
  }

  // What nodes/results/plot.py says: of a list of loss maps, one after the other.
  take(output) {
    if (!output?.losses) return;
    this.isFilled = true;
    this.plot.show(runsOf(output.losses));
    this.grow();
  }
}

export function runsOf(texts) {
  const parts = texts.map((text) => JSON.parse(text));
  if (parts.length === 1) return parts[0];
  const named = (run, number) => ({ ...run, title: `${run.title} (${number})` });
  return parts.flatMap((runs, place) => runs.map((run) => named(run, place + 1)));
}

const root = () => app.graph?.rootGraph ?? app.graph;
const nodesIn = (graph) =>
  (graph?.nodes ?? []).flatMap((node) => (node.subgraph ? nodesIn(node.subgraph) : [node]));
const shown = () => nodesIn(root()).filter((node) => views.has(node));

// A page that is loaded anew: what the last prompts of this graph have shown.
async function recall() {
  const graph = root()?.id;
  const isEmpty = () => shown().some((node) => !views.get(node).isFilled);
  if (!graph || !isEmpty()) return;
  const asked = new URLSearchParams({ workflow_id: graph, status: ENDED, limit: MOST_JOBS });
  const reply = await api.fetchApi(`${JOBS}?${asked}`);
  if (reply.status !== 200) return;
  for (const { id } of (await reply.json()).jobs) {
    if (!isEmpty()) return;
    const job = await api.fetchApi(`${JOBS}/${encodeURIComponent(id)}`);
    const outputs = job.status === 200 ? (await job.json()).outputs : {};
    for (const [node, output] of Object.entries(outputs ?? {})) {
      const view = views.get(find({ graph, node }));
      if (view && !view.isFilled) view.take(output);
    }
  }
}

// The host's key of a node among what nodes have shown.
const keyOf = ({ id, graph }) => (graph === root() ? `${id}` : `${graph?.id}:${id}`);

app.registerExtension({
  name: "personalize.plot",
  setup() {
    document.head.append(make("style", { textContent: STYLE }));
    const redraw = () => shown().forEach((node) => views.get(node).plot.recolour());
    const palette = () => setTimeout(redraw, PALETTE_MS);
    app.ui?.settings?.addEventListener?.("Comfy.ColorPalette.change", palette);
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widget = node.widgets?.find(({ name }) => name === "theme");
    const now = () => (isLight() ? "light" : "dark");
    // A saved graph keeps "auto"; only what is queued has the answer.
    if (widget) widget.serializeValue = () => (widget.value === "auto" ? now() : widget.value);
    const labels = node.widgets?.find(({ name }) => name === "labels");
    if (labels?.options) labels.options.getMaxHeight = () => LABELS_PX;
    views.set(node, new View(node));
    const [width, height] = node.size;
    node.setSize([Math.max(width, WIDTH_PX), Math.max(height, HEIGHT_PX)]);
  },
  // A graph in another tab of the page that is shown again, and one of the host's list of jobs.
  onNodeOutputsUpdated(outputs) {
    for (const node of shown()) views.get(node).take(outputs[keyOf(node)]);
  },
  afterConfigureGraph() {
    recall().catch(console.warn); // which the page does not wait for
  },
});
