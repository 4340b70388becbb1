// A training node shows how its training goes: a line that says what happens, the loss, previews,
// and while it is at work a button that ends it and keeps what was learned.
// What is shown comes from the server: nodes/host/runs/pages.py.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { LINE_PX, addBody, make, textHeight } from "../body.js";
import { tr } from "../locale.js";
import { makeCurve } from "./curve.js";
import { find } from "./find.js";
import { onQueue, waiting } from "./queue.js";
import { statusWords } from "./status.js";
import { makeStrip } from "./strip.js";

const TRAININGS = "/personalize/trainings";
const STOP = "/personalize/stop";
const TRAINING = "personalize.training";
const STATUS = "personalize.status";
const [CURVE_PX, GAP_PX] = [130, 6];
const MOST_LINES = 6;
const PALETTE_MS = 200; // until a new one is in place

const views = new WeakMap(); // by node

class View {
  constructor(node) {
    this.node = node;
    this.facts = { run: null, training: false, text: "" };
    this.story = nothing();
    [this.curve, this.drawCurve] = makeCurve();
    [this.strip, this.showPreviews, this.stripHeight] = makeStrip();
    this.line = make("div", { style: LINE });
    this.button = make("button", { style: BUTTON, onclick: () => this.stop() });
    const head = make("div", { style: HEAD }, this.line, this.button);
    this.curveBox = make("div", { style: { height: `${CURVE_PX}px` } }, this.curve);
    const looks = { className: "personalize-training", style: BODY };
    this.element = make("div", looks, head, this.curveBox, this.strip);
    this.fit = addBody(node, "training", this.element, () => this.height());
    this.update({});
  }

  height() {
    const room = Math.max(1, this.node.size[0] - 20 - (this.facts.training ? 100 : 0));
    const text = Math.min(MOST_LINES * LINE_PX, textHeight(this.line.textContent ?? "", room));
    const curve = this.story.loss.length ? CURVE_PX + GAP_PX : 0;
    return GAP_PX + Math.max(text, this.facts.training ? 26 : 0) + curve + this.stripHeight();
  }

  // What the server says of the training, and what is new in its curves.
  update({ loss, validation, ...facts }) {
    const before = this.facts;
    this.facts = { ...before, ...facts };
    this.line.ariaLive = this.facts.training ? "off" : "polite"; // not each step is read out
    const queue = this.facts.training ? waiting() : "";
    const idle = tr("The loss and previews show here while it trains.");
    this.line.textContent = [statusWords(this.facts.text) || idle, queue].filter(Boolean).join("\n");
    this.line.style.opacity = this.facts.text ? "1" : "0.8";
    if (before.run !== this.facts.run || before.training !== this.facts.training) {
      this.button.textContent = tr("stop and keep");
      this.button.disabled = false;
    }
    this.button.style.display = this.facts.training ? "" : "none";
    if (before.run !== this.facts.run) this.story = nothing();
    if (loss) this.append(loss, validation);
    this.show();
  }

  append(loss, validation) {
    const known = this.story.loss.at(-1)?.[0] ?? 0;
    if (loss[0][0] > known + 1) return this.load();
    this.story.loss.push(...loss.filter(([step]) => step > known));
    const held = this.story.validation.at(-1)?.[0] ?? 0;
    this.story.validation.push(...validation.filter(([step]) => step > held));
  }

  // All that the server knows of the run.
  async load() {
    const { run } = this.facts;
    this.asked = (this.asked ?? 0) + (run ? 1 : 0);
    if (!run || this.asked > 1) return; // one at a time
    try {
      const reply = await api.fetchApi(`${TRAININGS}/${encodeURIComponent(run)}`);
      if (reply.status === 200 && this.facts.run === run) this.tell(await reply.json());
    } finally {
      const again = this.asked > 1;
      this.asked = 0;
      if (again) this.load();
    }
  }

  tell(story) {
    this.story = story;
    this.showPreviews(this.facts.run, story.previews);
    this.show();
  }

  show() {
    this.curveBox.style.display = this.story.loss.length ? "" : "none";
    this.drawCurve(this.story);
    this.fit();
  }

  stop() {
    this.button.textContent = tr("stopping ...");
    this.button.disabled = true; // until the step has ended
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ node: this.facts.node, run: this.facts.run });
    api.fetchApi(STOP, { method: "POST", headers, body });
  }
}

const nothing = () => ({ loss: [], validation: [], previews: [] });

const BODY = { overflow: "hidden", fontSize: "12px", color: "var(--input-text)" };
const HEAD = { display: "flex", gap: "6px", alignItems: "flex-start", marginBottom: "4px" };
const LINE = {
  flex: "1", lineHeight: `${LINE_PX}px`, maxHeight: `${MOST_LINES * LINE_PX}px`, overflowY: "auto",
  whiteSpace: "pre-wrap", overflowWrap: "anywhere", userSelect: "text",
};
const BUTTON = {
  flex: "none", minHeight: "24px", padding: "2px 8px", fontSize: "12px", cursor: "pointer", borderRadius: "4px",
  color: "var(--input-text)", background: "var(--comfy-input-bg)",
  border: "1px solid color-mix(in srgb, var(--input-text) 60%, transparent)",
};

function update(facts) {
  const view = views.get(find(facts));
  view?.update(facts);
  return view;
}

function showAll(nodes = []) {
  for (const node of nodes) views.get(node)?.show();
}

async function updateAll() {
  const reply = await api.fetchApi(TRAININGS);
  if (reply.status !== 200) return;
  for (const facts of (await reply.json()).trainings) update(facts)?.load();
}

app.registerExtension({
  name: "personalize.live",
  setup() {
    api.addEventListener(TRAINING, ({ detail }) => update(detail)?.load());
    api.addEventListener(STATUS, ({ detail }) => update(detail));
    api.addEventListener("reconnected", updateAll);
    onQueue(() => (app.canvas?.graph?.nodes ?? []).forEach((node) => views.get(node)?.update({})));
    const palette = () => setTimeout(() => showAll(app.canvas?.graph?.nodes), PALETTE_MS);
    app.ui?.settings?.addEventListener?.("Comfy.ColorPalette.change", palette);
  },
  nodeCreated(node) {
    const shown = /^Personalize(Train|Sweep$)/.test(node.comfyClass);
    if (shown) views.set(node, new View(node));
  },
  // A page that is loaded, or a graph that is opened, while a node trains or after it has.
  afterConfigureGraph: updateAll,
});
