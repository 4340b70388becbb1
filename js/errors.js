// An error that its reader can mend, in a toast; the host itself has it in a dialog of its own.
// The server says when: nodes/host/status.py.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const EVENT = "personalize.error";
const SHOWN_MS = 30_000;

app.registerExtension({
  name: "personalize.errors",
  setup() {
    api.addEventListener(EVENT, ({ detail: { text } }) => {
      const [summary, ...advice] = text.split("\n");
      const detail = advice.join("\n");
      app.extensionManager?.toast?.add({ severity: "error", summary, detail, life: SHOWN_MS });
    });
  },
});
