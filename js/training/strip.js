// The previews of a run as a film strip: a row for each prompt, the newest at its right end.

import { make } from "../body.js";
import { count, tr } from "../locale.js";
import { previewUrl } from "../runs/store.js";

const FRAME_PX = 96;
const ROW_PX = FRAME_PX + 44; // with the prompt above and the step below
const MOST_ROWS = 3; // at once; more of them scroll

// An element with the strip; a function that shows a run's previews; one that says how tall it is.
export function makeStrip() {
  const element = make("div", { style: { overflowY: "auto" }, dataset: { captureWheel: "true" } });
  const frames = new Map(); // so that a picture that is there already does not flicker
  const rows = new Map();

  function show(run, previews) {
    const prompts = [...new Set(previews.map(({ prompt }) => prompt))];
    for (const prompt of prompts) if (!rows.has(prompt)) rows.set(prompt, makeRow(prompt));
    element.replaceChildren(...prompts.map((prompt) => rows.get(prompt)));
    const wanted = new Map(prompts.map((prompt) => [prompt, []]));
    for (const preview of previews) {
      const key = `${run}/${preview.file}?${preview.changed}`;
      if (!frames.has(key)) frames.set(key, makeFrame(run, preview));
      wanted.get(preview.prompt).push(frames.get(key));
    }
    for (const [prompt, pictures] of wanted) {
      const film = rows.get(prompt).lastChild;
      film.replaceChildren(...pictures);
      film.scrollLeft = film.scrollWidth;
    }
  }

  return [element, show, () => ROW_PX * Math.min(MOST_ROWS, element.childElementCount)];
}

function makeRow(prompt) {
  const oneLine = { whiteSpace: "nowrap", overflow: "hidden", textOverflow: "ellipsis" };
  const style = { fontSize: "13px", padding: "4px 2px 2px", ...oneLine };
  const film = make("div", {
    style: { display: "flex", gap: "4px", overflowX: "auto", scrollbarWidth: "thin" },
    dataset: { captureWheel: "true" },
  });
  const text = make("div", { textContent: prompt, title: prompt, style });
  return make("div", { style: { height: `${ROW_PX}px` } }, text, film);
}

function makeFrame(run, { step, prompt, file, changed }) {
  const [whole, small] = [false, true].map((isSmall) => previewUrl(run, { file, changed }, isSmall));
  const at = tr("step {step}", { step: count(step) });
  const style = { height: `${FRAME_PX}px`, display: "block", borderRadius: "3px" };
  const picture = make("img", { src: small, alt: `${prompt}, ${at}`, loading: "lazy", style });
  const link = make("a", { href: whole, target: "_blank", title: `${prompt}, ${at}` }, picture);
  const words = make("div", { textContent: at, style: { fontSize: "11px" } });
  return make("div", { style: { flex: "none" } }, link, words);
}
