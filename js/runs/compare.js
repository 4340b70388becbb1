// Two runs or more beside each other: curves, settings, and previews of one prompt with a slider.

import { make } from "../body.js";
import { tr } from "../locale.js";
import { button, curveOf } from "./detail.js";
import { lastOfBoth, previewsOf, shotsOf } from "./pairs.js";
import { Plot, letter } from "./plot.js";
import { previewUrl } from "./store.js";
import { STYLE } from "./style.js";
import { bytes, count, duration, loss, methodName, sizeOf, steps, written } from "./words.js";

const FACTS = [
  ["method", (run) => methodName(run.method)],
  ["model", (run) => run.model || "unknown"],
  ["data", (run) => run.data || "unknown"],
  ["length", steps],
  ["last loss", (run) => loss(run.last_loss)],
  ["best step", (run) => (run.best ? `${count(run.best.step)} (${loss(run.best.loss)})` : "unknown")],
  ["took", (run) => duration(run.seconds)],
  ["size", (run) => bytes(sizeOf(run))],
];

export function openCompare(runs) {
  const plot = new Plot();
  const close = button("close", () => dialog.close());
  const title = `Compare ${count(runs.length)} training runs`;
  const dialog = make("dialog", { className: "personalize-runs-dialog compare", ariaLabel: title },
    make("style", { textContent: STYLE }),
    make("div", { className: "top" }, make("h2", { textContent: title }), close),
    plot.element,
    ...pictures(runs),
    ...settings(runs));
  for (const kind of ["keydown", "keyup", "copy", "paste"]) {
    dialog.addEventListener(kind, (event) => event.stopPropagation());
  }
  dialog.onclose = () => dialog.remove();
  document.body.append(dialog);
  dialog.showModal();
  plot.show(runs.map((run) => ({ ...curveOf(run), best: null })));
}

// -- settings -------------------------------------------------------------------------------------

// [name, value of each run, whether they differ]; what a run has not is undefined.
export function rowsOf(runs) {
  const known = runs.map((run) => new Map(run.settings.map((one) => [one.name, one.value])));
  const names = [...new Set(known.flatMap((one) => [...one.keys()]))];
  return names.map((name) => {
    const values = known.map((one) => one.get(name));
    return [name, values, values.some((value) => value !== values[0])];
  });
}

function settings(runs) {
  const facts = FACTS.map(([name, of]) => line(name, runs.map(of)));
  const rows = rowsOf(runs);
  const words = (value) => (value === undefined ? "has none" : written(value));
  const lines = (some) => some.map(([name, values]) => line(name, values.map(words)));
  const [different, same] = [rows.filter((row) => row[2]), rows.filter((row) => !row[2])];
  return [
    make("h3", { textContent: "What they came to" }), table(runs, facts),
    make("h3", { textContent: `Settings that differ: ${count(different.length)}` }),
    different.length ? table(runs, lines(different)) : make("p", { textContent: "None does." }),
    make("details", {},
      make("summary", { textContent: `Settings that are the same: ${count(same.length)}` }),
      table(runs, lines(same))),
  ];
}

function line(name, texts) {
  const differs = texts.some((text) => text !== texts[0]);
  const cells = texts.map((textContent) => make("td", { textContent }));
  const mark = make("td", { className: "mark", textContent: differs ? "≠" : "" });
  if (differs) mark.ariaLabel = "differs";
  return make("tr", { className: differs ? "differs" : "" }, make("td", { textContent: name }),
    mark, ...cells);
}

function table(runs, lines) {
  const heads = ["", "", ...runs.map(({ title }, place) => `${letter(place)}: ${title}`)];
  const cell = (textContent, place) => make("th", {
    textContent, scope: "col", className: place === 1 ? "mark" : "",
    style: { width: place === 1 ? "2rem" : "" },
  });
  const head = make("thead", {}, make("tr", {}, ...heads.map(cell)));
  return make("div", { className: "table" }, make("table", {}, head, make("tbody", {}, ...lines)));
}

// -- previews -------------------------------------------------------------------------------------

function select(label, options, onchange) {
  const found = make("select", { onchange }, ...options.map(([value, textContent]) =>
    make("option", { value, textContent })));
  return [found, make("label", {}, label, found)];
}

function pictures(runs) {
  const shots = shotsOf(runs);
  const heading = make("h3", { textContent: tr("Previews of the same prompt and seed") });
  if (!shots.length) {
    return [heading, make("p", { textContent: "No two of these runs have previews of one prompt." })];
  }
  const sides = ["left", "right"].map((side) => makeSide(runs, side, (own) => refresh(own)));
  const [prompt, promptLabel] = select("Prompt", shots.map((one, at) => [at, one.label]), () => refresh());
  const slider = make("input", {
    type: "range", min: 0, max: 100, value: 50,
    ariaLabel: "Edge between the left and the right picture",
  });
  const edge = make("div", { className: "edge" });
  const stack = make("div", { className: "stack" }, ...sides.map(({ picture }) => picture), edge);
  const words = make("div", { className: "stack-names", ariaLive: "polite" },
    ...sides.map(({ words: one }) => one));
  const cut = () => {
    sides[1].picture.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    edge.style.left = `calc(${slider.value}% - 1px)`;
    slider.ariaValueText = `${slider.value} % of the left picture`;
  };
  slider.oninput = cut;
  // The right picture is of the left one's step where there is one, unless another was chosen.
  function refresh(chosen, step) {
    const shot = shots[Number(prompt.value)];
    const able = runs.map((run, place) => [run, place]).filter(([run]) => previewsOf(run, shot).length);
    sides[0].offer(able, 0, shot, step);
    sides[1].offer(able, 1, shot, chosen === sides[1].step ? undefined : sides[0].step.value);
  }
  refresh();
  const found = sides.map(({ run }) => previewsOf(runs[Number(run.value)], shots[0]));
  refresh(null, lastOfBoth(...found)[0]);
  cut();
  const choices = make("div", { className: "choices" }, promptLabel,
    ...sides.flatMap(({ labels }) => labels));
  return [heading, make("div", { className: "pictures" },
    make("div", {}, stack, slider, words), choices)];
}

// One of the two pictures: of which run and which step.
function makeSide(runs, side, onchange) {
  const [run, runLabel] = select(`Run on the ${side}`, [], () => onchange(run));
  const [step, stepLabel] = select(`Step on the ${side}`, [], () => onchange(step));
  const picture = make("img", { decoding: "async" });
  const words = make("small");
  const fill = (element, options, value) => {
    element.replaceChildren(...options.map(([one, textContent]) =>
      make("option", { value: one, textContent })));
    element.value = options.some(([one]) => String(one) === String(value)) ? value : options.at(-1)[0];
  };
  function offer(able, place, shot, wanted = step.value) {
    const first = String(able[Math.min(place, able.length - 1)][1]);
    fill(run, able.map(([one, number]) => [number, `${letter(number)}: ${one.title}`]),
      able.some(([, number]) => String(number) === run.value) ? run.value : first);
    const chosen = runs[Number(run.value)];
    const found = previewsOf(chosen, shot);
    const has = found.some((one) => String(one.step) === String(wanted));
    fill(step, found.map((one) => [one.step, `step ${count(one.step)}`]), has ? wanted : step.value);
    const preview = found.find((one) => String(one.step) === step.value);
    const address = previewUrl(chosen.run, preview);
    if (picture.getAttribute("src") !== address) picture.src = address;
    picture.alt = `${chosen.title}, step ${count(preview.step)}: ${shot.prompt}`;
    words.textContent = [letter(Number(run.value)), `step ${count(preview.step)}`,
      preview.seed ? tr("seed {seed}", { seed: preview.seed }) : tr("seed unknown")].join(", ");
  }
  return { run, step, picture, words, labels: [runLabel, stepLabel], offer };
}
