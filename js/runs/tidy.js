// Deleting runs, with a question before and an undo after, and freeing disk space by kind.

import { app } from "../../../scripts/app.js";
import { make } from "../body.js";
import { button } from "./detail.js";
import { pathOf, post, tell, trying } from "./store.js";
import { bytes, count, sizeOf } from "./words.js";

const KINDS = {
  states: "states: a run without them can be neither resumed nor continued",
  previews: "previews: the pictures made on the way",
};

// Whether it is so; asked in the front end's own dialog.
function isSure(title, message, itemList = []) {
  return app.extensionManager.dialog.confirm({ title, message, type: "delete", itemList });
}

// Moves runs into the trash; gives the names of those that are there now.
export async function removeRuns(rows) {
  const what = rows.length === 1 ? `the run ${rows[0].title}` : `${count(rows.length)} runs`;
  const size = bytes(rows.reduce((sum, row) => sum + sizeOf(row), 0));
  const message = `Move ${what} (${size}) into the trash? Until that is emptied, it can be undone.`;
  const shown = rows.slice(0, 20).map(({ title }) => title);
  if (!await isSure("Delete training runs", message, shown)) return [];
  const gone = [];
  for (const { run } of rows) {
    if (await trying(() => post(`${pathOf(run)}/delete`))) gone.push(run);
  }
  return gone;
}

export async function restoreRuns(names) {
  for (const name of names) await trying(() => post(`${pathOf(name)}/restore`));
}

export async function emptyTrash(trash) {
  const message = `Delete ${count(trash.length)} runs for good? This cannot be undone.`;
  if (!await isSure("Empty the trash", message, trash.slice(0, 20).map(({ title }) => title))) return;
  const found = await trying(() => post("/trash/empty"));
  if (found) tell("success", `${bytes(found.bytes)} freed`, found.problems.join("\n"));
}

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
    return [box, make("label", { className: "check" }, box, `${bytes(sizes[kind])} of ${about}`)];
  });
  const chosen = () => boxes.filter(([box]) => box.checked).map(([box]) => box.value);
  const free = button("free", async () => {
    dialog.close();
    const done = await trying(() => post("/free", { runs, kinds: chosen() }));
    if (done) tell("success", `${bytes(done.bytes)} freed`, done.problems.join("\n"));
  }, { disabled: true, ariaLive: "polite" });
  const sum = () => {
    free.textContent = `free ${bytes(chosen().reduce((all, kind) => all + sizes[kind], 0))}`;
    free.disabled = !chosen().length;
  };
  for (const [box] of boxes) box.onchange = sum;
  const cancel = button("cancel", () => dialog.close());
  const pinned = rows.length - runs.length;
  const words = `Of ${count(runs.length)} ${runs.length === 1 ? "run" : "runs"}`
    + `${pinned ? `; ${count(pinned)} pinned stay as they are` : ""}. Results, curves and settings `
    + "stay. This cannot be undone.";
  const dialog = make("dialog", { className: "personalize-runs-dialog small" },
    make("h2", { textContent: "Free disk space" }), make("p", { textContent: words }),
    ...boxes.map(([, label]) => label),
    ...problems.map((textContent) => make("p", { className: "problems", textContent })),
    make("footer", {}, cancel, free));
  dialog.onclose = () => dialog.remove();
  sum();
  return dialog;
}
