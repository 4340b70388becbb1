// Two runs or more beside each other: curves, settings, and previews of one prompt with a slider.

import { make } from "../body.js";
import { language, tr } from "../locale.js";
import { SLIDER, Slider } from "../pictures/slider.js";
import { button, curveOf } from "./detail.js";
import { lastOfBoth, previewsOf, shotsOf } from "./pairs.js";
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
    make("style", { textContent: STYLE + SLIDER }),
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
function rowsOf(runs) {
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

function select(label, options, onchange) {
  const found = make("select", { onchange }, ...options.map(([value, textContent]) =>
    make("option", { value, textContent })));
  return [found, make("label", {}, label, found)];
}

function pictures(runs) {
  const shots = shotsOf(runs);
  const heading = make("h3", { textContent: tr("Previews of the same prompt and seed") });
  if (!shots.length) {
    const textContent = tr("No two of these runs have previews of one prompt.");
    return [heading, make("p", { textContent })];
  }
  const slider = new Slider(tr("Edge between the left and the right picture"));
  const sides = [
    [tr("Run on the left"), tr("Step on the left")],
    [tr("Run on the right"), tr("Step on the right")],
  ].map((words, place) =>
    makeSide(runs, words, (...shown) => slider.show(place, ...shown), (own) => refresh(own)));
  const offered = shots.map((one, at) => [at, one.label]);
  const [prompt, promptLabel] = select(tr("Prompt"), offered, () => refresh());
  // The right picture is of the left one's step where there is one, unless another was chosen.
  let isOwn = false; // the right one's step was chosen by hand
  function refresh(chosen, step) {
    isOwn ||= chosen === sides[1].step;
    const shot = shots[Number(prompt.value)];
    const able = runs.map((run, place) => [run, place]).filter(([run]) => previewsOf(run, shot).length);
    sides[0].offer(able, 0, shot, step);
    sides[1].offer(able, 1, shot, isOwn ? undefined : sides[0].step.value);
  }
  refresh();
  const found = sides.map(({ run }) => previewsOf(runs[Number(run.value)], shots[0]));
  refresh(null, lastOfBoth(...found));
  const choices = make("div", { className: "choices" }, promptLabel,
    ...sides.flatMap(({ labels }) => labels));
  return [heading, make("div", { className: "pictures" }, slider.element, choices)];
}

const stepName = ({ step }) => tr("step {step}", { step: count(step) });

// One of the two pictures, which `show` takes: of which run and which step.
function makeSide(runs, [runWords, stepWords], show, onchange) {
  const [run, runLabel] = select(runWords, [], () => onchange(run));
  const [step, stepLabel] = select(stepWords, [], () => onchange(step));
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
    fill(step, found.map((one) => [one.step, stepName(one)]), has ? wanted : step.value);
    const preview = found.find((one) => String(one.step) === step.value);
    const seed = preview.seed ? tr("seed {seed}", preview) : tr("seed unknown");
    const words = [letter(Number(run.value)), stepName(preview), seed].join(", ");
    const whole = `${chosen.title}, ${stepName(preview)}: ${shot.prompt}`;
    show(previewUrl(chosen.run, preview), words, whole);
  }
  return { run, step, labels: [runLabel, stepLabel], offer };
}
