// The pictures of a folder with their captions, in the body of Training Images (Folder): as they
// are trained, and each caption to be edited in its place.
// The server reads and writes: nodes/host/captions.py.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addBody, after, make } from "../body.js";
import "./upload.js"; // first, so that its button stands above the pictures

const NODE = "PersonalizeFolderDataset";
const CAPTIONS = "/personalize/captions";
const THUMBNAIL = "/personalize/thumbnail";
const WINDOW_TOKENS = 75; // what CLIP reads at a time
const PICTURES_PX = 220;
const MESSAGE_PX = 60;
const PAUSE_MS = 200; // after which a change counts as made
// What a thumbnail is drawn by, and what else the list depends on.
const SHAPE = ["resolution", "masks", "buckets", "max_aspect_ratio", "upscale"];
const LISTED = ["folder", "captions", "control_folder"]; // what the server is asked for
const WATCHED = [...LISTED, "prompt", ...SHAPE];

const STYLE = `
.personalize-captions { position: relative; color: var(--input-text, #ddd); font: 11px sans-serif; }
.personalize-captions > div { position: absolute; inset: 0; overflow-y: auto; outline: none; }
.personalize-captions p { margin: 4px; white-space: pre-line; overflow-wrap: anywhere; }
.personalize-captions section {
  display: grid; gap: 6px; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
}
.personalize-captions figure { margin: 0; min-width: 0; position: relative; }
.personalize-captions img {
  display: block; width: 100%; height: 104px; object-fit: contain;
  background: var(--comfy-input-bg, #222); border-radius: 4px;
}
.personalize-captions figure > div {
  position: absolute; top: 66px; right: 2px; display: flex; gap: 2px; pointer-events: none;
}
.personalize-captions figure > div img {
  width: auto; height: 36px; max-width: 48px; border-radius: 2px; pointer-events: auto;
  outline: 1px solid var(--border-color, #4e4e4e);
}
.personalize-captions figcaption {
  max-height: 56px; overflow: hidden auto; margin-top: 2px; padding: 2px; border-radius: 3px;
  white-space: pre-line; overflow-wrap: anywhere; line-height: 14px; min-height: 14px; unicode-bidi: plaintext;
}
.personalize-captions figcaption.editable { cursor: text; }
.personalize-captions figcaption.editable:is(:hover, :focus) {
  background: var(--comfy-input-bg, #222); outline: 1px solid var(--border-color, #4e4e4e);
}
.personalize-captions .faint { opacity: 0.6; font-style: italic; }
.personalize-captions textarea {
  box-sizing: border-box; width: 100%; height: 90px; resize: vertical; font: inherit;
  color: inherit; background: var(--comfy-input-bg, #222); unicode-bidi: plaintext;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 3px;
}
.personalize-captions mark {
  position: absolute; top: 4px; right: 4px; padding: 1px 4px; border-radius: 3px;
  background: #8a5a00; color: #fff;
}
.personalize-captions .error { color: var(--error-text, #ff4444); }
`;

// What the server answers; an Error with its words, and with `theirs` where it has another caption.
async function ask(route, options) {
  const reply = await api.fetchApi(route, options);
  const answer = await reply.json().catch(() => ({ error: `ComfyUI answers ${reply.status}.` }));
  if (reply.status === 200) return answer;
  throw Object.assign(new Error(answer.error), { theirs: answer.caption });
}

function badge(tokens) {
  const parts = Math.ceil(tokens / WINDOW_TOKENS);
  const title = `CLIP reads ${WINDOW_TOKENS} tokens at a time: this caption in ${parts} parts, whole.`;
  return make("mark", { textContent: `${tokens} tokens`, title });
}

// One picture with its caption.
class Cell {
  constructor(body) {
    this.body = body;
    this.image = make("img", { loading: "lazy", draggable: false });
    this.caption = make("figcaption", {
      onclick: () => this.edit(),
      onkeydown: ({ key }) => key === "Enter" && setTimeout(() => this.edit()),
    });
    this.controls = make("div"); // control images, in the corner of the picture
    this.element = make("figure", {}, this.image, this.controls, this.caption);
  }

  show(picture) {
    this.picture = picture;
    const { name, caption, tokens, editable, why, words } = picture;
    this.draw(this.image, name, {});
    this.showControls(picture);
    const instead = this.body.prompt();
    const spare = instead ? `the prompt: ${instead}` : words ? `the folder: ${words}` : "no caption";
    this.caption.textContent = caption ?? spare;
    this.caption.title = why || "Click to edit";
    this.caption.tabIndex = editable ? 0 : -1;
    this.caption.className = [caption ? "" : "faint", editable ? "editable" : ""].join(" ");
    this.element.querySelector("mark")?.remove();
    if (tokens > WINDOW_TOKENS) this.element.append(badge(tokens));
  }

  // One of the server's small pictures, in an image.
  draw(image, title, more) {
    const { name, stamp } = this.picture;
    const settings = JSON.stringify(this.body.values(SHAPE));
    const { folder } = this.body.values(["folder"]);
    const asked = new URLSearchParams({ folder, picture: name, stamp, settings, ...more });
    const address = api.apiURL(`${THUMBNAIL}?${asked}`);
    if (image.getAttribute("src") !== address) image.src = address;
    image.alt = image.title = title;
  }

  showControls({ controls = [] }) {
    if (controls.length !== this.controls.childElementCount) {
      const images = controls.map(() => make("img", { loading: "lazy", draggable: false }));
      this.controls.replaceChildren(...images);
    }
    const folders = this.body.values(["control_folder"]);
    controls.forEach((name, control) => {
      this.draw(this.controls.children[control], `control image: ${name}`, { control, ...folders });
    });
  }

  edit() {
    if (!this.picture.editable || this.editor) return;
    this.was = this.picture.caption;
    this.asked = this.body.values(LISTED);
    this.editor = make("textarea", {
      value: this.was ?? "",
      placeholder: this.caption.textContent,
      title: "Ctrl+Enter or leaving saves, Esc takes back",
      spellcheck: false,
      onblur: () => this.contested || this.save(), // whose caption stays is asked, not guessed
      onkeydown: (event) => this.press(event),
    });
    this.caption.replaceWith(this.editor);
    this.editor.focus();
  }

  press(event) {
    if (event.key === "Escape") this.close();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.save();
    else return;
    event.preventDefault();
  }

  async save() {
    if (!this.editor || this.editor.readOnly) return;
    const caption = this.editor.value;
    if (caption === (this.was ?? "")) return this.close();
    this.editor.readOnly = true; // until the server has answered
    const asked = { ...this.asked, picture: this.picture.name, caption, was: this.was };
    try {
      const answer = await ask(CAPTIONS, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(asked),
      });
      this.close();
      this.body.summarize("");
      if (asked.folder === this.body.values(["folder"]).folder) this.body.take(answer);
    } catch (error) {
      this.fail(error);
    }
  }

  fail({ message, theirs }) {
    if (!this.editor) return; // given up meanwhile
    this.editor.readOnly = false;
    this.problem?.remove();
    this.problem = make("p", { textContent: message, className: "error" });
    this.element.append(this.problem);
    this.contested = theirs !== undefined;
    if (this.contested) {
      this.problem.textContent = `Changed elsewhere to:\n${theirs || "(none)"}\n`;
      this.problem.textContent += "Ctrl+Enter keeps yours, Esc takes that one.";
      this.was = theirs;
      this.body.stale = true;
    }
    this.problem.scrollIntoView({ block: "nearest" });
  }

  close() {
    const { editor } = this;
    if (!editor) return;
    this.editor = undefined; // first: to be taken out is to be left
    this.contested = false;
    editor.replaceWith(this.caption);
    this.problem?.remove();
    if (this.body.stale) this.body.refresh();
  }
}

class Body {
  constructor(node) {
    this.node = node;
    this.cells = [];
    this.summary = make("p"); // of the last run; gone once anything has changed
    this.message = make("p");
    this.grid = make("section");
    // With Nodes 2.0 the wheel scrolls only what has the focus.
    const wheel = { tabIndex: -1, dataset: { captureWheel: "true" } };
    const inside = make("div", wheel, this.summary, this.message, this.grid);
    inside.addEventListener("wheel", (event) => event.stopPropagation());
    this.element = make("div", { className: "personalize-captions" }, inside);
    this.fit = addBody(node, "captions_grid", this.element, () => this.height(), true);
    this.element.style.minHeight = `${this.height()}px`;
  }

  height() {
    return (this.cells.length ? PICTURES_PX : MESSAGE_PX) + this.summary.offsetHeight;
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
    return typeof text?.value === "string" ? text.value.trim() : "what is wired in";
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
    this.cells.forEach((cell, place) => cell.show(pictures[place]));
    this.message.textContent = problems.join("\n");
    this.message.hidden = !problems.length;
    this.message.className = this.cells.length ? "error" : "faint";
    this.grow();
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
        this.summarize("");
        this.refresh();
      });
    }
    after(node, "onExecuted", (output) => {
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
    if (node.comfyClass === NODE) new Body(node).watch();
  },
});
