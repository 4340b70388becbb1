// The loss of a run as a curve: a faint line or band, a smoothed line through it, and dots where
// held-out pictures were looked at. Several runs lie over each other, told apart by their dashes.

import { make } from "../body.js";

const ROOM = { left: 46, right: 10, top: 8, bottom: 18 };
const FONT = "11px sans-serif";
const SHARPNESS = 2; // bitmap pixels a pixel, since people zoom in
const [NEAR_PX, LINE_PX, SAMPLE_PX] = [6, 14, 24];
const MOST_LETTERS = 28; // of a name in the legend
// Those of Plot Loss, trainers/runs/pictures/plot.py and lines.py.
const DARK = { smooth: "#8ab4f8", loss: "#6d8bb7", held: "#fdd663" };
const LIGHT = { smooth: "#083d8f", loss: "#4c74ac", held: "#7d4e00" };
const DARK_LINES = ["#8ab4f8", "#fdd663", "#81c995", "#f28b82", "#c58af9", "#78d9ec"];
const LIGHT_LINES = ["#083d8f", "#7d4e00", "#1c7434", "#b3261e", "#7a2bc8", "#006a78"];
const DASHES = [[], [7, 3], [2, 2], [7, 2, 2, 2], [14, 3], [7, 2, 2, 2, 2, 2]];

// An element with the curve, and a function that draws {loss, validation}: lists of [step, loss].
// That takes a list of such too, each with a `name`, and each with the `first` of its steps where
// that is not 1. An `interactive` one shows values under the pointer or at the arrow keys, and has
// a switch to a logarithmic scale.
export function makeCurve({ interactive = false } = {}) {
  const canvas = make("canvas", { style: { width: "100%", height: "100%", display: "block" } });
  const state = { curves: [], log: false, told: () => {} };
  const redraw = () => {
    state.shape = draw(canvas, state);
    state.told();
  };
  if (globalThis.ResizeObserver) new ResizeObserver(redraw).observe(canvas);
  const show = (curves) => {
    state.curves = [curves].flat().filter(({ loss }) => loss.length);
    redraw();
  };
  return [interactive ? withValues(canvas, state, redraw) : canvas, show];
}

function draw(canvas, { curves, log }) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  canvas.width = width * SHARPNESS; // and so it is empty
  canvas.height = height * SHARPNESS;
  if (!curves.length) return;
  const pen = canvas.getContext("2d");
  pen.scale(SHARPNESS, SHARPNESS);
  pen.font = FONT;
  const last = Math.max(...curves.map(({ loss }) => loss[loss.length - 1][0]));
  const room = width - ROOM.left - ROOM.right;
  // Of 100,000 steps, a line through each would take half a second to draw.
  const drawn = curves.map(({ name, loss, validation = [], first }, place) => {
    const smoothed = smooth(loss, loss[loss.length - 1][0], first);
    const style = styleOf(place, curves.length > 1);
    const [columns, middle] = [loss, smoothed].map((points) => inColumns(points, last, room));
    return { name, loss, validation, smoothed, columns, middle, style };
  });
  const [low, high] = range(drawn, log);
  const part = log ? logPart(low, high) : (value) => (value - low) / (high - low);
  const x = (step) => ROOM.left + (room * step) / last;
  const y = (value) => ROOM.top + (height - ROOM.top - ROOM.bottom) * (1 - clamp(part(value)));
  drawAxes(pen, canvas, { width, height, low, high, log, last, x, y });
  for (const curve of drawn) drawCurve(pen, curve, x, y);
  if (drawn.length > 1) namedLegend(pen, drawn, width);
  else legend(pen, drawn[0].style, drawn[0].validation.length > 0, width);
  return { drawn, last, x, height, width };
}

// One run has the colours of its parts; of several each has one colour and a dash of its own.
function styleOf(place, isOneOfMany) {
  const [one, many] = isLight() ? [LIGHT, LIGHT_LINES] : [DARK, DARK_LINES];
  if (!isOneOfMany) return { ...one, dash: [], faintness: 1 };
  const colour = many[place % many.length];
  const dash = DASHES[place % DASHES.length];
  return { smooth: colour, loss: colour, held: colour, dash, faintness: 0.25 };
}

function drawCurve(pen, { columns, middle, validation, style }, x, y) {
  pen.globalAlpha = style.faintness;
  line(pen, style.loss, 1, columns.flatMap(([step, least, most]) =>
    least === most ? [[x(step), y(least)]] : [[x(step), y(least)], [x(step), y(most)]]));
  pen.globalAlpha = 1;
  pen.setLineDash(style.dash);
  line(pen, style.smooth, 2, middle.map(([step, least, most]) => [x(step), y((least + most) / 2)]));
  line(pen, style.held, 1.5, validation.map(([step, value]) => [x(step), y(value)]));
  pen.setLineDash([]);
  pen.fillStyle = style.held;
  for (const [step, value] of validation) {
    pen.beginPath();
    pen.arc(x(step), y(value), 2.5, 0, 2 * Math.PI);
    pen.fill();
  }
}

// [step, least, most] of the points that share a column of pixels.
export function inColumns(points, last, width) {
  const columns = [];
  let current = -1;
  for (const [step, value] of points) {
    const column = Math.floor((width * step) / last);
    if (column !== current) columns.push([step, value, value]);
    else {
      const found = columns[columns.length - 1];
      found[1] = Math.min(found[1], value);
      found[2] = Math.max(found[2], value);
    }
    current = column;
  }
  return columns;
}

// The moving average of Plot Loss: exponential, over a tenth of the steps, at least 10.
export function smooth(points, last, first = 1) {
  const window = Math.max(10, (last - first + 1) / 10);
  let [mean, weight, before] = [0, 0, first - 1];
  return points.map(([step, value]) => {
    const keep = (1 - 2 / (window + 1)) ** (step - before);
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    before = step;
    return [step, mean / weight];
  });
}

// All but the highest and lowest fiftieth, so that a few spikes do not flatten the rest.
function range(drawn, log) {
  const shown = (value) => !log || value > 0;
  const sorted = (values) => values.filter(shown).sort((a, b) => a - b);
  const values = sorted(drawn.flatMap(({ columns }) => columns.flatMap(([, ...ends]) => ends)));
  if (!values.length) return [0.1, 1]; // no loss has a logarithm
  const at = (part) => values[Math.round(part * (values.length - 1))];
  const held = sorted(drawn.flatMap(({ validation }) => validation.map(([, value]) => value)));
  const [low, high] = [Math.min(at(0.02), ...held), Math.max(at(0.98), ...held)];
  if (log) return [low / 1.1, high * 1.1];
  const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [0 <= low && low <= high / 3 ? 0 : low - margin, high + margin];
}

function logPart(low, high) {
  const whole = Math.log(high / low);
  return (value) => (value > low ? Math.log(value / low) / whole : 0);
}

function drawAxes(pen, canvas, { width, height, low, high, log, last, x, y }) {
  const style = getComputedStyle(canvas);
  pen.strokeStyle = style.getPropertyValue("--border-color") || "#666";
  pen.fillStyle = style.getPropertyValue("--input-text") || "#888";
  pen.lineWidth = 0.5;
  const digits = Math.max(0, 2 - Math.floor(Math.log10(high - low)));
  pen.textAlign = "right";
  for (const value of [low, log ? Math.sqrt(low * high) : (low + high) / 2, high]) {
    pen.beginPath();
    pen.moveTo(ROOM.left, y(value));
    pen.lineTo(width - ROOM.right, y(value));
    pen.stroke();
    const text = log ? String(+value.toPrecision(2)) : value.toFixed(Math.min(digits, 6));
    pen.fillText(text, ROOM.left - 5, y(value) + 4);
  }
  pen.fillText(`step ${last.toLocaleString("en")}`, x(last), height - 4);
}

function legend(pen, colours, hasHeld, width) {
  const words = [["smoothed", colours.smooth], ["loss", colours.loss]];
  if (hasHeld) words.unshift(["held out", colours.held]);
  let right = width - ROOM.right - 4;
  for (const [word, colour] of words) {
    pen.fillStyle = colour;
    pen.fillText(word, right, ROOM.top + 12);
    right -= pen.measureText(word).width + 10;
  }
}

// A name a line, each behind a piece of its line.
function namedLegend(pen, drawn, width) {
  const [right, middle] = [width - ROOM.right - 4, ROOM.top + 8];
  pen.textAlign = "right";
  drawn.forEach(({ name, style }, place) => {
    const [text, top] = [short(name), middle + LINE_PX * place];
    pen.fillStyle = style.smooth;
    pen.fillText(text, right - SAMPLE_PX - 5, top + 4);
    pen.setLineDash(style.dash);
    line(pen, style.smooth, 2, [[right - SAMPLE_PX, top], [right, top]]);
    pen.setLineDash([]);
  });
}

function short(name = "") {
  return name.length > MOST_LETTERS ? `${name.slice(0, MOST_LETTERS - 1)}…` : name;
}

function line(pen, colour, thickness, points) {
  pen.strokeStyle = colour;
  pen.lineWidth = thickness;
  pen.lineJoin = "round";
  pen.beginPath();
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.stroke();
}

function clamp(part) {
  return Math.min(1, Math.max(0, part));
}

// Whether the page's palette is a light one: by its brightness, since people make their own.
export function isLight() {
  const pen = document.createElement("canvas").getContext("2d");
  const style = getComputedStyle(document.documentElement);
  pen.fillStyle = style.getPropertyValue("--bg-color"); // what is no colour leaves it black
  pen.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 127.5;
}

// The curve with a line at the step that is looked at, its values, and a switch of the scale.
function withValues(canvas, state, redraw) {
  const ruler = make("div", { style: RULER });
  const values = make("div", { style: VALUES, ariaLive: "polite" });
  const button = make("button", {
    type: "button", textContent: "log", title: "Logarithmic scale", ariaPressed: "false",
    style: BUTTON,
    onclick: () => {
      state.log = !state.log;
      button.ariaPressed = String(state.log);
      button.style.outline = state.log ? "1px solid currentColor" : "";
      redraw();
    },
  });
  const look = (step) => {
    state.step = step;
    showValues(state, ruler, values);
  };
  state.told = () => look(state.step);
  Object.assign(canvas, { tabIndex: 0, role: "img", ariaLabel: "Loss by step; arrow keys show values" });
  canvas.addEventListener("pointermove", ({ clientX }) => look(stepUnder(canvas, state, clientX)));
  canvas.addEventListener("pointerleave", () => look(undefined));
  canvas.addEventListener("blur", () => look(undefined));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -20, PageUp: 20 }[event.key];
    if (!steps || !state.shape) return;
    event.preventDefault();
    const { last } = state.shape; // a hundred keys from one end to the other
    const next = (state.step ?? 0) + steps * Math.max(1, Math.round(last / 100));
    look(Math.min(last, Math.max(1, next)));
  });
  return make("div", { style: PLOT }, canvas, ruler, values, button);
}

// The host scales what lies in a node, so what is on the screen is not what it measures.
function stepUnder(canvas, { shape }, clientX) {
  if (!shape) return undefined;
  const { left, width } = canvas.getBoundingClientRect();
  const within = ((clientX - left) * shape.width) / width - ROOM.left;
  const step = Math.round((within * shape.last) / (shape.width - ROOM.left - ROOM.right));
  return Math.min(shape.last, Math.max(1, step));
}

function showValues({ shape, step }, ruler, values) {
  const isShown = shape !== undefined && step !== undefined;
  ruler.style.display = values.style.display = isShown ? "" : "none";
  if (!isShown) return;
  const at = shape.x(step);
  ruler.style.left = `${at}px`;
  const isLeft = at < shape.width / 2; // the values lie on the other side of the ruler
  values.style.left = isLeft ? `${at + NEAR_PX}px` : "";
  values.style.right = isLeft ? "" : `${shape.width - at + NEAR_PX}px`;
  values.textContent = [`step ${step.toLocaleString("en")}`, ...valuesAt(shape, step)].join("\n");
}

// What is known of that step, or of the nearest that is written down; a line for each of several.
export function valuesAt({ drawn, last, width }, step) {
  const near = Math.max(1, (NEAR_PX * last) / width);
  return drawn.flatMap(({ name, loss, smoothed, validation }) => {
    const place = nearest(loss, step);
    if (Math.abs(loss[place][0] - step) > near) return []; // this run is shorter
    const found = [`loss ${digits(loss[place][1])}`, `smoothed ${digits(smoothed[place][1])}`];
    const held = validation[nearest(validation, step)];
    if (held && Math.abs(held[0] - step) <= near) found.push(`held out ${digits(held[1])}`);
    return drawn.length > 1 ? [`${short(name)}: ${found.join(", ")}`] : found;
  });
}

// The place of the point whose step is nearest; points are in order.
function nearest(points, step) {
  let [from, to] = [0, points.length - 1];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (points[middle][0] < step) from = middle + 1;
    else to = middle;
  }
  return from > 0 && step - points[from - 1][0] < points[from][0] - step ? from - 1 : from;
}

const digits = (value) => value.toPrecision(4);

const PLOT = { position: "relative", width: "100%", height: "100%" };
const RULER = {
  position: "absolute", top: `${ROOM.top}px`, bottom: `${ROOM.bottom}px`, width: "1px",
  background: "var(--input-text, #888)", pointerEvents: "none", display: "none",
};
const VALUES = {
  position: "absolute", top: `${ROOM.top}px`, padding: "3px 6px", font: FONT, zIndex: 1,
  lineHeight: `${LINE_PX}px`, whiteSpace: "pre", pointerEvents: "none", display: "none",
  color: "var(--input-text, #ddd)", background: "var(--comfy-input-bg, #222)",
  border: "1px solid var(--border-color, #4e4e4e)", borderRadius: "3px",
};
const BUTTON = {
  position: "absolute", left: "4px", bottom: "0", height: "16px", padding: "0 6px", font: FONT,
  lineHeight: "14px", cursor: "pointer", color: "var(--input-text, #ddd)",
  background: "var(--comfy-input-bg, #222)", border: "1px solid var(--border-color, #4e4e4e)",
  borderRadius: "3px",
};
