// A training node has a button while it trains, which ends the run and keeps what was learned.
// The server says when, and does it: nodes/host/runs/stop.py.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const EVENT = "personalize.training";
const ROUTE = "/personalize/stop";
const BUTTON = "stop and keep";
const STOPPING = "stopping ...";

// "3", or "7:3" for node 3 of the subgraph that node 7 is.
function find(id) {
  let graph = app.graph.rootGraph ?? app.graph;
  let node;
  for (const step of String(id).split(":")) {
    node = graph?.getNodeById(Number(step));
    graph = node?.subgraph;
  }
  // A page may show another graph, whose node of that id is somebody else's.
  return node?.comfyClass?.startsWith("Personalize") ? node : undefined;
}

function show(node, training) {
  const headers = { "Content-Type": "application/json" };
  const stop = () => {
    button.label = STOPPING;
    button.disabled = true; // until the step has ended
    node.setDirtyCanvas(true, true);
    api.fetchApi(ROUTE, { method: "POST", headers, body: JSON.stringify(training) });
  };
  const button = node.addWidget("button", BUTTON, null, stop, { serialize: false });
  button.serialize = false; // a saved graph has a value for each widget but this one
}

function hide(node) {
  const place = (node.widgets ?? []).findIndex((widget) => widget.name === BUTTON);
  if (place >= 0) node.widgets.splice(place, 1);
}

function update({ node: id, run, training }) {
  const node = find(id);
  if (!node) return;
  hide(node);
  if (training) show(node, { node: id, run });
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "personalize.stop",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => update(detail));
  },
  // A page that is loaded, or a graph that is opened, while a node trains.
  async afterConfigureGraph() {
    const atWork = await (await api.fetchApi(ROUTE)).json();
    if (atWork.node !== null) update({ ...atWork, training: true });
  },
});
