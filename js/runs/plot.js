// The loss of one run or of several over each other: values under the pointer or the slider, a
// logarithmic scale, held-out loss, and marks of states, previews and the best step. Lines differ
// by their dashes and labels too, not by colour alone. It is in the tab of training runs and in the
// body of Plot Loss.

import { make } from "../body.js";
import { tr } from "../locale.js";
import { inColumns, isLight, smooth, startOf } from "../training/curve.js";
import { count, loss as lossWords } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const ROOM = { left: 52, right: 16, top: 10, bottom: 40 };
const [LEAST_PX, ROW_PX, TARGET_PX, SPACE_PX] = [140, 18, 24, 8];
export const DASHES = ["", "7 4", "2 3", "10 3 2 3", "14 4", "5 2 1 2 1 2"];
const HELD = "1 3";
const DARK = ["#8ab4f8", "#fdd663", "#81c995", "#f28b82", "#c58af9", "#78d9ec"];
const LIGHT = ["#083d8f", "#7d4e00", "#0d652d", "#a50e0e", "#681da8", "#0b5f73"];
const MARKS = {
  states: () => tr("▲ state kept"),
  previews: () => tr("■ preview"),
  best: () => tr("★ best step"),
};
const STYLE = `
.plotted { min-width: 0; }
.plotted [hidden] { display: none !important; }
.plotted .frame { height: 220px; overflow: hidden; }
.plotted .plot { display: block; }
.plotted .plot text { fill: currentColor; font: 11px sans-serif; }
.plotted .plot .label { font-weight: 700; font-size: 12px; }
.plotted .plot .mark { font-size: 8px; opacity: 0.9; }
.plotted .plot .star { font-size: 17px; paint-order: stroke; stroke: var(--comfy-menu-bg, #353535);
  stroke-width: 3px; }
.plotted .grid { stroke: currentColor; opacity: 0.2; }
.plotted .cursor { stroke: currentColor; opacity: 0.7; stroke-width: 1; }
.plotted input[type=range] { display: block; margin: 0; height: ${TARGET_PX}px;
  accent-color: var(--p-primary-color, #58f); }
.plotted table.values { width: 100%; table-layout: auto; border-collapse: collapse;
  margin-top: ${SPACE_PX}px; font-size: 12px; font-variant-numeric: tabular-nums; }
.plotted table.values :is(th, td) { height: ${ROW_PX}px; padding: 0 0 0 6px; border: 0;
  line-height: ${ROW_PX}px; text-align: right; white-space: nowrap; overflow-wrap: normal; }
.plotted table.values thead th { font-weight: 400; opacity: 0.8; }
.plotted table.values th.run { width: 100%; max-width: 0; padding: 0; text-align: left;
  font-weight: 400; min-width: 54px; overflow: hidden; text-overflow: ellipsis; }
.plotted table.values svg { display: inline-block; vertical-align: middle; margin-right: 5px; }
.plotted .legend, .plotted .log { display: flex; gap: 0 14px; min-height: ${ROW_PX}px;
  margin-top: ${SPACE_PX}px; align-items: center; overflow: hidden; }
.plotted .log { gap: 6px; min-height: ${TARGET_PX}px; }
.plotted .none { margin: 0; opacity: 0.8; }
`;

export const letter = (place) => String.fromCharCode(65 + (place % 26));
const lookOf = (place) => ({
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
  constructor(none = tr("There is no loss to show yet.")) {
    this.runs = [];
    this.svg = draw("svg", { role: "img", class: "plot" });
    this.frame = make("div", { className: "frame" }, this.svg);
    this.log = make("input", { type: "checkbox", onchange: () => this.redraw() });
    this.at = make("input", {
      type: "range", step: 1, ariaLabel: tr("step"), oninput: () => this.point(),
    });
    this.values = make("table", { className: "values" });
    this.legend = make("div", { className: "legend" });
    const log = make("label", { className: "log" }, this.log, tr("logarithmic loss"));
    this.none = make("p", { className: "none", textContent: none });
    this.parts = [this.frame, this.at, this.values, this.legend, log];
    this.element = make("div", { className: "plotted" },
      make("style", { textContent: STYLE }), this.none, ...this.parts);
    this.svg.addEventListener("pointermove", (event) => this.hover(event));
    new ResizeObserver(() => this.redraw()).observe(this.frame);
    this.show([]);
  }

  show(runs) {
    const wasLast = Number(this.at.value) >= Number(this.at.max);
    this.runs = runs.map((run) => ({ ...run, smoothed: smooth(run.loss) }));
    const curves = runs.map(({ loss }) => loss).filter(({ length }) => length);
    this.first = curves.length ? Math.min(...curves.map(startOf)) : 0;
    this.last = Math.max(this.first + 1, ...curves.map((loss) => loss.at(-1)[0]));
    [this.at.min, this.at.max] = [this.first, this.last];
    if (wasLast || !this.drawn) this.at.value = this.last;
    this.explain();
    this.redraw();
  }

  // How many pixels it needs at least; what more it has in a node's body goes to the curves.
  needs() {
    if (!this.range) return 2 * ROW_PX;
    const legends = Number(!this.legend.hidden);
    const rows = this.runs.length + 1 + legends;
    return LEAST_PX + 2 * TARGET_PX + rows * ROW_PX + (2 + legends) * SPACE_PX;
  }

  // After another palette.
  recolour() {
    this.explain();
    this.redraw();
  }

  redraw() {
    this.cursor = null;
    this.isLog = this.log.checked && rangeOf(this.runs, true) !== null;
    this.range = rangeOf(this.runs, this.isLog);
    this.none.hidden = Boolean(this.range);
    for (const part of this.parts) part.hidden = !this.range;
    this.legend.hidden ||= !this.legend.childElementCount;
    const [width, height] = [this.frame.clientWidth, this.frame.clientHeight];
    this.svg.replaceChildren();
    const hasRoom = width > ROOM.left + ROOM.right + 20 && height > ROOM.top + ROOM.bottom;
    if (!this.range || !hasRoom) return;
    [this.drawn, this.width, this.height] = [true, width, height];
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.at.style.marginLeft = `${ROOM.left - 8}px`;
    this.at.style.width = `${width - ROOM.left - ROOM.right + 16}px`;
    this.axes();
    this.runs.forEach((run, place) => this.curve(run, place));
    this.cursor = draw("line", { class: "cursor", y1: ROOM.top, y2: height - ROOM.bottom });
    this.svg.append(this.cursor);
    this.point();
  }

  x(step) {
    const part = (step - this.first) / (this.last - this.first);
    return ROOM.left + (this.width - ROOM.left - ROOM.right) * part;
  }

  y(value) {
    const [low, high] = this.range;
    const part = this.isLog
      ? Math.log(Math.max(value, low / 10) / low) / Math.log(high / low)
      : (value - low) / (high - low);
    return ROOM.top + (this.height - ROOM.top - ROOM.bottom) * (1 - Math.min(1, Math.max(0, part)));
  }

  axes() {
    const [low, high] = this.range;
    for (const part of [0, 1 / 3, 2 / 3, 1]) {
      const value = this.isLog ? low * (high / low) ** part : low + (high - low) * part;
      const y = this.y(value);
      const right = this.width - ROOM.right;
      this.svg.append(
        draw("line", { class: "grid", x1: ROOM.left, x2: right, y1: y, y2: y }),
        draw("text", { x: ROOM.left - 6, y: y + 4, "text-anchor": "end" }, tick(value, high - low)),
      );
    }
    for (const part of [0, 0.5, 1]) {
      const anchor = ["start", "middle", "end"][part * 2];
      const step = Math.round(this.first + (this.last - this.first) * part);
      const text = part === 1 ? tr("step {step}", { step: count(step) }) : count(step);
      const place = { x: this.x(step), y: this.height - 4, "text-anchor": anchor };
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
    const pixels = this.width - ROOM.left - ROOM.right;
    const columns = (points) => inColumns(points, this.last, pixels, this.first);
    const isOne = this.runs.length === 1;
    const band = columns(run.loss).flatMap(([step, least, most]) => [[step, least], [step, most]]);
    this.line(band, { ...look, dash: "" }, 1, { opacity: isOne ? 0.6 : 0.2, class: "raw" });
    const middles = columns(run.smoothed).map(([step, least, most]) => [step, (least + most) / 2]);
    this.line(middles, look, 2, { class: "smoothed" });
    const held = { ...lookOf(isOne ? 1 : place), dash: HELD };
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
      x: this.x(step), y: this.height - ROOM.bottom + row, "text-anchor": "middle", class: "mark",
    }, sign, draw("title", {}, words)));
    for (const step of states) {
      put(step, "▲", 11, tr("state of step {step}", { step: count(step) }));
    }
    for (const step of previews) {
      put(step, "■", 22, tr("preview of step {step}", { step: count(step) }));
    }
    if (!best) return;
    const run = this.runs[0];
    const [, value] = nearest(best.of === "validation" ? run.validation : run.smoothed, best.step)
      ?? [0, best.loss];
    this.svg.append(draw("text", {
      x: this.x(best.step), y: this.y(value) + 5, "text-anchor": "middle", class: "star",
    }, "★", draw("title", {}, tr("best step {step}: {loss}",
      { step: count(best.step), loss: lossWords(best.loss) }))));
  }

  // The table of values, which says what each line is, and what the marks are.
  explain() {
    const isOne = this.runs.length === 1;
    const hasHeld = this.runs.some(({ validation }) => validation.length);
    const held = isOne ? lookOf(1).colour : "currentColor";
    const heads = [
      ...(isOne ? [] : [head()]),
      head(tr("step")), head(tr("loss")),
      head(tr("smoothed"), ...(isOne ? [swatch(lookOf(0))] : [])),
      ...(hasHeld ? [head(tr("held out"), swatch({ colour: held, dash: HELD }))] : []),
    ];
    this.cells = this.runs.map(() => heads.slice(isOne ? 0 : 1).map(() => make("td")));
    const rows = this.runs.map(({ title }, place) => {
      const name = `${letter(place)}: ${title}`;
      const cell = make("th", { scope: "row", className: "run", title: name },
        swatch(lookOf(place)), name);
      return make("tr", {}, ...(isOne ? [] : [cell]), ...this.cells[place]);
    });
    this.values.replaceChildren(
      make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    const of = ([name]) => [this.runs[0]?.[name] ?? []].flat().length;
    const marks = isOne ? Object.entries(MARKS).filter(of) : [];
    const spans = marks.map(([, words]) => make("span", { textContent: words() }));
    this.legend.replaceChildren(...spans);
    this.svg.setAttribute("aria-label", tr("Loss by step: {titles}",
      { titles: this.runs.map(({ title }) => title).join(", ") }));
  }

  hover({ clientX }) {
    if (!this.drawn) return;
    const box = this.svg.getBoundingClientRect(); // as large as the graph is zoomed
    const x = ((clientX - box.left) * this.width) / box.width;
    const part = (x - ROOM.left) / (this.width - ROOM.left - ROOM.right);
    const step = this.first + Math.min(1, Math.max(0, part)) * (this.last - this.first);
    this.at.value = Math.round(step);
    this.point();
  }

  // What there is at the step that is pointed at, or nearest to it.
  point() {
    if (!this.cursor) return;
    const asked = Number(this.at.value);
    const points = this.runs.map(({ loss }) => nearest(loss, asked));
    const near = points.filter(Boolean).map(([step]) => [step]).sort(([a], [b]) => a - b);
    const [shown] = nearest(near, asked) ?? [asked];
    for (const name of ["x1", "x2"]) this.cursor.setAttribute(name, this.x(shown));
    const words = this.runs.map((run, place) => {
      const [step, value] = points[place] ?? [];
      const [, mean] = nearest(run.smoothed, asked) ?? [];
      const held = nearest(run.validation, asked);
      const texts = [step === undefined ? "" : count(step), lossWords(value), lossWords(mean)];
      const last = held && { loss: lossWords(held[1]), step: count(held[0]) };
      if (held) texts.push(tr("{loss} at {step}", last));
      this.cells[place].forEach((cell, number) => (cell.textContent = texts[number] ?? ""));
      return said(this.runs.length === 1 ? "" : `${letter(place)}: `, texts);
    });
    this.at.ariaValueText = words.join("; ");
  }
}

const head = (text = "", ...before) => make("th", { scope: "col" }, ...before, text);

function said(name, [step, loss, smoothed, held]) {
  const values = tr("step {step}: loss {loss}, smoothed {smoothed}", { step, loss, smoothed });
  return name + values + (held ? tr(", held out {held}", { held }) : "");
}

function tick(value, span) {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(span || 1)));
  return digits > 6 ? value.toExponential(1) : value.toFixed(Math.min(digits, 6));
}

const heldWords = (step, value) =>
  tr("held out {loss} (step {step})", { loss: lossWords(value), step: count(step) });

function swatch({ colour, dash }) {
  const line = draw("line", {
    x1: 0, x2: 28, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash,
  });
  return draw("svg", { width: 28, height: 10, "aria-hidden": "true" }, line);
}
