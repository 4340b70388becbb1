// Export Run says where the export lies and how much there is to copy; also where nothing had to
// run again, since the host sends what it said before.

import { app } from "../../../scripts/app.js";
import { LINE_PX, MARGIN_PX, addBody, after, make, textHeight } from "../body.js";
import { tr } from "../locale.js";

const LOOKS = {
  fontSize: "12px", lineHeight: `${LINE_PX}px`, color: "var(--input-text)", overflow: "hidden",
  whiteSpace: "pre-wrap", overflowWrap: "anywhere", userSelect: "text",
};

app.registerExtension({
  name: "personalize.export",
  nodeCreated(node) {
    if (node.comfyClass !== "PersonalizeExportRun") return;
    const line = make("div", { className: "personalize-export", role: "status", style: LOOKS });
    const width = () => Math.max(1, node.size[0] - 2 * MARGIN_PX);
    const height = () => textHeight(line.textContent, width());
    const fit = addBody(node, "export", line, height);
    const tell = (lines) => {
      line.textContent = lines?.join("\n")
        ?? tr("Where the export lies, and how much there is to copy, shows here.");
      line.style.opacity = lines ? "1" : "0.8";
      fit();
    };
    after(node, "onExecuted", (output) => tell(output?.text));
    tell();
  },
});
