// The list of runs: as many rows as fit are drawn, however many runs there are.

import { make } from "../body.js";
import { tr } from "../locale.js";
import { previewUrl } from "./store.js";
import { bytes, count, date, loss, methodName, searched, sizeOf, stateName, steps } from "./words.js";

export const ROW_PX = 118;
const BEYOND = 4; // rows drawn above and below, so that Tab and the wheel find them there
const SPARK = { width: 76, height: 26 };
const SVG = "http://www.w3.org/2000/svg";

const last = (value) => value ?? Infinity;
export const SORTS = {
  newest: [() => tr("newest first"), (a, b) => b.changed - a.changed],
  name: [() => tr("name"), (a, b) => a.title.localeCompare(b.title, undefined, { numeric: true })],
  loss: [() => tr("lowest loss"), (a, b) => last(a.last_loss) - last(b.last_loss) || 0],
  size: [() => tr("largest"), (a, b) => sizeOf(b) - sizeOf(a)],
  method: [() => tr("method"), (a, b) => methodName(a.method).localeCompare(methodName(b.method))],
};

// The rows that have all words of the filter, sorted.
export function chosen(rows, filter, sort) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => {
    const text = words.length ? searched(row) : "";
    return words.every((word) => text.includes(word));
  });
  return found.sort(SORTS[sort][1]);
}

// The element of a scrolled list and a function that shows rows in it. `selected` is a Set of
// names; `act` has what rows do: open(run), select(run, isOn).
export function makeList(selected, act) {
  const rows = make("div", { className: "rows", role: "list", ariaLabel: tr("Training runs") });
  const element = make("div", { className: "scrolled" }, rows);
  const drawn = new Map(); // elements by run, with the row that each shows
  let shown = [];

  function draw() {
    const height = element.clientHeight || ROW_PX * 12;
    const first = Math.max(0, Math.floor(element.scrollTop / ROW_PX) - BEYOND);
    const end = Math.min(shown.length, Math.ceil((element.scrollTop + height) / ROW_PX) + BEYOND);
    const wanted = new Set(shown.slice(first, end).map(({ run }) => run));
    for (const [run, { item }] of drawn) {
      if (!wanted.has(run)) item.remove(), drawn.delete(run);
    }
    let before = null; // in the order of the rows, which is that of Tab
    for (let place = first; place < end; place++) {
      const item = itemOf(shown[place]);
      item.style.transform = `translateY(${place * ROW_PX}px)`;
      item.ariaPosInSet = place + 1;
      item.ariaSetSize = shown.length;
      const next = before ? before.nextSibling : rows.firstChild;
      if (next !== item) rows.insertBefore(item, next);
      before = item;
    }
  }

  function itemOf(row) {
    const known = drawn.get(row.run);
    if (known?.row === row) {
      known.item.querySelector("input").checked = selected.has(row.run);
      return known.item;
    }
    const focused = known?.item.contains(document.activeElement)
      ? document.activeElement.className : null;
    const item = makeRow(row, selected, act);
    known?.item.replaceWith(item);
    if (focused !== null) item.getElementsByClassName(focused)[0]?.focus({ preventScroll: true });
    drawn.set(row.run, { item, row });
    return item;
  }

  element.addEventListener("scroll", draw, { passive: true });
  element.addEventListener("keydown", (event) => walk(event, element, draw));
  new ResizeObserver(draw).observe(element);
  return [element, (found) => {
    shown = found;
    rows.style.height = `${shown.length * ROW_PX}px`;
    draw();
  }];
}

// Up and Down go from row to row.
function walk(event, element, draw) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const item = document.activeElement?.closest?.("[role=listitem]");
  if (!by || !item) return;
  event.preventDefault();
  const place = Number(item.ariaPosInSet) + by;
  const top = (place - 1) * ROW_PX;
  if (top < element.scrollTop) element.scrollTop = Math.max(0, top);
  const end = top + ROW_PX - element.clientHeight;
  if (end > element.scrollTop) element.scrollTop = end;
  draw();
  const next = [...element.querySelectorAll("[role=listitem]")]
    .find((one) => Number(one.ariaPosInSet) === place);
  next?.querySelector(".name").focus({ preventScroll: true });
}

function makeRow(row, selected, act) {
  const box = make("input", {
    type: "checkbox", className: "pick", checked: selected.has(row.run),
    ariaLabel: tr("Select {title}", row), onchange: () => act.select(row.run, box.checked),
  });
  const name = make("button", {
    type: "button", className: "name", textContent: row.title, title: row.run,
    onclick: () => act.open(row.run),
  });
  const head = make("div", { className: "head" }, name);
  if (row.pinned) head.append(make("span", { className: "badge", textContent: tr("pinned") }));
  const line = (text, title = text) =>
    make("div", { className: "line", textContent: text, title });
  const what = { data: row.data, count: count(row.pictures ?? 0) };
  const data = row.pictures ? tr("{data} ({count} pictures)", what) : row.data;
  const words = make("div", { className: "words" }, head,
    line(joined(methodName(row.method), row.model || row.architecture_title)), line(data));
  const below = make("div", { className: "below" },
    line(joined(stateName(row.state), steps(row))),
    line(joined(date(row.began ?? row.changed), bytes(sizeOf(row)))));
  const side = make("div", { className: "side" }, sparkline(row.loss),
    make("div", { className: "line", textContent: loss(row.last_loss), title: tr("last loss") }));
  const item = make("div", { className: "row", role: "listitem" },
    make("label", {}, box), thumbnail(row), words, side, below);
  item.dataset.run = row.run;
  item.dataset.state = row.state;
  item.addEventListener("click", ({ target }) => target.closest("label, button") ?? act.open(row.run));
  return item;
}

export const joined = (...words) => words.filter(Boolean).join(" · ");

function thumbnail(row) {
  const none = (textContent) => make("div", { className: "picture none", textContent });
  if (!row.preview) return none(tr("no preview"));
  const src = previewUrl(row.run, row.preview, true);
  return make("img", {
    className: "picture", loading: "lazy", decoding: "async", alt: "", src,
    onerror: ({ target }) => target.replaceWith(none(tr("broken preview"))),
  });
}

// A small line through the losses; the last one stands below it in words.
export function sparkline(losses) {
  const svg = document.createElementNS(SVG, "svg");
  const { width, height } = SPARK;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-hidden", "true");
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const points = losses.map((value, place) => [
    2 + ((width - 4) * place) / Math.max(1, losses.length - 1),
    2 + (height - 4) * (high > low ? (high - value) / (high - low) : 0.5),
  ].map((one) => one.toFixed(1)).join());
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}
