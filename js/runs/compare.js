// Two runs or more beside each other: curves, settings, and previews of one prompt with a slider.

import { make } from "../body.js";
import { language, tr } from "../locale.js";
import { button, curveOf } from "./detail.js";
import { Plot, letter } from "./plot.js";
import { previewUrl } from "./store.js";
import { STYLE } from "./style.js";
import { bytes, count, duration, loss, methodName, sizeOf, steps, written } from "./words.js";

const FACTS = [
  [() => tr("method"), (run) => methodName(run.method)],
  [() => tr("model"), (run) => run.model || tr("unknown")],
  [() => tr("data"), (run) => run.data || tr("unknown")],
  [() => tr("length"), steps],
  [() => tr("last loss"), (run) => loss(run.last_loss)],
  [() => tr("best step"), (run) =>
    (run.best ? `${count(run.best.step)} (${loss(run.best.loss)})` : tr("unknown"))],
  [() => tr("took"), (run) => duration(run.seconds)],
  [() => tr("size"), (run) => bytes(sizeOf(run))],
];

export function openCompare(runs) {
  const plot = new Plot();
  const close = button(tr("close"), () => dialog.close());
  const title = tr("Compare {count} training runs", { count: count(runs.length) });
  const dialog = make("dialog", { className: "personalize-runs-dialog compare", ariaLabel: title, lang: language() },
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
  const facts = FACTS.map(([name, of]) => line(name(), runs.map(of)));
  const rows = rowsOf(runs);
  const words = (value) => (value === undefined ? tr("has none") : written(value));
  const lines = (some) => some.map(([name, values]) => line(name, values.map(words)));
  const [different, same] = [rows.filter((row) => row[2]), rows.filter((row) => !row[2])];
  return [
    make("h3", { textContent: tr("What they came to") }), table(runs, facts),
    make("h3", { textContent: tr("Settings that differ: {count}", { count: count(different.length) }) }),
    different.length ? table(runs, lines(different)) : make("p", { textContent: tr("None does.") }),
    make("details", {},
      make("summary", {
        textContent: tr("Settings that are the same: {count}", { count: count(same.length) }),
      }),
      table(runs, lines(same))),
  ];
}

function line(name, texts) {
  const differs = texts.some((text) => text !== texts[0]);
  const cells = texts.map((textContent) => make("td", { textContent }));
  const mark = make("td", { className: "mark", textContent: differs ? "≠" : "" });
  if (differs) mark.ariaLabel = tr("differs");
  return make("tr", { className: differs ? "differs" : "" }, make("td", { textContent: name }),
    mark, ...cells);
}

function table(runs, lines) {
  const heads = ["", "", ...runs.map(({ title }, place) => `${letter(place)}: ${title}`)];
  const cell = (textContent, place) => make(textContent ? "th" : "td", {
    textContent, ...(textContent ? { scope: "col" } : {}), className: place === 1 ? "mark" : "",
    style: { width: place === 1 ? "2rem" : "" },
  });
  const head = make("thead", {}, make("tr", {}, ...heads.map(cell)));
  return make("div", { className: "table" }, make("table", {}, head, make("tbody", {}, ...lines)));
}

// -- previews -------------------------------------------------------------------------------------

// Prompts that more than one run has previews of; where none is, those of any.
export function promptsOf(runs) {
  const each = runs.map((run) => new Set(run.curve.previews.map(({ prompt }) => prompt)));
  const all = [...new Set(each.flatMap((one) => [...one]))];
  return all.filter((prompt) => each.filter((one) => one.has(prompt)).length > 1);
}

function select(label, options, onchange) {
  const found = make("select", { onchange }, ...options.map(([value, textContent]) =>
    make("option", { value, textContent })));
  return [found, make("label", {}, label, found)];
}

function pictures(runs) {
  const prompts = promptsOf(runs);
  const heading = make("h3", { textContent: tr("Previews of the same prompt") });
  if (!prompts.length) {
    const textContent = tr("No two of these runs have previews of one prompt.");
    return [heading, make("p", { textContent })];
  }
  const sides = [
    makeSide(runs, [tr("Run on the left"), tr("Step on the left")], () => refresh()),
    makeSide(runs, [tr("Run on the right"), tr("Step on the right")], () => refresh()),
  ];
  const [prompt, promptLabel] = select(tr("Prompt"), prompts.map((one) => [one, one]), () => refresh());
  const slider = make("input", {
    type: "range", min: 0, max: 100, value: 50,
    ariaLabel: tr("Edge between the left and the right picture"),
  });
  const edge = make("div", { className: "edge" });
  const stack = make("div", { className: "stack" }, ...sides.map(({ picture }) => picture), edge);
  const words = make("div", { className: "stack-names", ariaLive: "polite" },
    ...sides.map(({ words: one }) => one));
  const cut = () => {
    sides[1].picture.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    edge.style.left = `calc(${slider.value}% - 1px)`;
    slider.ariaValueText = tr("{percent} % of the left picture", { percent: slider.value });
  };
  slider.oninput = cut;
  function refresh() {
    const able = runs.map((run, place) => [run, place]).filter(([run]) =>
      run.curve.previews.some((one) => one.prompt === prompt.value));
    sides.forEach((side, place) => side.offer(able, place, prompt.value));
  }
  refresh();
  cut();
  const choices = make("div", { className: "choices" }, promptLabel,
    ...sides.flatMap(({ labels }) => labels));
  return [heading, make("div", { className: "pictures" },
    make("div", {}, stack, slider, words), choices)];
}

const stepName = ({ step }) => tr("step {step}", { step: count(step) });

// One of the two pictures: of which run and which step.
function makeSide(runs, [runWords, stepWords], onchange) {
  const [run, runLabel] = select(runWords, [], onchange);
  const [step, stepLabel] = select(stepWords, [], onchange);
  const picture = make("img", { decoding: "async" });
  const words = make("small");
  const fill = (element, options, value) => {
    element.replaceChildren(...options.map(([one, textContent]) =>
      make("option", { value: one, textContent })));
    element.value = options.some(([one]) => String(one) === value) ? value : options.at(-1)[0];
  };
  function offer(able, place, prompt) {
    const first = String(able[Math.min(place, able.length - 1)][1]);
    fill(run, able.map(([one, number]) => [number, `${letter(number)}: ${one.title}`]),
      able.some(([, number]) => String(number) === run.value) ? run.value : first);
    const chosen = runs[Number(run.value)];
    const found = chosen.curve.previews.filter((one) => one.prompt === prompt);
    fill(step, found.map((one) => [one.step, stepName(one)]), step.value);
    const preview = found.find((one) => String(one.step) === step.value);
    const address = previewUrl(chosen.run, preview);
    if (picture.getAttribute("src") !== address) picture.src = address;
    picture.alt = `${chosen.title}, ${stepName(preview)}: ${prompt}`;
    words.textContent = `${letter(Number(run.value))}, ${stepName(preview)}`;
  }
  return { picture, words, labels: [runLabel, stepLabel], offer };
}
