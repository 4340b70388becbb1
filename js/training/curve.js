// The loss of a run as a curve: a faint line or band, a smoothed line through it, and dots where
// held-out pictures were looked at.

import { make } from "../body.js";
import { count, tr } from "../locale.js";

const ROOM = { left: 46, right: 10, top: 22, bottom: 18 };
const SAMPLE_PX = 16; // of a line, in the legend
const FONT = "11px sans-serif";
const SHARPNESS = 2; // bitmap pixels a pixel, since people zoom in
// Those of Plot Loss, trainers/runs/pictures/plot.py.
const DARK = { smooth: "#8ab4f8", loss: "#6d8bb7", held: "#fdd663" };
const LIGHT = { smooth: "#083d8f", loss: "#4c74ac", held: "#7d4e00" };

// An element with the curve, and a function that draws {loss, validation}: lists of [step, loss].
export function makeCurve() {
  const canvas = make("canvas", { role: "img", style: { width: "100%", height: "100%", display: "block" } });
  let shown = { loss: [], validation: [] };
  const redraw = () => draw(canvas, shown);
  if (globalThis.ResizeObserver) new ResizeObserver(redraw).observe(canvas);
  return [canvas, (curves) => redraw((shown = curves))];
}

function draw(canvas, { loss, validation }) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height || !loss.length) return;
  canvas.width = width * SHARPNESS;
  canvas.height = height * SHARPNESS;
  const pen = canvas.getContext("2d");
  pen.scale(SHARPNESS, SHARPNESS);
  pen.font = FONT;
  const last = loss[loss.length - 1][0];
  const columns = inColumns(loss, last, width - ROOM.left - ROOM.right);
  // Of 100,000 steps, a line through each would take half a second to draw.
  const smoothed = inColumns(smooth(loss), last, width - ROOM.left - ROOM.right);
  const [low, high] = range(columns, validation);
  const x = (step) => ROOM.left + ((width - ROOM.left - ROOM.right) * step) / last;
  const y = (value) =>
    ROOM.top + (height - ROOM.top - ROOM.bottom) * (1 - clamp((value - low) / (high - low)));
  const colours = isLight() ? LIGHT : DARK;
  drawAxes(pen, canvas, { width, height, low, high, last, x, y });
  line(pen, colours.loss, 1, columns.flatMap(([step, least, most]) =>
    least === most ? [[x(step), y(least)]] : [[x(step), y(least)], [x(step), y(most)]]));
  line(pen, colours.smooth, 2, smoothed.map(([step, least, most]) => [x(step), y((least + most) / 2)]));
  line(pen, colours.held, 1.5, validation.map(([step, value]) => [x(step), y(value)]));
  for (const [step, value] of validation) dot(pen, colours.held, x(step), y(value));
  pen.fillStyle = textColour(canvas);
  legend(pen, colours, validation.length > 0, width);
  const [step, least, most] = smoothed.at(-1);
  const now = { step: count(step), loss: Number(((least + most) / 2).toPrecision(4)) };
  canvas.ariaLabel = tr("Loss by step; at step {step}, smoothed: {loss}", now);
}

// [step, least, most] of the points that share a column of pixels; the axis begins at step `first`.
export function inColumns(points, last, width, first = 0) {
  const columns = [];
  let current = -1;
  for (const [step, value] of points) {
    const column = Math.floor((width * (step - first)) / (last - first));
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

// The step before those of a curve: each of its points may stand for several.
export function startOf(points) {
  const [[first], [second] = [first + 1]] = points;
  return Math.max(0, 2 * first - second);
}

// The moving average of Plot Loss: exponential, over a tenth of the steps, at least 10. A run that
// began with another one's state has steps of its own alone.
export function smooth(points) {
  if (!points.length) return [];
  let [mean, weight, before] = [0, 0, startOf(points)];
  const window = Math.max(10, (points[points.length - 1][0] - before) / 10);
  return points.map(([step, value]) => {
    const keep = (1 - 2 / (window + 1)) ** (step - before);
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    before = step;
    return [step, mean / weight];
  });
}

// All but the highest and lowest fiftieth, so that a few spikes do not flatten the rest.
function range(columns, validation) {
  const values = [...columns.flatMap(([, least, most]) => [least, most])].sort((a, b) => a - b);
  const at = (part) => values[Math.round(part * (values.length - 1))];
  const held = validation.map(([, value]) => value);
  const [low, high] = [Math.min(at(0.02), ...held), Math.max(at(0.98), ...held)];
  const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [0 <= low && low <= high / 3 ? 0 : low - margin, high + margin];
}

function drawAxes(pen, canvas, { width, height, low, high, last, x, y }) {
  const style = getComputedStyle(canvas);
  pen.strokeStyle = style.getPropertyValue("--border-color") || "#666";
  pen.fillStyle = textColour(canvas);
  pen.lineWidth = 0.5;
  const digits = Math.max(0, 2 - Math.floor(Math.log10(high - low)));
  pen.textAlign = "right";
  for (const value of [low, (low + high) / 2, high]) {
    pen.beginPath();
    pen.moveTo(ROOM.left, y(value));
    pen.lineTo(width - ROOM.right, y(value));
    pen.stroke();
    pen.fillText(value.toFixed(Math.min(digits, 6)), ROOM.left - 5, y(value) + 4);
  }
  pen.fillText(tr("step {step}", { step: count(last) }), x(last), height - 4);
}

const textColour = (canvas) =>
  getComputedStyle(canvas).getPropertyValue("--input-text") || "#888";

// Each line is shown as it is drawn, since thickness and dots tell them apart without colours.
function legend(pen, colours, hasHeld, width) {
  const words = [[tr("smoothed"), colours.smooth, 2], [tr("loss"), colours.loss, 1]];
  if (hasHeld) words.unshift([tr("held out"), colours.held, 1.5]);
  const text = pen.fillStyle;
  const y = ROOM.top - 12; // above the lines
  let right = width - ROOM.right - 4;
  for (const [place, [word, colour, thickness]] of words.entries()) {
    pen.fillStyle = text;
    pen.fillText(word, right, y + 4);
    right -= pen.measureText(word).width + 4;
    line(pen, colour, thickness, [[right - SAMPLE_PX, y], [right, y]]);
    if (hasHeld && !place) dot(pen, colour, right - SAMPLE_PX / 2, y);
    right -= SAMPLE_PX + 8;
  }
}

function dot(pen, colour, x, y) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x, y, 2.5, 0, 2 * Math.PI);
  pen.fill();
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
