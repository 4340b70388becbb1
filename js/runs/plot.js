// The loss of one run or of several over each other: values under the pointer or the slider, a
// logarithmic scale, held-out loss, and marks of states, previews and the best step. Lines differ
// by their dashes and labels too, not by colour alone.

import { make } from "../body.js";
import { tr } from "../locale.js";
import { inColumns, isLight, smooth } from "../training/curve.js";
import { count, loss as lossWords } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const ROOM = { left: 52, right: 16, top: 10, bottom: 40 };
const HEIGHT = 220;
export const DASHES = ["", "7 4", "2 3", "10 3 2 3", "14 4", "5 2 1 2 1 2"];
const DARK = ["#8ab4f8", "#fdd663", "#81c995", "#f28b82", "#c58af9", "#78d9ec"];
const LIGHT = ["#083d8f", "#7d4e00", "#0d652d", "#a50e0e", "#681da8", "#0b5f73"];
const MARKS = {
  states: () => tr("▲ state kept"), previews: () => tr("■ preview"), best: () => tr("★ best step"),
};

export const letter = (place) => String.fromCharCode(65 + (place % 26));
export const lookOf = (place) => ({
  colour: (isLight() ? LIGHT : DARK)[place % DARK.length],
  dash: DASHES[place % DASHES.length],
});

function draw(kind, attributes, ...children) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The least and most that is shown: all but the outermost fiftieths of the losses.
export function rangeOf(curves, isLog) {
  const fits = (value) => Number.isFinite(value) && (!isLog || value > 0);
  const values = curves.flatMap(({ loss }) => loss.map(([, value]) => value)).filter(fits);
  values.sort((a, b) => a - b);
  const at = (part) => values[Math.round(part * (values.length - 1))];
  const held = curves.flatMap(({ validation }) => validation.map(([, value]) => value)).filter(fits);
  const all = held.concat(values.length ? [at(0.02), at(0.98)] : []);
  if (!all.length) return null;
  let [low, high] = [Infinity, -Infinity];
  for (const value of all) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (isLog) return high > low * 1.01 ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
  const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [0 <= low && low <= high / 3 ? 0 : low - margin, high + margin];
}

// The point of a curve that is nearest to a step.
export function nearest(points, step) {
  let [from, to] = [0, points.length - 1];
  if (to < 0) return undefined;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (points[middle][0] < step) from = middle + 1;
    else to = middle;
  }
  const before = points[from - 1];
  return before && step - before[0] <= points[from][0] - step ? before : points[from];
}

// Runs are {title, loss, validation, states?, previews?, best?}: lists of [step, loss], and steps.
export class Plot {
  constructor() {
    this.runs = [];
    this.svg = draw("svg", { role: "img", height: HEIGHT, class: "plot" });
    this.log = make("input", { type: "checkbox", onchange: () => this.redraw() });
    this.at = make("input", {
      type: "range", min: 1, step: 1, ariaLabel: tr("Step"), oninput: () => this.point(),
    });
    this.said = make("output", { className: "values" });
    this.legend = make("div", { className: "legend" });
    const log = make("label", { className: "check" }, this.log, tr("logarithmic loss"));
    this.element = make("div", { className: "plotted" },
      this.svg, this.at, this.said, this.legend, log);
    this.svg.addEventListener("pointermove", (event) => this.hover(event));
    new ResizeObserver(() => this.redraw()).observe(this.element);
  }

  show(runs) {
    const wasLast = Number(this.at.value) >= Number(this.at.max);
    this.runs = runs.map((run) => ({ marks: [], ...run }));
    this.last = Math.max(1, ...runs.map((run) => run.loss.at(-1)?.[0] ?? 0));
    for (const run of this.runs) run.smoothed = smooth(run.loss);
    this.at.max = this.last;
    if (wasLast || !this.drawn) this.at.value = this.last;
    this.redraw();
  }

  redraw() {
    const width = this.element.clientWidth;
    this.range = rangeOf(this.runs, this.log.checked);
    const hasAny = width > ROOM.left + ROOM.right + 20 && this.range;
    this.svg.replaceChildren();
    for (const one of [this.at, this.svg]) one.style.display = this.range ? "" : "none";
    if (!this.range) this.said.textContent = tr("There is no loss to show yet.");
    if (!hasAny) return;
    this.drawn = true;
    this.width = width;
    this.svg.setAttribute("width", width);
    const runs = this.runs.map(({ title }) => title).join(", ");
    this.svg.setAttribute("aria-label", tr("Loss by step: {runs}", { runs }));
    this.at.style.marginLeft = `${ROOM.left - 8}px`;
    this.at.style.width = `${width - ROOM.left - ROOM.right + 16}px`;
    this.axes();
    this.runs.forEach((run, place) => this.curve(run, place));
    this.cursor = draw("line", { class: "cursor", y1: ROOM.top, y2: HEIGHT - ROOM.bottom });
    this.svg.append(this.cursor);
    this.explain();
    this.point();
  }

  x(step) {
    return ROOM.left + ((this.width - ROOM.left - ROOM.right) * step) / this.last;
  }

  y(value) {
    const [low, high] = this.range;
    const part = this.log.checked
      ? Math.log(Math.max(value, low / 10) / low) / Math.log(high / low)
      : (value - low) / (high - low);
    return ROOM.top + (HEIGHT - ROOM.top - ROOM.bottom) * (1 - Math.min(1, Math.max(0, part)));
  }

  axes() {
    const [low, high] = this.range;
    const isLog = this.log.checked;
    for (const part of [0, 1 / 3, 2 / 3, 1]) {
      const value = isLog ? low * (high / low) ** part : low + (high - low) * part;
      const y = this.y(value);
      const right = this.width - ROOM.right;
      this.svg.append(
        draw("line", { class: "grid", x1: ROOM.left, x2: right, y1: y, y2: y }),
        draw("text", { x: ROOM.left - 6, y: y + 4, "text-anchor": "end" }, tick(value, high - low)),
      );
    }
    for (const part of [0, 0.5, 1]) {
      const anchor = ["start", "middle", "end"][part * 2];
      const step = count(Math.round(this.last * part));
      const text = part === 1 ? tr("step {step}", { step }) : step;
      const place = { x: this.x(this.last * part), y: HEIGHT - 4, "text-anchor": anchor };
      this.svg.append(draw("text", place, text));
    }
  }

  line(points, look, width, extra = {}) {
    const written = points.map(([step, value]) =>
      `${this.x(step).toFixed(1)},${this.y(value).toFixed(1)}`).join(" ");
    this.svg.append(draw("polyline", {
      points: written, fill: "none", stroke: look.colour, "stroke-width": width,
      "stroke-linejoin": "round", "stroke-dasharray": look.dash, ...extra,
    }));
  }

  curve(run, place) {
    const look = lookOf(place);
    const columns = (points) => inColumns(points, this.last, this.width - ROOM.left - ROOM.right);
    const isOne = this.runs.length === 1;
    if (isOne) {
      const band = columns(run.loss).flatMap(([step, least, most]) => [[step, least], [step, most]]);
      this.line(band, { ...look, dash: "" }, 1, { opacity: 0.6, class: "raw" });
    }
    const middles = columns(run.smoothed).map(([step, least, most]) => [step, (least + most) / 2]);
    this.line(middles, look, 2, { class: "smoothed" });
    const held = { ...lookOf(isOne ? 1 : place), dash: "1 3" };
    if (run.validation.length) this.line(run.validation, held, 2, { class: "held" });
    for (const [step, value] of run.validation.length < 200 ? run.validation : []) {
      const round = { cx: this.x(step), cy: this.y(value), r: 3, fill: held.colour };
      this.svg.append(draw("circle", round, draw("title", {}, heldWords(step, value))));
    }
    const end = middles.at(-1);
    if (!isOne && end) {
      const at = { x: Math.min(this.x(end[0]) + 4, this.width - 11), y: this.y(end[1]) + 4 };
      this.svg.append(draw("text", { ...at, fill: look.colour, class: "label" }, letter(place)));
    }
    if (isOne) this.marks(run);
  }

  // Below the curve, so that many of them hide nothing of it.
  marks({ states = [], previews = [], best }) {
    const put = (step, sign, row, words) => this.svg.append(draw("text", {
      x: this.x(step), y: HEIGHT - ROOM.bottom + row, "text-anchor": "middle", class: "mark",
    }, sign, draw("title", {}, words)));
    for (const step of states) put(step, "▲", 11, tr("state of step {step}", { step: count(step) }));
    for (const step of previews) put(step, "■", 22, tr("preview of step {step}", { step: count(step) }));
    if (!best) return;
    const run = this.runs[0];
    const [, value] = nearest(best.of === "validation" ? run.validation : run.smoothed, best.step)
      ?? [0, best.loss];
    this.svg.append(draw("text", {
      x: this.x(best.step), y: this.y(value) + 5, "text-anchor": "middle", class: "star",
    }, "★", draw("title", {}, 
      tr("best step {step}: {loss}", { step: count(best.step), loss: lossWords(best.loss) }))));
  }

  explain() {
    const parts = [];
    const isOne = this.runs.length === 1;
    this.runs.forEach((run, place) => {
      const words = isOne ? tr("loss, smoothed") : `${letter(place)}: ${run.title}`;
      parts.push(swatch(lookOf(place), words));
    });
    if (this.runs.some((run) => run.validation.length)) {
      parts.push(swatch({ ...lookOf(1), colour: isOne ? lookOf(1).colour : "currentColor",
        dash: "1 3" }, tr("held out")));
    }
    for (const [name, words] of Object.entries(MARKS)) {
      const found = this.runs[0]?.[name];
      if (isOne && (Array.isArray(found) ? found.length : found)) {
        parts.push(make("span", { textContent: words() }));
      }
    }
    this.legend.replaceChildren(...parts);
  }

  hover({ clientX }) {
    if (!this.drawn) return;
    const part = (clientX - this.svg.getBoundingClientRect().left - ROOM.left)
      / (this.width - ROOM.left - ROOM.right);
    this.at.value = Math.round(Math.min(1, Math.max(0, part)) * this.last);
    this.point();
  }

  // What there is at the step that is pointed at.
  point() {
    if (!this.range) return;
    const step = Number(this.at.value);
    for (const name of ["x1", "x2"]) this.cursor.setAttribute(name, this.x(step));
    const isOne = this.runs.length === 1;
    const words = this.runs.map((run, place) => {
      const [at, value] = nearest(run.loss, step) ?? [step];
      const [, mean] = nearest(run.smoothed, step) ?? [];
      const held = nearest(run.validation, step);
      const found = { step: count(at), loss: lossWords(value), smoothed: lossWords(mean) };
      const text = tr("step {step}: loss {loss}, smoothed {smoothed}", found);
      const all = held ? `${text}, ${heldWords(...held)}` : text;
      return isOne ? all : `${letter(place)}: ${all}`;
    });
    this.said.textContent = words.join("\n");
    this.at.ariaValueText = words.join("; ");
  }
}

function tick(value, span) {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(span || 1)));
  return digits > 6 ? value.toExponential(1) : value.toFixed(Math.min(digits, 6));
}

const heldWords = (step, value) =>
  tr("held out {loss} (step {step})", { loss: lossWords(value), step: count(step) });

function swatch({ colour, dash }, words) {
  const line = draw("line", {
    x1: 0, x2: 34, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash,
  });
  const svg = draw("svg", { width: 34, height: 10, "aria-hidden": "true" }, line);
  return make("span", {}, svg, make("span", { textContent: words }));
}
