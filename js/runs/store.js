// What the server knows of the runs on disk, see nodes/host/workbench/runs.py. All that it says
// only ever becomes text.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { tr } from "../locale.js";

const ROUTE = "/personalize/runs";
const SHOWN_MS = 10_000;

// The server says no, and why.
export class RefusedError extends Error {
  constructor(status, said) {
    super(said?.error ?? tr("The server says {status}.", { status }));
    this.settings = said?.settings; // of a run whose graph is not known
  }
}

async function ask(path, options) {
  const reply = await api.fetchApi(ROUTE + path, options);
  let said = null;
  try {
    said = await reply.json();
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error; // a page of HTML instead
  }
  if (reply.status !== 200 || said === null) throw new RefusedError(reply.status, said);
  return said;
}

export const get = (path = "") => ask(path);
export const pathOf = (run) => `/${encodeURIComponent(run)}`;

export function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) });
}

export function tell(severity, summary, detail = "") {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: SHOWN_MS });
}

// Does what may be refused; a refusal is told, and gives undefined.
export async function trying(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof RefusedError || error instanceof TypeError)) throw error;
    const [summary, ...advice] = error.message.split("\n"); // a TypeError: no connection
    tell("error", summary, advice.join("\n"));
    return undefined;
  }
}

// The address of a preview; small ones are made by the host.
export function previewUrl(run, { file, changed }, isSmall) {
  const place = { filename: file, subfolder: `personalize/${run}/previews`, type: "output" };
  const whole = api.apiURL(`/view?${new URLSearchParams({ ...place, t: changed })}`);
  return isSmall ? `${whole}&preview=webp;80` : whole;
}
