// Pictures come in from the browser: by a button on Training Images (Folder), or dropped onto it.
// They go into a folder of ComfyUI's input by its own upload route, and the folder is chosen.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { count, tr } from "../locale.js";

const NODE = "PersonalizeFolderDataset";
const ROUTE = "/upload/image"; // takes any file
const ENDINGS = /\.(png|apng|jpe?g|jfif|webp|bmp|gif|tiff?|avif|txt|caption|jsonl)$/i;
const BUTTON = "upload pictures";

function isFolder(name) {
  return Boolean(name) && !name.startsWith("("); // where there is none, the list says so
}

async function askForFolder(chosen) {
  const question = {
    title: tr("Upload pictures"),
    message: tr("Folder inside ComfyUI's input; a new name makes a new one:"),
    defaultValue: isFolder(chosen) ? chosen : "subject",
  };
  const dialog = app.extensionManager?.dialog;
  const answer = dialog?.prompt
    ? await dialog.prompt(question)
    : window.prompt(question.message, question.defaultValue);
  return answer?.trim() || null;
}

async function send(file, folder) {
  const body = new FormData();
  body.append("image", file, file.name);
  body.append("type", "input");
  body.append("subfolder", folder);
  const reply = await api.fetchApi(ROUTE, { method: "POST", body });
  if (reply.status !== 200) throw new Error(`${file.name}: ${reply.status}`);
}

function tell(detail) {
  const words = { severity: "error", summary: tr("Not uploaded"), detail, life: 20_000 };
  app.extensionManager?.toast?.add(words);
}

async function choose(node, folder) {
  await app.refreshComboInNodes?.();
  const widget = node.widgets.find((one) => one.name === "folder");
  const names = widget.options?.values;
  if (Array.isArray(names) && !names.includes(folder)) names.push(folder);
  widget.value = folder;
  widget.callback?.(folder);
}

async function upload(node, files, button) {
  const wanted = files.filter((file) => ENDINGS.test(file.name));
  if (!wanted.length) return tell(tr("None of these files is a picture or a caption."));
  const chosen = node.widgets.find((one) => one.name === "folder").value;
  const folder = await askForFolder(chosen);
  if (!folder) return;
  const failed = [];
  for (const [place, file] of wanted.entries()) {
    const where = { place: count(place + 1), count: count(wanted.length) };
    button.label = tr("uploading {place}/{count}", where);
    node.setDirtyCanvas(true, true);
    await send(file, folder).catch((error) => failed.push(error.message));
  }
  button.label = tr("upload pictures");
  if (failed.length) tell(failed.join("\n"));
  if (failed.length < wanted.length) await choose(node, folder);
  node.setDirtyCanvas(true, true);
}

function pick(react) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", multiple: true, accept: "image/*,.txt,.caption,.jsonl" });
  input.onchange = () => react([...input.files]);
  input.click();
}

function connect(node) {
  const take = (files) => upload(node, files, button);
  const button = node.addWidget("button", BUTTON, null, () => pick(take), { serialize: false });
  button.label = tr("upload pictures");
  button.serialize = false; // a saved graph has a value for each widget but this one
  node.personalizeTake = take;
}

// Ours among the nodes, if it lies under the pointer; text fields are elements on top of it.
function nodeUnder(event) {
  const place = app.canvas?.convertEventToCanvasOffset?.(event);
  const node = place && app.canvas.graph?.getNodeOnPos?.(...place);
  return node?.comfyClass === NODE ? node : undefined;
}

// Before the page itself hears of it, which would make a Load Image node of each picture.
function onDrag(event) {
  const files = [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  const node = files ? nodeUnder(event) : undefined;
  if (!node) return;
  event.preventDefault();
  event.stopPropagation();
  if (event.type === "drop") node.personalizeTake([...event.dataTransfer.files]);
}

app.registerExtension({
  name: "personalize.upload",
  setup() {
    for (const kind of ["dragover", "drop"]) document.addEventListener(kind, onDrag, true);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) connect(node);
  },
});
