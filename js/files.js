// After a file was saved, the lists of the stock loaders are read anew, as by the key R.
// The server says when: nodes/host/status.py.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const EVENT = "personalize.files";

app.registerExtension({
  name: "personalize.files",
  setup() {
    api.addEventListener(EVENT, () => app.refreshComboInNodes?.());
  },
});
