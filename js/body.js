// Elements of ours in the body of a node, in both renderers, and what nodes are told.

import { language } from "./locale.js";

const SMALLEST_WIDTH = 300;
export const MARGIN_PX = 10; // of the host, around such elements
export const LINE_PX = 17; // of text of 12 px
const CHARACTER_PX = 6.2; // of it, on average
const OURS = ["keydown", "keyup", "copy", "paste", "pointerdown"];

// An element of `kind` with these properties and children.
export function make(kind, properties = {}, ...children) {
  const { style, dataset, ...others } = properties;
  const element = Object.assign(document.createElement(kind), others);
  Object.assign(element.style, style);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

// Calls `react` after what `owner` does under this name.
export function after(owner, name, react) {
  const before = owner[name];
  owner[name] = function (...args) {
    const result = before?.apply(this, args);
    react(...args);
    return result;
  };
}

// Puts `element` below the node's widgets; `height()` says how many pixels it needs now. Call the
// function that comes back when that has changed. One that `grows` takes what more the node has.
export function addBody(node, name, element, height, grows = false) {
  const whole = () => height() + 2 * MARGIN_PX;
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false, // a saved graph has a value for each widget but this one
    hideOnZoom: false,
    margin: MARGIN_PX,
    getMinHeight: whole,
    getMaxHeight: grows ? undefined : whole,
  });
  widget.serialize = false;
  element.lang = language();
  // What is done inside belongs to it, not to the canvas below.
  for (const kind of OURS) element.addEventListener(kind, (event) => event.stopPropagation());
  return () => fit(node, grows);
}

function fit(node, grows) {
  const width = Math.max(node.size[0], node.computeSize()[0], SMALLEST_WIDTH);
  if (width !== node.size[0]) node.setSize([width, node.size[1]]); // texts are less high then
  const needed = node.computeSize()[1];
  node.setSize([width, grows ? Math.max(node.size[1], needed) : needed]);
  node.setDirtyCanvas?.(true, true);
}

// How high a text of 12 px becomes in this width, about.
export function textHeight(text, width) {
  const linesOf = (line) => Math.max(1, Math.ceil((line.length * CHARACTER_PX) / width));
  return LINE_PX * text.split("\n").reduce((sum, line) => sum + linesOf(line), 0);
}
