// What stands above the pictures of a folder: the large view's way on and back, and what is done
// to all captions at once. Every change of all can be taken back, until the next one.

import { make } from "../body.js";
import { count, tr } from "../locale.js";
import { ask, CAPTIONS, LISTED } from "./cell.js";

const ALL = `${CAPTIONS}/all`;

// How often `find` is in a text, and the text with `replacement` in its place.
export function replaced(text, find, replacement, matchCase) {
  if (!find) return [0, text];
  const literal = find.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const pattern = new RegExp(literal, matchCase ? "gu" : "giu");
  const count = text.match(pattern)?.length ?? 0;
  return [count, text.replace(pattern, () => replacement)];
}

// A caption with a trigger word before or after each of its lines, a comma between; once.
export function joined(text, words, before) {
  const bare = words.trim().replace(before ? /[\s,.;:]+$/ : /^[\s,.;:]+/, "");
  if (!bare) return text;
  return text
    .split("\n")
    .map((line) => (before ? withStart(line, words.trim(), bare) : withEnd(line, bare)))
    .join("\n");
}

const isWord = (sign) => /[\p{L}\p{N}]/u.test(sign ?? "");

function withStart(line, words, bare) {
  const begins = line.slice(0, bare.length).toLowerCase() === bare.toLowerCase();
  if (begins && !isWord(line[bare.length])) return line;
  return words + (words === bare ? ", " : " ") + line;
}

function withEnd(line, bare) {
  const ends = line.slice(-bare.length).toLowerCase() === bare.toLowerCase();
  if (ends && !isWord(line.at(-bare.length - 1))) return line;
  return `${line.replace(/[\s,]+$/, "")}, ${bare}`;
}

// What has been done, by the number of captions.
const DONE = {
  replaced: (number) => number === 1 ? tr("replaced in 1 caption")
    : tr("replaced in {count} captions", { count: count(number) }),
  put: (number) => number === 1 ? tr("put in 1 caption")
    : tr("put in {count} captions", { count: count(number) }),
  written: (number) => number === 1 ? tr("1 caption written")
    : tr("{count} captions written", { count: count(number) }),
  takenBack: (number) => number === 1 ? tr("taken back in 1 caption")
    : tr("taken back in {count} captions", { count: count(number) }),
};

class Tools {
  constructor(body) {
    this.body = body;
    this.makeWay();
    this.makeForm();
    this.element = make("div", { hidden: true, style: { flex: "none" } }, this.way, this.form);
  }

  makeWay() {
    const { body } = this;
    this.view = make("button", {
      type: "button",
      onclick: () => body.enlarge(body.large ? undefined : body.cells[body.place]),
    });
    this.back = this.step("‹", tr("Previous picture"), -1);
    this.on = this.step("›", tr("Next picture"), 1);
    this.where = make("output", { ariaLive: "polite" });
    this.keep = make("button", { type: "button", onclick: () => this.writeProposed() });
    this.more = make("button", {
      type: "button",
      textContent: tr("edit all"),
      title: tr("Find and replace, and trigger words, in all captions at once"),
      ariaExpanded: "false",
      onclick: () => this.toggle(),
    });
    const inside = [this.view, this.back, this.on, this.where, this.keep, this.more];
    this.way = make("nav", { ariaLabel: tr("Captions") }, ...inside);
  }

  step(textContent, title, by) {
    const onclick = () => this.body.go(by, Boolean(this.body.cells[this.body.place]?.editor));
    // A press would take the focus from a caption that is being written, and save it by that.
    const onpointerdown = (event) => event.preventDefault();
    const does = { onclick, onpointerdown };
    return make("button", { type: "button", textContent, title, ariaLabel: title, ...does });
  }

  makeForm() {
    const field = (placeholder, ariaLabel, react) =>
      make("input", { type: "text", placeholder, ariaLabel, spellcheck: false, oninput: react });
    const button = (textContent, title, onclick) =>
      make("button", { type: "button", textContent, title, onclick });
    const update = () => this.count();
    this.find = field(tr("find"), tr("Find in all captions"), update);
    this.replacement = field(tr("replace with"), tr("Replace with"), update);
    this.matchCase = button("Aa", tr("Capitals and small letters differ"), () => {
      const pressed = this.matchCase.ariaPressed !== "true";
      this.matchCase.ariaPressed = String(pressed);
      this.count();
    });
    this.matchCase.ariaPressed = "true";
    this.replace = button(tr("replace all"), tr("Replace it in all captions"), () =>
      this.replaceAll(),
    );
    this.words = field(tr("trigger word"), tr("Trigger word"), update);
    this.before = button(tr("put before all"),
      tr("Before every caption that does not begin with it"), () => this.join(true));
    this.after = button(tr("put after all"),
      tr("After every caption that does not end with it"), () => this.join(false));
    this.told = make("output", { ariaLive: "polite" });
    this.undo = button(tr("undo"), tr("Take the last change of all captions back"), () =>
      this.takeBack(),
    );
    const gap = () => make("span", { style: { flexBasis: "100%" } });
    this.form = make(
      "form",
      { hidden: true, onsubmit: (event) => event.preventDefault() },
      ...[this.find, this.replacement, this.matchCase, this.replace, gap()],
      ...[this.words, this.before, this.after, this.undo, this.told],
    );
  }

  toggle() {
    this.form.hidden = !this.form.hidden;
    this.more.ariaExpanded = String(!this.form.hidden);
    this.say("");
    this.body.grow();
    if (!this.form.hidden) this.find.focus();
  }

  // What is shown, anew.
  update() {
    const { body } = this;
    const num = body.cells.length;
    this.element.hidden = !num;
    this.view.textContent = body.large ? tr("all pictures") : tr("large view");
    this.back.hidden = this.on.hidden = !body.large;
    // Not disabled, which would take the focus from them, and the keys with it.
    this.back.ariaDisabled = String(body.place === 0);
    this.on.ariaDisabled = String(body.place >= num - 1);
    const name = body.cells[body.place]?.picture?.name;
    this.where.textContent = body.large
      ? tr("{place} of {count}: {name}", { place: count(body.place + 1), count: count(num), name }) : "";
    this.where.title = body.large ? name : "";
    const proposed = this.proposed().length;
    this.keep.hidden = !proposed;
    this.keep.textContent = proposed === 1 ? tr("write 1 new caption")
      : tr("write {count} new captions", { count: count(proposed) });
    this.count();
  }

  // The captions that are written and can be written anew.
  editable() {
    return this.body.cells.filter(({ picture }) => picture?.editable && picture.caption);
  }

  proposed() {
    return this.body.cells.filter((cell) => cell.picture?.editable && cell.proposal !== undefined);
  }

  found(text) {
    const matchCase = this.matchCase.ariaPressed === "true";
    return replaced(text, this.find.value, this.replacement.value, matchCase);
  }

  count() {
    const cells = this.editable();
    const counts = cells.map(({ picture }) => this.found(picture.caption)[0]);
    const total = counts.reduce((sum, one) => sum + one, 0);
    const having = counts.filter(Boolean).length;
    const where = { times: count(total), having: count(having), all: count(cells.length) };
    if (this.find.value) {
      this.say(total === 1 ? tr("found 1 time in {having} of {all} captions", where)
        : tr("found {times} times in {having} of {all} captions", where));
      this.tellsFound = true;
    } else if (this.tellsFound) this.say("");
    this.replace.disabled = !total;
    this.before.disabled = this.after.disabled = !this.words.value.trim() || !cells.length;
    this.undo.hidden = this.past?.folder !== this.body.values(["folder"]).folder;
  }

  say(text, isError = false) {
    this.tellsFound = false;
    this.told.textContent = text;
    this.told.className = isError ? "error" : "";
  }

  replaceAll() {
    this.change(this.editable(), (caption) => this.found(caption)[1], DONE.replaced);
  }

  join(before) {
    const words = this.words.value;
    this.change(this.editable(), (caption) => joined(caption, words, before), DONE.put);
  }

  writeProposed() {
    this.change(this.proposed(), (caption, cell) => cell.proposal, DONE.written);
  }

  change(cells, made, done) {
    const changes = cells
      .map((cell) => [cell.picture, made(cell.picture.caption, cell)])
      .filter(([picture, caption]) => caption !== picture.caption)
      .map(([picture, caption]) => ({ picture: picture.name, caption, was: picture.caption }));
    if (!changes.length) return this.say(tr("All captions have it already."));
    return this.send(changes, done);
  }

  async takeBack() {
    const { changes } = this.past;
    this.past = undefined;
    await this.send(changes, DONE.takenBack, false);
  }

  // All of the changes, or none where the server refuses one.
  async send(changes, done, remember = true) {
    const asked = this.body.values(LISTED);
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ ...asked, changes });
    try {
      const answer = await ask(ALL, { method: "POST", headers, body });
      const now = new Map(answer.pictures.map(({ name, caption }) => [name, caption]));
      const before = changes.map(({ picture, was }) => ({
        picture,
        caption: was ?? "",
        was: now.get(picture) ?? null,
      }));
      if (remember) this.past = { folder: asked.folder, changes: before };
      const names = changes.map(({ picture }) => picture);
      this.body.written(asked.folder, answer, names);
      this.say(done(changes.length));
    } catch (error) {
      this.say(error.message, true);
      this.body.refresh();
    }
    this.body.grow();
  }
}

export const makeTools = (body) => new Tools(body);
