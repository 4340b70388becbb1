// Which previews of several runs show the same: the same prompt, the same seed, the same step.

import { tr } from "../locale.js";

const key = ({ prompt, seed }) => JSON.stringify([prompt, seed]);

// What to compare, as {prompt, seed, label}: prompts with a seed that more than one run has
// previews of; then prompts that runs share with other seeds alone, where seed is undefined.
export function shotsOf(runs) {
  const sets = (of) => runs.map((run) => new Set(run.curve.previews.map(of)));
  const shared = (each, one) => each.filter((set) => set.has(one)).length > 1;
  const [keys, prompts] = [sets(key), sets(({ prompt }) => prompt)];
  const all = [...new Set(keys.flatMap((set) => [...set]))].map((one) => JSON.parse(one));
  const same = all.filter((shot) => shared(keys, JSON.stringify(shot)))
    .map(([prompt, seed]) => ({ prompt, seed, label: labelOf(prompt, seed) }));
  const known = new Set(same.map(({ prompt }) => prompt));
  const other = [...new Set(all.map(([prompt]) => prompt))]
    .filter((prompt) => !known.has(prompt) && shared(prompts, prompt))
    .map((prompt) => ({
      prompt, seed: undefined, label: tr("{prompt} (seeds differ)", { prompt: named(prompt) }),
    }));
  return [...same, ...other];
}

const named = (prompt) => prompt || tr("(empty)");

function labelOf(prompt, seed) {
  return seed ? tr("{prompt} (seed {seed})", { prompt: named(prompt), seed })
    : tr("{prompt} (seed unknown)", { prompt: named(prompt) });
}

// The previews of a run that show this.
export function previewsOf(run, { prompt, seed }) {
  return run.curve.previews.filter((one) =>
    one.prompt === prompt && (seed === undefined || one.seed === seed));
}

// The step to begin with: the last that both have, else the last of the left one.
export function lastOfBoth(left, right) {
  const steps = new Set(right.map(({ step }) => step));
  return (left.findLast(({ step }) => steps.has(step)) ?? left.at(-1))?.step;
}
