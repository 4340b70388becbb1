// A notification of the browser when a training has ended, for those who asked for it in the
// settings dialog and look at something else meanwhile.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { tr } from "../locale.js";
import { statusWords } from "./status.js";

const SETTING = "Personalize.Notify";
const EVENTS = ["personalize.training", "personalize.status"];
const LATE_MS = 1000; // within which the line comes that says how a failed one ended

const OF_SWEEP = /^run \d+ of \d+\b/; // above all that is said of one of its runs

const seen = new Map(); // what was last told of each node

function hear({ detail }) {
  const key = `${detail.graph} ${detail.node}`;
  const before = seen.get(key);
  seen.set(key, detail);
  if (before?.training && !detail.training) setTimeout(() => tell(seen.get(key)), LATE_MS);
}

async function tell({ run, text }) {
  if (OF_SWEEP.test(text)) return; // more of its runs come
  if (!app.extensionManager.setting.get(SETTING) || !document.hidden) return;
  if (globalThis.Notification?.permission !== "granted") return;
  const reply = await api.fetchApi(`/personalize/runs/${encodeURIComponent(run)}`);
  const title = reply.status === 200 ? (await reply.json()).title : run;
  const shown = new Notification(title, {
    body: statusWords(text), tag: `personalize ${run}`, // one for all tabs
  });
  shown.onclick = () => window.focus();
}

// Browsers ask their people once, and only when these have just pressed something.
async function changed(isOn, before) {
  if (!isOn || before === undefined) return; // the page loads
  const answer = await globalThis.Notification?.requestPermission();
  if (answer === "granted") return;
  const detail = tr("Allow notifications for this address in the browser's settings. They need \
https, or ComfyUI on this computer.");
  const summary = tr("The browser shows no notifications");
  app.extensionManager.toast.add({ severity: "warn", summary, detail, life: 10000 });
}

app.registerExtension({
  name: "personalize.notify",
  settings: [{
    id: SETTING,
    name: tr("Notify when a training has ended"),
    tooltip: tr("By a notification of the browser, while the page is hidden: done, stopped or failed."),
    category: ["Personalize", "Trainings", "Notify"],
    type: "boolean",
    defaultValue: false,
    onChange: changed,
  }],
  setup() {
    for (const event of EVENTS) api.addEventListener(event, hear);
  },
});
