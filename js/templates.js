// The graphs of this pack in the template browser, in the order of their numbers: the host lists
// them as they happen to lie on the disk.

import { api } from "../../scripts/api.js";

const FIRST = /^1 LoRA of your subject/;
const asked = api.getWorkflowTemplates;

if (asked) {
  api.getWorkflowTemplates = async function (...args) {
    const templates = await asked.apply(this, args);
    for (const titles of Object.values(templates ?? {})) {
      if (Array.isArray(titles) && titles.some((title) => FIRST.test(title))) titles.sort();
    }
    return templates;
  };
}
