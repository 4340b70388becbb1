// A training node has a button while it trains, which ends the run and keeps what was learned.
// The server says when, and does it: nodes/host/stop.py.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const EVENT = "personalize.training";
const ROUTE = "/personalize/stop";
const LABEL = "stop and keep";

// "3", or "7:3" for node 3 of the subgraph that node 7 is.
function find(id) {
  let graph = app.graph.rootGraph ?? app.graph;
  let node;
  for (const step of String(id).split(":")) {
    node = graph?.getNodeById(Number(step));
    graph = node?.subgraph;
  }
  return node;
}

function show(node) {
  const stop = () => api.fetchApi(ROUTE, { method: "POST" });
  const button = node.addWidget("button", LABEL, null, stop, { serialize: false });
  button.serialize = false; // a saved graph has a value for each widget but this one
}

function hide(node) {
  const place = node.widgets.findIndex((widget) => widget.name === LABEL);
  if (place >= 0) node.widgets.splice(place, 1);
}

function update({ node: id, training }) {
  const node = find(id);
  if (!node) return;
  hide(node);
  if (training) show(node);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "personalize.stop",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => update(detail));
  },
  // A page that is loaded, or a graph that is opened, while a node trains.
  async afterConfigureGraph() {
    const { node } = await (await api.fetchApi(ROUTE)).json();
    if (node !== null) update({ node, training: true });
  },
});
