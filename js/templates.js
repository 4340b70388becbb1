// The graphs of this pack in the template browser, in the order of their numbers: the host lists
// them as they happen to lie on the disk.

import { api } from "../../scripts/api.js";

const PACK = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2)); // its folder
const asked = api.getWorkflowTemplates;

if (asked) {
  api.getWorkflowTemplates = async function (...args) {
    const templates = await asked.apply(this, args);
    templates?.[PACK]?.sort?.();
    return templates;
  };
}
