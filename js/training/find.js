// Which node of the graph that is shown an event of the server speaks of.

import { app } from "../../../scripts/app.js";

// "3", or "7:3" for node 3 of the subgraph that node 7 is. `graph` is the graph's own id; a prompt
// that was queued without one came from no page, and its numbers mean nothing here.
export function find({ graph, node: id }) {
  let within = app.graph?.rootGraph ?? app.graph;
  if ((graph ?? undefined) !== (within?.id ?? undefined)) return undefined;
  let node;
  for (const step of String(id).split(":")) {
    node = within?.getNodeById(Number(step));
    within = node?.subgraph;
  }
  return node?.comfyClass?.startsWith("Personalize") ? node : undefined;
}
