// The sidebar tab "Training runs": lists all runs on disk, opens, compares and tidies them.
// What is shown comes from the server: nodes/host/workbench/runs.py. Nothing of a training depends
// on it: graphs have Load Run and resume_from, the command line has `runs`.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { make } from "../body.js";
import { language, tr } from "../locale.js";
import { openCompare } from "./compare.js";
import { button, makeDetail } from "./detail.js";
import { Growing } from "./growing.js";
import { SORTS, chosen, makeList } from "./list.js";
import { get, pathOf, trying } from "./store.js";
import { STYLE } from "./style.js";
import { emptyTrash, freeSpace, removeRuns, restoreRuns } from "./tidy.js";
import { count } from "./words.js";

const CHANGED = "personalize.runs";
const [TRAINING, STATUS] = ["personalize.training", "personalize.status"];
const [PALETTE, PALETTE_MS] = ["Comfy.ColorPalette.change", 200]; // until a new one is in place
const WAIT_MS = 400; // events that come together are answered by one question
const UNDO_MS = 30_000;
// What stays while the tab is closed and opened again.
const kept = { filter: "", sort: "newest", open: null, selected: new Set() };

class Tab {
  constructor(parent) {
    this.rows = [];
    this.trash = [];
    this.parts();
    const style = make("style", { textContent: STYLE });
    this.element = make("div", { className: "personalize-runs", lang: language() }, style, this.listed, this.opened);
    for (const kind of ["keydown", "keyup", "copy", "paste"]) {
      this.element.addEventListener(kind, keep);
    }
    parent.style.height = "100%"; // of the panel, so that the list scrolls and not all around it
    parent.replaceChildren(this.element);
    this.hears = [[CHANGED, () => this.later()], [TRAINING, () => this.later()],
      [STATUS, ({ detail }) => this.live(detail)], ["reconnected", () => this.later()]];
    for (const [event, hear] of this.hears) api.addEventListener(event, hear);
    this.recolour = () => setTimeout(() => this.detail && this.showRun(this.detail), PALETTE_MS);
    app.ui?.settings?.addEventListener?.(PALETTE, this.recolour);
    this.show();
    this.load();
  }

  destroy() {
    for (const [event, hear] of this.hears) api.removeEventListener(event, hear);
    app.ui?.settings?.removeEventListener?.(PALETTE, this.recolour);
    clearTimeout(this.timer);
    clearTimeout(this.undoTimer);
  }

  parts() {
    this.filter = make("input", {
      type: "search", value: kept.filter, placeholder: tr("filter"),
      ariaLabel: tr("Filter training runs"),
      oninput: () => this.draw((kept.filter = this.filter.value)),
    });
    const options = Object.entries(SORTS).map(([value, [name]]) =>
      make("option", { value, textContent: name(), selected: value === kept.sort }));
    this.sort = make("select", {
      ariaLabel: tr("Sort"), onchange: () => this.draw((kept.sort = this.sort.value)),
    }, ...options);
    this.status = make("small", { role: "status" });
    const picked = () => this.rows.filter(({ run }) => kept.selected.has(run));
    this.compare = button(tr("compare"), () => this.openCompare(picked()));
    this.free = button(tr("free disk space …"), () =>
      freeSpace(picked().length ? picked() : this.visible(), document.body));
    this.remove = button(tr("delete …"), () => this.delete(picked()));
    const buttons = make("div", { className: "buttons" }, this.compare, this.free, this.remove);
    const bar = make("div", { className: "bar" }, make("h2", { textContent: tr("Training runs") }),
      make("div", { className: "filters" }, this.filter, this.sort), buttons, this.status);
    this.undo = make("div", { className: "undo", role: "status", hidden: true });
    this.empty = make("p", { className: "empty", hidden: true });
    [this.list, this.showRows] = makeList(kept.selected, {
      open: (run) => this.open(run),
      select: (run, isOn) => this.select(run, isOn),
    });
    this.bin = make("details", { className: "trash", hidden: true });
    this.listed = make("section", {}, bar, this.undo, this.empty, this.list, this.bin);
    [this.opened, this.showRun, this.waitFor] = makeDetail({
      back: () => this.back(),
      remove: (row) => this.delete([row]),
      free: (row) => freeSpace([row], document.body),
      changed: () => this.later(),
    });
  }

  // -- what there is --------------------------------------------------------

  async load() {
    if (this.asking) return void (this.again = true);
    this.asking = true;
    const found = await trying(() => get());
    this.asking = false;
    if (found) this.take(found);
    else if (!this.rows.length) this.say(tr("The runs could not be read."));
    if (this.again) this.later((this.again = false));
  }

  take({ runs, trash, problems }) {
    this.rows = runs;
    this.trash = trash;
    this.problems = problems;
    this.growing = null; // what is known now is newer
    this.drawTrash();
    const names = new Set(runs.map(({ run }) => run));
    for (const run of kept.selected) if (!names.has(run)) kept.selected.delete(run);
    if (kept.open && !names.has(kept.open)) kept.open = null;
    this.draw();
    this.show();
    if (kept.open) this.read(kept.open);
  }

  async read(run) {
    const found = await trying(() => get(pathOf(run)));
    if (kept.open !== run) return;
    if (!found) return void (this.detail ?? this.back()); // why was told
    this.detail = found;
    this.showRun(found);
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), WAIT_MS);
  }

  // New steps of a training at work; the server is not asked for them.
  live({ run, training, loss, validation }) {
    const place = this.rows.findIndex((row) => row.run === run);
    if (!training || !loss?.length || place < 0) return;
    const [step, value] = loss.at(-1);
    const now = { steps: step, last_loss: value, state: "training" };
    this.rows[place] = { ...this.rows[place], ...now, loss: this.sparks(this.rows[place], loss) };
    this.draw();
    if (kept.open !== run || this.detail?.run !== run) return;
    const curve = this.detail.curve;
    const add = (to, points) => {
      const known = to.at(-1)?.[0] ?? 0;
      to.push(...(points ?? []).filter(([at]) => at > known));
    };
    add(curve.loss, loss);
    add(curve.validation, validation);
    this.showRun((this.detail = { ...this.detail, ...now }));
  }

  // A row's sparkline with the losses of new steps; as it was where steps between were missed.
  sparks(row, loss) {
    if (this.growing?.run !== row.run) {
      this.growing = Object.assign(new Growing(row.loss, row.steps), { run: row.run });
    }
    return this.growing.take(loss) ? this.growing.sparkline() : row.loss;
  }

  // -- what is shown --------------------------------------------------------

  visible() {
    return chosen(this.rows, kept.filter, kept.sort);
  }

  draw() {
    const rows = this.visible();
    this.showRows(rows);
    const number = kept.selected.size;
    const numbers = { shown: count(rows.length), all: count(this.rows.length) };
    const all = this.rows.length === 1 ? tr("1 run") : tr("{all} runs", numbers);
    const words = [rows.length === this.rows.length ? all : tr("{shown} of {all} runs", numbers)];
    if (number) words.push(tr("{count} selected", { count: count(number) }));
    this.say([words.join(", "), ...(this.problems ?? [])].join("\n"));
    this.compare.disabled = number < 2;
    this.remove.disabled = !number;
    this.free.disabled = !rows.length && !number;
    this.empty.hidden = rows.length > 0;
    this.empty.textContent = this.rows.length ? tr("No run has these words.")
      : tr("There are no runs yet. Each training in a graph makes one.");
  }

  say(text) {
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  drawTrash() {
    const shown = JSON.stringify(this.trash);
    if (shown === this.binned) return; // what has the focus there keeps it
    this.binned = shown;
    this.bin.hidden = !this.trash.length;
    const wasOpen = this.bin.open;
    const item = ({ run, title }) => make("li", {}, make("span", { textContent: title, title: run }),
      button(tr("restore"), () => this.away(restoreRuns([run])), { ariaLabel: tr("restore {title}", { title }) }));
    this.bin.replaceChildren(
      make("summary", { textContent: tr("Trash: {count}", { count: count(this.trash.length) }) }),
      make("ul", {}, ...this.trash.map(item)),
      button(tr("empty the trash …"), () => this.away(emptyTrash(this.trash))));
    this.bin.open = wasOpen;
  }

  // The button that was pressed will be gone, unless nothing came of it.
  async away(work) {
    const { activeElement } = document;
    if (await work) this.filter.focus();
    else activeElement?.focus();
  }

  show() {
    this.listed.hidden = kept.open !== null;
    this.opened.hidden = kept.open === null;
  }

  open(run) {
    this.from = run;
    kept.open = run;
    this.show();
    if (this.detail?.run !== run) { // what another one shows must not be taken for this one's
      this.detail = null;
      this.waitFor(this.rows.find((row) => row.run === run)?.title ?? run);
    }
    this.read(run);
  }

  back() {
    kept.open = null;
    this.show();
    this.draw();
    const item = [...this.list.querySelectorAll("[data-run]")].find((r) => r.dataset.run === this.from);
    (item?.querySelector(".name") ?? this.filter).focus();
  }

  select(run, isOn) {
    if (isOn) kept.selected.add(run);
    else kept.selected.delete(run);
    this.draw();
  }

  // -- what is done ---------------------------------------------------------

  async openCompare(rows) {
    const runs = await trying(() => Promise.all(rows.map(({ run }) => get(pathOf(run)))));
    if (runs) openCompare(runs);
  }

  async delete(rows) {
    const gone = await removeRuns(rows);
    if (!gone.length) return;
    if (gone.includes(kept.open)) kept.open = null;
    for (const run of gone) kept.selected.delete(run);
    this.rows = this.rows.filter(({ run }) => !gone.includes(run));
    this.show();
    this.draw();
    const what = { count: count(gone.length), title: rows.find(({ run }) => run === gone[0]).title };
    this.offerUndo(gone.length === 1 ? tr("{title} moved into the trash.", what)
      : tr("{count} runs moved into the trash.", what), gone);
  }

  offerUndo(words, names) {
    const end = () => {
      this.undo.hidden = true;
      this.undo.replaceChildren();
    };
    const undo = button(tr("undo"), async () => {
      end();
      await restoreRuns(names);
      this.filter.focus();
    });
    this.undo.replaceChildren(make("span", { textContent: words }), undo);
    this.undo.hidden = false;
    undo.focus();
    clearTimeout(this.undoTimer);
    this.undoTimer = setTimeout(end, UNDO_MS);
  }
}

// What is typed here is not for the graph; its undo is, where nothing is being written.
function keep(event) {
  const isWriting = event.target.matches?.("input:not([type=checkbox], [type=range]), textarea");
  if (isWriting || !(event.ctrlKey || event.metaKey)) event.stopPropagation();
}

let tab;
app.registerExtension({
  name: "personalize.runs",
  setup() {
    app.extensionManager?.registerSidebarTab?.({
      id: "personalize.runs",
      icon: "pi pi-chart-line",
      title: tr("Training runs"),
      tooltip: tr("Training runs"),
      type: "custom",
      render(element) {
        tab?.destroy();
        tab = new Tab(element);
      },
      destroy() {
        tab?.destroy();
        tab = undefined;
      },
    });
  },
});
