// Deleting runs, with a question before and an undo after, and freeing disk space by kind.

import { app } from "../../../scripts/app.js";
import { make } from "../body.js";
import { language, tr } from "../locale.js";
import { button } from "./detail.js";
import { pathOf, post, tell, trying } from "./store.js";
import { bytes, count, sizeOf } from "./words.js";

const KINDS = {
  states: (size) =>
    tr("{size} of states: a run without them can be neither resumed nor continued", { size }),
  previews: (size) => tr("{size} of previews: the pictures made on the way", { size }),
};

// Whether it is so; asked in the front end's own dialog.
function isSure(title, message, itemList = []) {
  return app.extensionManager.dialog.confirm({ title, message, type: "delete", itemList });
}

// Moves runs into the trash; gives the names of those that are there now.
export async function removeRuns(rows) {
  const size = bytes(rows.reduce((sum, row) => sum + sizeOf(row), 0));
  const what = { name: rows[0].title, count: count(rows.length), size };
  const message = rows.length === 1
    ? tr("Move the run {name} ({size}) into the trash? Until that is emptied, it can be undone.", what)
    : tr("Move {count} runs ({size}) into the trash? Until that is emptied, it can be undone.", what);
  const shown = rows.slice(0, 20).map(({ title }) => title);
  if (!await isSure(tr("Delete training runs"), message, shown)) return [];
  const gone = [];
  for (const { run } of rows) {
    if (await trying(() => post(`${pathOf(run)}/delete`))) gone.push(run);
  }
  return gone;
}

// Whether all of them are back.
export async function restoreRuns(names) {
  const found = [];
  for (const name of names) found.push(await trying(() => post(`${pathOf(name)}/restore`)));
  return found.every(Boolean);
}

// Deletes what is in the trash, after a question; whether it was done.
export async function emptyTrash(trash) {
  const message = trash.length === 1 ? tr("Delete 1 run for good? This cannot be undone.")
    : tr("Delete {count} runs for good? This cannot be undone.", { count: count(trash.length) });
  const shown = trash.slice(0, 20).map(({ title }) => title);
  if (!await isSure(tr("Empty the trash"), message, shown)) return false;
  const found = await trying(() => post("/trash/empty"));
  if (found) tell("success", freed(found.bytes), found.problems.join("\n"));
  return Boolean(found);
}

const freed = (number) => tr("{size} freed", { size: bytes(number) });

// A dialog that says beforehand how much each kind would free.
export async function freeSpace(rows, parent) {
  const runs = rows.filter(({ pinned }) => !pinned).map(({ run }) => run);
  const kinds = Object.keys(KINDS);
  const found = await trying(() => Promise.all(
    kinds.map((kind) => post("/free", { runs, kinds: [kind], dry: true }))));
  if (!found) return;
  const sizes = Object.fromEntries(kinds.map((kind, place) => [kind, found[place].bytes]));
  const problems = [...new Set(found.flatMap((one) => one.problems))];
  const dialog = ask(rows, runs, sizes, problems);
  parent.append(dialog);
  dialog.showModal();
}

function ask(rows, runs, sizes, problems) {
  const boxes = Object.entries(KINDS).map(([kind, about]) => {
    const box = make("input", { type: "checkbox", value: kind, disabled: !sizes[kind] });
    return [box, make("label", { className: "check" }, box, about(bytes(sizes[kind])))];
  });
  const chosen = () => boxes.filter(([box]) => box.checked).map(([box]) => box.value);
  const free = button("", async () => {
    dialog.close();
    const done = await trying(() => post("/free", { runs, kinds: chosen() }));
    if (done) tell("success", freed(done.bytes), done.problems.join("\n"));
  }, { disabled: true, ariaLive: "polite" });
  const sum = () => {
    const size = bytes(chosen().reduce((all, kind) => all + sizes[kind], 0));
    free.textContent = tr("free {size}", { size });
    free.disabled = !chosen().length;
  };
  for (const [box] of boxes) box.onchange = sum;
  const cancel = button(tr("cancel"), () => dialog.close());
  const pinned = rows.length - runs.length;
  const words = [
    runs.length === 1 ? tr("Of 1 run.") : tr("Of {count} runs.", { count: count(runs.length) }),
    pinned ? tr("Pinned ones stay as they are: {count}.", { count: count(pinned) }) : "",
    tr("Results, curves and settings stay. This cannot be undone."),
  ].filter(Boolean).join(" ");
  const title = tr("Free disk space");
  const dialog = make("dialog", { className: "personalize-runs-dialog small", ariaLabel: title, lang: language() },
    make("h2", { textContent: title }), make("p", { textContent: words }),
    ...boxes.map(([, label]) => label),
    ...problems.map((textContent) => make("p", { className: "problems", textContent })),
    make("footer", {}, cancel, free));
  dialog.onclose = () => dialog.remove();
  sum();
  return dialog;
}
