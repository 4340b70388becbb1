// Adapter Stack and Compare show the rows that are in use, and one more.

import { app } from "../../scripts/app.js";
import { after } from "./body.js";

const COMPARE = "PersonalizeCompare"; // has room below for its sheet, which stays
const WITH_ROWS = ["PersonalizeAdapterStack", COMPARE];
const NOTHING = "None";
const ROW = /^(?:on|lora|strength_model|strength_clip)_(\d+)$/;

app.registerExtension({
  name: "personalize.stack",
  nodeCreated(node) {
    if (!WITH_ROWS.includes(node.comfyClass)) return;
    const show = () => showRows(node);
    for (const widget of node.widgets ?? []) {
      if (widget.name.startsWith("lora_")) after(widget, "callback", show);
    }
    after(node, "onConnectionsChange", show);
    after(node, "onConfigure", show); // of a saved or copied node
    show();
  },
});

function showRows(node) {
  const rowOf = ({ name }) => Number(ROW.exec(name)?.[1] ?? 0);
  const wired = new Set(node.inputs?.filter(({ link }) => link != null).map(({ name }) => name));
  const used = (widget) =>
    wired.has(widget.name) || (widget.name.startsWith("lora_") && widget.value !== NOTHING);
  const last = Math.max(0, ...node.widgets.filter(used).map(rowOf));
  let changed = false;
  for (const widget of node.widgets) {
    const hidden = rowOf(widget) > last + 1;
    changed ||= hidden !== !!widget.hidden;
    widget.hidden = hidden; // the classic renderer
    if (widget.options) widget.options.hidden = hidden; // Nodes 2.0
  }
  if (!changed) return;
  const needed = node.computeSize()[1];
  const height = node.comfyClass === COMPARE ? Math.max(node.size[1], needed) : needed;
  node.setSize([node.size[0], height]);
  node.setDirtyCanvas?.(true, true);
}
