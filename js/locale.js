// What the pages of this pack say, in the language that ComfyUI is set to. The English text is the
// key of its translation in locales/<language>/main.json, under "personalize", which the host
// serves with those of other packs. What is not translated stays English.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SETTING = "Comfy.Locale";
const ENGLISH = "en";
let [spoken, texts] = [ENGLISH, {}];

// The language of the texts, which numbers and dates follow: one that nothing is translated into
// counts as English.
export const language = () => spoken;

// `text`, translated, with {name} replaced by values[name].
export function tr(text, values = {}) {
  const told = texts[text] || text;
  return told.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

// A text that stands in a list and is told later, by tr.
export const mark = (text) => text;

export const count = (number) => number.toLocaleString(spoken);

let latest; // that was asked for: replies may come in another order

async function learn(wanted) {
  latest = wanted;
  let found;
  if (wanted && wanted !== ENGLISH) {
    try {
      const reply = await api.fetchApi("/i18n");
      found = (await reply.json())[wanted]?.personalize;
    } catch (error) {
      console.warn("Personalize: no translations, so its texts are English.", error);
    }
  }
  if (wanted === latest) [spoken, texts] = found ? [wanted, found] : [ENGLISH, {}];
}

// What is drawn later is in the new language: nodes, since the host opens the graph anew, once it
// knows their own texts; a tab that is open, when it is opened again.
app.ui?.settings?.addEventListener?.(`${SETTING}.change`, ({ detail }) => learn(detail?.value));
await learn(app.extensionManager?.setting?.get?.(SETTING));
