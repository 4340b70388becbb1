// After a file was saved, the lists of the stock loaders are read anew, as by the key R.
// The server says when: nodes/host/status.py. So are the lists that take a wire too, which ComfyUI
// passes over, since their type is no plain COMBO.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after } from "./body.js";

const EVENT = "personalize.files";

app.registerExtension({
  name: "personalize.files",
  setup() {
    api.addEventListener(EVENT, () => app.refreshComboInNodes?.());
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Personalize")) return;
    after(node, "refreshComboInNode", (schemas) => refresh(node, schemas[node.comfyClass]?.input));
  },
});

function refresh(node, inputs) {
  for (const widget of node.widgets ?? []) {
    const [type, options] = inputs?.required?.[widget.name] ?? inputs?.optional?.[widget.name] ?? [];
    if (String(type).startsWith("COMBO,")) widget.options.values = options.options;
  }
}
