// The pictures of a folder with their captions, in the body of Training Images (Folder), as they
// are trained, and of Caption Images: each caption to be edited in its place, all of them at once,
// or one after the other beside a large picture. The server reads and writes:
// nodes/host/captions/pages.py.

import { app } from "../../../scripts/app.js";
import { addBody, after, make } from "../body.js";
import { tr } from "../locale.js";
import { ask, CAPTIONS, Cell, LISTED, SHAPE } from "./cell.js";
import { STYLE } from "./look.js";
import { makeTools } from "./tools.js";
import "./upload.js"; // first, so that its button stands above the pictures

const NODES = ["PersonalizeFolderDataset", "PersonalizeCaptionImages"];
const PICTURES_PX = 220;
const LARGE_PX = 320;
const MESSAGE_PX = 60;
const PAUSE_MS = 200; // after which a change counts as made
const WATCHED = [...LISTED, "prompt", ...SHAPE];

class Body {
  constructor(node) {
    this.node = node;
    this.cells = [];
    this.summary = make("p", { role: "status" }); // of the last run; gone once anything has changed
    this.message = make("p", { role: "status" });
    this.grid = make("section");
    this.place = 0; // of the picture that the large view shows
    this.tools = makeTools(this);
    // With Nodes 2.0 the wheel scrolls only what has the focus.
    const wheel = { tabIndex: -1, className: "pictures", dataset: { captureWheel: "true" } };
    const pictures = make("div", wheel, this.summary, this.message, this.grid);
    pictures.addEventListener("wheel", (event) => event.stopPropagation());
    const onkeydown = (event) => this.press(event);
    this.inside = make("div", { onkeydown }, this.tools.element, pictures);
    this.element = make("div", { className: "personalize-captions" }, this.inside);
    this.fit = addBody(node, "captions_grid", this.element, () => this.height(), true);
    this.element.style.minHeight = `${this.height()}px`;
  }

  height() {
    if (!this.cells.length) return MESSAGE_PX + this.summary.offsetHeight;
    const pictures = this.large ? LARGE_PX : PICTURES_PX;
    return pictures + this.summary.offsetHeight + this.tools.element.offsetHeight;
  }

  grow() {
    this.element.style.minHeight = `${this.height()}px`;
    this.fit();
  }

  values(names) {
    const found = this.node.widgets.filter((widget) => names.includes(widget.name));
    return Object.fromEntries(found.map((widget) => [widget.name, widget.value]));
  }

  // What is said of pictures without captions; a text node that is wired in has it in a widget.
  prompt() {
    const place = this.node.inputs?.findIndex(({ widget }) => widget?.name === "prompt") ?? -1;
    const wired = place >= 0 && this.node.inputs[place].link != null;
    if (!wired) return this.values(["prompt"]).prompt?.trim();
    const text = this.node.getInputNode?.(place)?.widgets?.find(({ name }) => name === "value");
    return typeof text?.value === "string" ? text.value.trim() : tr("what is wired in");
  }

  // Reads the list anew, once the hand rests.
  refresh() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.read(), PAUSE_MS);
  }

  async read() {
    const asked = this.values(LISTED);
    const mine = (this.last = {});
    const answer = await ask(`${CAPTIONS}?${new URLSearchParams(asked)}`).catch((error) => ({
      pictures: [],
      problems: [error.message],
    }));
    if (this.last === mine) this.take(answer); // else a later question is on its way
  }

  take({ pictures, problems }) {
    const names = pictures.map((picture) => picture.name);
    const same = names.join("\n") === this.cells.map((cell) => cell.picture.name).join("\n");
    this.stale = !same && this.cells.some((cell) => cell.editor);
    if (this.stale) return; // a caption is being written: when it is closed
    if (!same) {
      this.cells = pictures.map(() => new Cell(this));
      this.grid.replaceChildren(...this.cells.map((cell) => cell.element));
    }
    this.arrange();
    this.cells.forEach((cell, place) => cell.show(pictures[place]));
    this.tools.update();
    this.message.textContent = problems.join("\n");
    this.message.hidden = !problems.length;
    this.message.className = this.cells.length ? "error" : "faint";
    this.grow();
  }

  // What the server answers after it has written captions of these pictures.
  written(folder, answer, names) {
    for (const name of names) delete this.proposed?.[name];
    this.summarize("");
    if (folder === this.values(["folder"]).folder) this.take(answer);
  }

  isLarge(cell) {
    return Boolean(this.large) && this.cells[this.place] === cell;
  }

  // One picture at a time, this one first; without one all of them again.
  enlarge(cell) {
    this.large = Boolean(cell);
    if (cell) this.place = Math.max(0, this.cells.indexOf(cell));
    this.arrange();
    for (const one of this.cells) if (one.picture) one.drawLarge();
    this.tools.update();
    this.grow();
  }

  arrange() {
    this.place = Math.min(this.place, Math.max(0, this.cells.length - 1));
    this.inside.classList.toggle("one", Boolean(this.large));
    this.cells.forEach((cell) => cell.element.classList.toggle("current", this.isLarge(cell)));
  }

  // To a picture before or after; what is being written is saved, and where it cannot be, it stays.
  async go(step, edit) {
    const left = this.cells[this.place];
    const place = this.place + step;
    if (left?.editor && !(await left.save())) return;
    if (!this.cells[place]) return;
    this.enlarge(this.cells[place]);
    if (edit) this.cells[place].edit();
  }

  press(event) {
    if (!this.large || event.target.matches("textarea, input")) return;
    const last = this.cells.length - 1;
    const step = { ArrowLeft: -1, PageUp: -1, ArrowRight: 1, PageDown: 1, Home: -this.place,
      End: last - this.place }[event.key]; // prettier-ignore
    if (event.key === "Escape") {
      this.enlarge();
      this.tools.view.focus(); // what had the focus may be hidden now
    } else if (step !== undefined) this.go(step, false);
    else return;
    event.preventDefault();
  }

  summarize(text) {
    this.summary.textContent = text;
    this.grow();
  }

  watch() {
    const { node } = this;
    for (const widget of node.widgets) {
      if (!WATCHED.includes(widget.name)) continue;
      after(widget, "callback", () => {
        this.proposed = undefined;
        this.summarize("");
        this.refresh();
      });
    }
    after(node, "onExecuted", (output) => {
      this.proposed = output?.made ? JSON.parse(output.made[0]) : undefined;
      this.summarize(output?.text?.join("\n") ?? "");
      this.refresh();
    });
    this.refresh(); // by then a saved graph has set the widgets
  }
}

app.registerExtension({
  name: "personalize.captions",
  setup() {
    document.head.append(make("style", { textContent: STYLE }));
  },
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) new Body(node).watch();
  },
});
