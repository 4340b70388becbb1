// A button on each training node opens its method's presets: what each is for and would change.
// The files, and what of them cannot be used, come from the server: nodes/host/workbench/presets.py.
// What is written in them only ever becomes text.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { make } from "../body.js";
import { count, language, tr } from "../locale.js";
import { apply, changesOf, isChange } from "./changes.js";

const METHODS = {
  PersonalizeTrainLora: "lora",
  PersonalizeTrainDreamBooth: "dreambooth",
  PersonalizeTrainTextualInversion: "textual_inversion",
};
const ROUTE = "/personalize/presets";
const BUTTON = "presets";
const SHOWN_MS = 10_000;
const STYLE = `
.personalize-presets {
  margin: auto; padding: 0; width: min(62rem, 92vw); height: min(42rem, 86vh); overflow: hidden;
  box-shadow: 0 8px 32px rgb(0 0 0 / 40%);
  color: var(--input-text, #ddd); background: var(--comfy-menu-bg, #353535);
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 8px;
  font: 14px/1.45 system-ui, sans-serif;
}
.personalize-presets::backdrop { background: rgb(0 0 0 / 45%); }
.personalize-presets form { display: flex; flex-direction: column; height: 100%; margin: 0; }
.personalize-presets h2 { margin: 0; padding: 14px 18px 10px; font-size: 17px; font-weight: 600; }
.personalize-presets h3 { margin: 14px 0 4px; font-size: 14px; font-weight: 600; }
.personalize-presets p { margin: 0 0 8px; overflow-wrap: anywhere; }
.personalize-presets .same { margin-top: 14px; }
.personalize-presets small { color: var(--descrip-text, #999); font-size: 12.5px; }
.personalize-presets .columns {
  display: grid; grid-template-columns: 19rem 1fr; min-height: 0; flex: 1;
  border-block: 1px solid var(--border-color, #4e4e4e);
}
.personalize-presets fieldset {
  margin: 0; padding: 8px; border: 0; border-right: 1px solid var(--border-color, #4e4e4e);
  min-inline-size: 0; overflow: auto;
}
.personalize-presets label {
  display: block; padding: 6px 10px; border-radius: 5px; cursor: pointer;
  overflow-wrap: anywhere;
}
.personalize-presets label input { position: absolute; opacity: 0; pointer-events: none; }
.personalize-presets label small { display: block; }
.personalize-presets label:hover,
.personalize-presets label:has(:checked) { background: var(--comfy-input-bg, #222); }
.personalize-presets label:has(:checked) { box-shadow: inset 4px 0 0 currentColor; }
.personalize-presets label:has(:focus-visible) { outline: 2px solid var(--p-primary-color, #58f); }
.personalize-presets .details { padding: 14px 18px; overflow: auto; min-width: 0; }
.personalize-presets table { border-collapse: collapse; width: 100%; table-layout: fixed; }
.personalize-presets td {
  padding: 3px 10px 3px 0; vertical-align: top; overflow-wrap: anywhere;
  border-top: 1px solid var(--border-color, #4e4e4e);
}
.personalize-presets td:first-child { width: 42%; }
.personalize-presets td:nth-child(3) { width: 2rem; }
.personalize-presets td:last-child { font-weight: 600; }
.personalize-presets ul { margin: 4px 0 0; padding: 0 18px 0 36px; list-style: disc; }
.personalize-presets details { padding: 8px 18px 0; max-height: 8rem; overflow: auto; }
.personalize-presets summary {
  cursor: pointer; color: color-mix(in srgb, var(--error-text, #f55) 55%, var(--input-text, #ddd));
}
.personalize-presets footer { display: flex; gap: 10px; align-items: center; padding: 12px 18px; }
.personalize-presets footer small { flex: 1; }
.personalize-presets button {
  padding: 6px 16px; border-radius: 5px; font: inherit; cursor: pointer;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border: 1px solid color-mix(in srgb, var(--input-text, #ddd) 60%, transparent);
}
.personalize-presets :is(button, summary):focus-visible {
  outline: 2px solid var(--p-primary-color, #58f); outline-offset: 1px;
}
.personalize-presets button[type=submit] { font-weight: 600; }
.personalize-presets button:disabled { opacity: 0.5; cursor: default; }
`;

function written(value) {
  if (typeof value === "boolean") return value ? tr("on") : tr("off");
  if (typeof value === "number" && value && Math.abs(value) < 1e-3) return value.toExponential();
  return String(value ?? "") || tr("(empty)");
}

function wordsOf(row) {
  return `${row.name} ${written(row.now)} → ${written(row.then)}`;
}

// -- what one preset would do ---------------------------------------------------------------------

function table(rows) {
  const line = (row) => [row.name, written(row.now), "→", written(row.then)];
  const cells = (texts) => texts.map((textContent) => make("td", { textContent }));
  const lines = rows.map((row) => make("tr", {}, ...cells(line(row))));
  return make("table", {}, make("tbody", {}, ...lines));
}

function titleOf(trainer, { input, node }, nodes) {
  if (input === null) return trainer.title;
  if (node) {
    const others = (node.outputs?.[0]?.links?.length ?? 1) - 1;
    const shared = { node: node.title };
    return others > 0 ? tr("{node}, which serves other nodes too", shared) : node.title;
  }
  const type = globalThis.LiteGraph.registered_node_types?.[nodes[input]];
  return tr("{node}, a new node beside this one", { node: type?.title ?? nodes[input] });
}

function details(trainer, preset, rows, nodes) {
  const changes = rows.filter(isChange);
  const parts = [
    make("p", { textContent: preset.about }),
    make("p", {}, make("small", { textContent: tr("Source: {source}", preset) })),
  ];
  for (const input of new Set(changes.map((row) => row.input))) {
    const some = changes.filter((row) => row.input === input);
    parts.push(make("h3", { textContent: titleOf(trainer, some[0], nodes) }), table(some));
  }
  const same = rows.filter((row) => row.now === row.then);
  const words = same.map((row) => `${row.name} ${written(row.then)}`).join(", ");
  const textContent = changes.length ? tr("Set like this already: {settings}.", { settings: words })
    : tr("All is set like this already: {settings}.", { settings: words });
  if (same.length) parts.push(make("p", { className: "same" }, make("small", { textContent })));
  const kept = rows.filter((row) => row.why && row.now !== row.then);
  if (kept.length) {
    const reason = (row) =>
      tr("{name}, here {value}: {why}", { ...row, value: written(row.then) });
    const lines = kept.map((row) => make("li", { textContent: reason(row) }));
    parts.push(make("h3", { textContent: tr("Left as it is") }), make("ul", {}, ...lines));
  }
  return parts;
}

// -- the dialog -----------------------------------------------------------------------------------

function choice(preset, onChoice) {
  const input = make("input", { type: "radio", name: "preset", onchange: onChoice });
  const models = make("small", { textContent: preset.models.join(", ") });
  return make("label", {}, input, preset.name, models);
}

function problemList(problems) {
  const lines = problems.map((textContent) => make("li", { textContent }));
  const textContent = problems.length === 1 ? tr("One file in presets/ cannot be used")
    : tr("{count} files in presets/ cannot be used", { count: count(problems.length) });
  return make("details", {}, make("summary", { textContent }), make("ul", {}, ...lines));
}

function build(trainer, { presets, nodes, problems }) {
  const shown = make("section", { className: "details", ariaLive: "polite" });
  const use = make("button", { type: "submit", textContent: tr("apply"), disabled: true });
  let chosen, rows;
  const choose = (preset) => {
    chosen = preset;
    rows = changesOf(trainer, preset, nodes);
    shown.replaceChildren(...details(trainer, preset, rows, nodes));
    shown.scrollTop = 0;
    use.disabled = !rows.some(isChange);
  };
  const choices = presets.map((preset) => choice(preset, () => choose(preset)));
  const close = make("button", { type: "button", textContent: tr("close") });
  const folder = `presets/${METHODS[trainer.comfyClass]}/`;
  const yours = tr("Yours go into {folder} of this node pack.", { folder });
  const hint = make("small", { textContent: yours });
  const title = tr("Presets: {node}", { node: trainer.title });
  const form = make(
    "form",
    { method: "dialog" },
    make("h2", { textContent: title }),
    make("div", { className: "columns" }, make("fieldset", { ariaLabel: tr("Presets") }, ...choices), shown),
    ...(problems.length ? [problemList(problems)] : []),
    make("footer", {}, hint, close, use),
  );
  const style = make("style", { textContent: STYLE });
  const looks = { className: "personalize-presets", ariaLabel: title, lang: language() };
  const dialog = make("dialog", looks, style, form);
  close.onclick = () => dialog.close();
  form.onsubmit = () => finish(trainer, chosen, rows, nodes);
  dialog.onclose = () => dialog.remove();
  // The graph behind has shortcuts of its own.
  for (const kind of ["keydown", "keyup", "copy", "paste"]) {
    dialog.addEventListener(kind, (event) => event.stopPropagation());
  }
  if (!presets.length) shown.textContent = tr("There are no presets for this node yet.");
  return dialog;
}

async function finish(trainer, preset, rows, nodes) {
  const detail = rows.filter(isChange).map(wordsOf).join(", ");
  await apply(trainer, rows, nodes);
  tell({ severity: "success", summary: tr("Preset {name}", preset), detail });
}

function tell(words) {
  app.extensionManager?.toast?.add({ ...words, life: SHOWN_MS });
}

async function open(trainer) {
  const reply = await api.fetchApi(`${ROUTE}?method=${METHODS[trainer.comfyClass]}`);
  if (reply.status !== 200) {
    const detail = tr("The server says {status}.", { status: reply.status });
    tell({ severity: "error", summary: tr("No presets"), detail });
    return;
  }
  const dialog = build(trainer, await reply.json());
  if (document.querySelector(".personalize-presets")) return; // asked for twice
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("input")?.click();
  dialog.querySelector("input")?.focus();
}

// Below the widgets that are saved with a graph, above the node's body if that was there first.
function addButton(node) {
  const button = node.addWidget("button", BUTTON, null, () => open(node), { serialize: false });
  button.label = tr("presets");
  button.serialize = false; // a saved graph has a value for each widget but this one
  node.widgets.pop();
  const place = node.widgets.findIndex((widget) => widget.serialize === false);
  node.widgets.splice(place < 0 ? node.widgets.length : place, 0, button);
}

app.registerExtension({
  name: "personalize.presets",
  nodeCreated(node) {
    if (METHODS[node.comfyClass]) addButton(node);
  },
});
