// One picture of a folder with its caption, which is edited in its place.

import { api } from "../../../scripts/api.js";
import { make } from "../body.js";
import { count, tr } from "../locale.js";

export const CAPTIONS = "/personalize/captions";
const THUMBNAIL = "/personalize/thumbnail";
const WINDOW_TOKENS = 75; // what CLIP reads at a time
// What a thumbnail is drawn by.
export const SHAPE = ["resolution", "masks", "buckets", "max_aspect_ratio", "upscale"];
export const LISTED = ["folder", "captions", "control_folder"]; // what the server is asked for

// What the server answers; an Error with its words, and with `theirs` where it has another caption.
export async function ask(route, options) {
  const reply = await api.fetchApi(route, options);
  const answer = await reply.json().catch(() => ({
    error: tr("ComfyUI answers {status}.", { status: reply.status }),
  }));
  if (reply.status === 200) return answer;
  throw Object.assign(new Error(answer.error), { theirs: answer.caption });
}

function badge(tokens) {
  const parts = Math.ceil(tokens / WINDOW_TOKENS);
  const title = tr("CLIP reads {window} tokens at a time: this caption in {parts} parts, whole.", {
    window: WINDOW_TOKENS, parts,
  });
  return make("mark", { textContent: tr("{count} tokens", { count: count(tokens) }), title });
}

// One picture with its caption.
export class Cell {
  constructor(body) {
    this.body = body;
    this.image = make("img", {
      loading: "lazy",
      draggable: false,
      ondblclick: () => this.body.enlarge(this),
    });
    this.caption = make("span", {
      className: "caption",
      onclick: () => this.edit(),
      onkeydown: (event) => {
        if (!["Enter", " "].includes(event.key)) return;
        event.preventDefault(); // or it would scroll, or be written into the caption
        this.edit();
      },
    });
    this.controls = make("div"); // control images, in the corner of the picture
    this.element = make("figure", {}, this.image, this.controls, this.caption);
  }

  show(picture) {
    this.picture = picture;
    const { name, caption, tokens, editable, why, words } = picture;
    this.drawLarge();
    this.showControls(picture);
    const instead = this.body.prompt();
    const others = words ? tr("the folder: {words}", { words }) : tr("no caption");
    const spare = instead ? tr("the prompt: {words}", { words: instead }) : others;
    const proposed = this.proposal !== undefined;
    this.caption.textContent = this.proposal ?? caption ?? spare;
    this.caption.title = proposed ? tr("Not written: click to look it over and save it")
      : why || tr("Click to edit");
    this.caption.tabIndex = editable ? 0 : -1;
    this.caption.role = editable ? "button" : null;
    const said = { name, caption: this.caption.textContent };
    this.caption.ariaLabel = tr("caption of {name}: {caption}", said);
    this.caption.classList.toggle("faint", proposed || !caption);
    this.caption.classList.toggle("proposed", proposed);
    this.caption.classList.toggle("editable", editable);
    this.element.querySelector("mark")?.remove();
    if (tokens > WINDOW_TOKENS) this.element.append(badge(tokens));
  }

  // What a model said of it that is not its caption yet.
  get proposal() {
    const said = this.body.proposed?.[this.picture.name];
    return said === undefined || said === (this.picture.caption ?? "") ? undefined : said;
  }

  drawLarge() {
    this.draw(this.image, this.picture.name, this.body.isLarge(this) ? { large: 1 } : {});
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
      this.draw(this.controls.children[control], tr("control image: {name}", { name }), { control, ...folders });
    });
  }

  edit() {
    if (!this.picture.editable || this.editor) return;
    this.was = this.picture.caption;
    this.asked = this.body.values(LISTED);
    this.start = this.proposal ?? this.was ?? "";
    this.editor = make("textarea", {
      value: this.start,
      placeholder: this.caption.textContent,
      title: tr("Ctrl+Enter or leaving saves, Esc takes back"),
      ariaLabel: tr("caption of {name}", this.picture),
      spellcheck: false,
      onblur: () => this.leave(),
      onkeydown: (event) => this.press(event),
    });
    this.caption.replaceWith(this.editor);
    this.editor.focus();
  }

  press(event) {
    const step = { PageUp: -1, PageDown: 1 }[event.key];
    if (event.key === "Escape") this.close();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.finish();
    else if (step && this.body.isLarge(this)) this.body.go(step, true);
    else return;
    event.preventDefault();
  }

  // In the large view the next picture's turn comes.
  async finish() {
    const large = this.body.isLarge(this);
    if ((await this.save()) && large) this.body.go(1, true);
  }

  leave() {
    if (this.contested || !this.editor) return; // whose caption stays is asked, not guessed
    if (this.editor.value === this.start) this.close();
    else this.save();
  }

  // Whether it is saved; who asks meanwhile waits for the same answer.
  save() {
    this.saving ??= this.send().finally(() => (this.saving = undefined));
    return this.saving;
  }

  async send() {
    if (!this.editor) return true;
    const caption = this.editor.value;
    if (caption === (this.was ?? "")) {
      this.close();
      return true;
    }
    this.editor.readOnly = true; // until the server has answered
    const asked = { ...this.asked, picture: this.picture.name, caption, was: this.was };
    try {
      const answer = await ask(CAPTIONS, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(asked),
      });
      this.close();
      this.body.written(asked.folder, answer, [this.picture.name]);
      return true;
    } catch (error) {
      this.fail(error);
      return false;
    }
  }

  fail({ message, theirs }) {
    if (!this.editor) return; // given up meanwhile
    this.editor.readOnly = false;
    this.problem?.remove();
    this.problem = make("p", { textContent: message, className: "error", role: "alert" });
    this.element.append(this.problem);
    this.contested = theirs !== undefined;
    if (this.contested) {
      this.problem.textContent = [tr("Changed elsewhere to:"), theirs || tr("(none)"),
        tr("Ctrl+Enter keeps yours, Esc takes that one.")].join("\n");
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
    const hasFocus = document.activeElement === editor;
    editor.replaceWith(this.caption);
    if (hasFocus) this.caption.focus({ preventScroll: true });
    this.problem?.remove();
    if (this.body.stale) this.body.refresh();
  }
}
