// "auto" becomes what the page shows, dark or light, when a graph with Plot Loss is queued.

import { app } from "../../scripts/app.js";

const NODE = "PersonalizeLossPlot";
const AUTO = "auto";
const COLOUR = "--bg-color"; // of every palette, a user's own as well
const MIDDLE = 127.5;

// By its brightness, since palettes have names of all kinds.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = style.getPropertyValue(COLOUR); // what is no colour leaves it black
  canvas.fillRect(0, 0, 1, 1);
  const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > MIDDLE ? "light" : "dark";
}

app.registerExtension({
  name: "personalize.plot",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widget = node.widgets?.find(({ name }) => name === "theme");
    // A saved graph keeps "auto"; only what is queued has the answer.
    if (widget) widget.serializeValue = () => (widget.value === AUTO ? theme() : widget.value);
  },
});
