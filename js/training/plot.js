// "auto" becomes what the page shows, dark or light, when a graph with Plot Loss is queued.

import { app } from "../../../scripts/app.js";
import { isLight } from "./curve.js";

app.registerExtension({
  name: "personalize.plot",
  nodeCreated(node) {
    if (node.comfyClass !== "PersonalizeLossPlot") return;
    const widget = node.widgets?.find(({ name }) => name === "theme");
    if (!widget) return;
    const shown = () => (isLight() ? "light" : "dark");
    // A saved graph keeps "auto"; only what is queued has the answer.
    widget.serializeValue = () => (widget.value === "auto" ? shown() : widget.value);
  },
});
