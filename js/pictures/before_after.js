// The pairs that Before and After made, in its body: both pictures of a pair over each other with a
// slider, one pair after the other. The server tells what a node showed last:
// nodes/host/pictures/before_after.py.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { LINE_PX, addBody, after, make } from "../body.js";
import { tr } from "../locale.js";
import { find } from "../training/find.js";
import { BELOW_PX, SLIDER, Slider } from "./slider.js";

const ROUTE = "/personalize/before_after";
const SHOWN = "before_after"; // among what the node returns
const [SMALLEST_PX, NAV_PX, GAP_PX] = [220, 24, 4]; // the first of the pictures
const MOST_LINES = 2; // of a prompt
const STYLE = `
.personalize-pairs { position: relative; color: var(--input-text, #ddd); font: 12px sans-serif; }
.personalize-pairs > div {
  position: absolute; inset: 0; display: flex; flex-direction: column; gap: ${GAP_PX}px;
  overflow: hidden;
}
.personalize-pairs [hidden] { display: none !important; }
.personalize-pairs .personalize-slider { flex: 1; }
.personalize-pairs small { font-size: inherit; }
.personalize-pairs p {
  flex: none; margin: 0; line-height: ${LINE_PX}px; overflow: hidden; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: ${MOST_LINES};
  user-select: text; unicode-bidi: plaintext;
}
.personalize-pairs p.message { opacity: 0.7; -webkit-line-clamp: none; }
.personalize-pairs nav {
  display: flex; flex: none; gap: 6px; align-items: center; height: ${NAV_PX}px;
}
.personalize-pairs nav output { flex: 1; min-width: 0; text-align: center; }
.personalize-pairs button {
  box-sizing: border-box; flex: none; height: ${NAV_PX}px; padding: 0 8px; font: inherit;
  color: inherit; cursor: pointer; background: var(--comfy-input-bg, #222); border-radius: 4px;
  border: 1px solid var(--border-color, #4e4e4e);
}
.personalize-pairs button[aria-disabled="true"] { opacity: 0.5; cursor: default; }
.personalize-pairs :is(button, input):focus-visible {
  outline: 2px solid var(--p-primary-color, #58f); outline-offset: -1px;
}
`;

const bodies = new WeakMap(); // by node

class Body {
  constructor(node) {
    this.node = node;
    this.pairs = [];
    this.place = 0; // of the pair that is shown
    this.message = make("p", { className: "message" });
    this.slider = new Slider(tr("Edge between before and after"));
    for (const picture of this.slider.pictures) picture.onerror = () => this.miss();
    this.prompts = [0, 1].map(() => make("p"));
    const button = (textContent, step) =>
      make("button", { type: "button", textContent, onclick: () => this.go(step) });
    this.buttons = [button(tr("previous"), -1), button(tr("next"), 1)];
    this.said = make("output");
    this.nav = make("nav", { ariaLabel: tr("Pairs of pictures") },
      this.buttons[0], this.said, this.buttons[1]);
    this.inside = make("div", {}, this.message, this.slider.element, ...this.prompts, this.nav);
    this.element = make("div", { className: "personalize-pairs" }, this.inside);
    this.fit = addBody(node, "pairs", this.element, () => this.height(), true);
    this.take([]);
    after(node, "onExecuted", (output) => output?.[SHOWN] && this.take(output[SHOWN]));
  }

  height() {
    if (!this.pairs.length) return 2 * LINE_PX;
    const texts = this.prompts.reduce((sum, { offsetHeight }) => sum + offsetHeight, 0);
    return SMALLEST_PX + BELOW_PX + texts + NAV_PX + 3 * GAP_PX;
  }

  take(pairs) {
    this.pairs = pairs;
    this.go(0);
  }

  // To a pair before or after the one that is shown.
  go(step) {
    const last = Math.max(0, this.pairs.length - 1);
    this.place = Math.min(last, Math.max(0, this.place + step));
    this.buttons.forEach((one, number) => {
      one.hidden = last === 0;
      one.ariaDisabled = this.place === [0, last][number]; // and keeps the focus
    });
    this.show(this.pairs[this.place]);
    // A Nodes 2.0 body is as tall as its element, of which this is the least.
    this.element.style.minHeight = `${this.height()}px`;
    this.fit();
  }

  show(pair) {
    for (const one of [this.slider.element, this.nav, ...this.prompts]) one.hidden = !pair;
    this.message.textContent = tr("Before and after are shown here once the graph has run.");
    this.message.hidden = Boolean(pair);
    if (!pair) return;
    const sides = [tr("before"), tr("after")];
    sides.forEach((side, number) => {
      const address = api.apiURL(`/view?${new URLSearchParams(pair.files[number])}`);
      const whole = tr("{side}: {prompt}", { side, prompt: pair.prompts[number] });
      this.slider.show(number, address, side, whole);
      this.prompts[number].textContent = this.prompts[number].title = whole;
    });
    if (pair.prompts[0] === pair.prompts[1]) {
      this.prompts[0].textContent = this.prompts[0].title = pair.prompts[0];
      this.prompts[1].hidden = true;
    }
    const where = { place: this.place + 1, count: this.pairs.length, seed: pair.seed };
    this.said.textContent = this.pairs.length === 1
      ? tr("seed {seed}", where)
      : tr("{place} of {count}, seed {seed}", where);
  }

  // ComfyUI has a picture no longer.
  miss() {
    this.message.textContent = tr("These pictures are no longer there: run the graph again.");
    this.message.hidden = false;
    this.slider.element.hidden = true;
  }
}

// What each node of the graph showed last, in a page or a graph that was opened after that.
async function showAll() {
  const graph = (app.graph?.rootGraph ?? app.graph)?.id;
  const reply = await api.fetchApi(`${ROUTE}?${new URLSearchParams({ graph })}`);
  if (reply.status !== 200) return;
  const { shown } = await reply.json();
  for (const [node, pairs] of Object.entries(shown)) bodies.get(find({ graph, node }))?.take(pairs);
}

app.registerExtension({
  name: "personalize.before_after",
  setup() {
    document.head.append(make("style", { textContent: SLIDER + STYLE }));
  },
  nodeCreated(node) {
    if (node.comfyClass === "PersonalizeBeforeAfter") bodies.set(node, new Body(node));
  },
  afterConfigureGraph: showAll,
});
