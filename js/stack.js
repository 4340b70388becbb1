// Adapter Stack and Compare show the rows that are in use, and one more. In a stack, what limits a
// row to a part of sampling or to blocks is shown where it is set, and for all rows in use at a
// press of a button.

import { app } from "../../scripts/app.js";
import { after } from "./body.js";
import { tr } from "./locale.js";

const COMPARE = "PersonalizeCompare"; // has room below for its sheet, which stays, and no limits
const WITH_ROWS = ["PersonalizeAdapterStack", COMPARE];
const NOTHING = "None";
const ROW = /^(on|lora|strength_model|strength_clip|start|end|blocks)_(\d+)$/;
const NO_LIMIT = { start: 0, end: 1, blocks: "" };
const SHOWN = "show limits"; // the property that a graph keeps; its values stay as they are
const BUTTON = "limits";

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
    if (node.comfyClass !== COMPARE) addButton(node, show);
    show();
  },
});

function addButton(node, show) {
  const press = () => {
    node.properties[SHOWN] = !node.properties[SHOWN];
    show();
  };
  const button = node.addWidget("button", BUTTON, null, press, { serialize: false });
  button.serialize = false; // a saved graph has a value for each widget but this one
}

function showRows(node) {
  const parts = node.widgets.map((widget) => partOf(node, widget));
  const last = Math.max(0, ...parts.filter(({ used }) => used).map(({ row }) => row));
  const limited = new Set(parts.filter((part) => part.limits && part.set).map(({ row }) => row));
  let changed = false;
  for (const { widget, row, limits } of parts) {
    const asked = node.properties[SHOWN] && row <= Math.max(1, last);
    const hidden = row > last + 1 || (limits && !asked && !limited.has(row));
    changed ||= hidden !== !!widget.hidden;
    widget.hidden = hidden; // the classic renderer
    if (widget.options) widget.options.hidden = hidden; // Nodes 2.0
    if (widget.name !== BUTTON) continue;
    widget.label = node.properties[SHOWN] ? tr("hide limits") : tr("show limits");
  }
  if (changed) {
    const needed = node.computeSize()[1];
    const height = node.comfyClass === COMPARE ? Math.max(node.size[1], needed) : needed;
    node.setSize([node.size[0], height]);
  }
  // Wires end where widgets are, once those have moved; a graph that is being read comes first.
  requestAnimationFrame(() => {
    if (node.graph) node.arrange?.();
    node.setDirtyCanvas?.(true, true);
  });
}

// Which row a widget is of, 0 for none, and what it says of it.
function partOf(node, widget) {
  const [, what, row] = ROW.exec(widget.name) ?? [];
  const wired = node.inputs?.some(({ name, link }) => name === widget.name && link != null);
  const limits = what in NO_LIMIT;
  const set = wired || (limits && widget.value !== NO_LIMIT[what]);
  const used = wired || (what === "lora" && widget.value !== NOTHING);
  return { widget, row: Number(row ?? 0), limits, set, used };
}
