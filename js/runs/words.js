// What is said of runs: numbers with their units, times, states and methods in words.

import { count, language, tr } from "../locale.js";

export { count };

const METHODS = {
  lora: "LoRA", dreambooth: "DreamBooth", textual_inversion: "Textual Inversion",
};
const STATES = {
  training: () => tr("training now"), done: () => tr("done"), stopped: () => tr("stopped early"),
  unfinished: () => tr("unfinished"), damaged: () => tr("damaged"),
};
const UNITS = ["", "kB", "MB", "GB", "TB"];
const DAY_MS = 86_400_000;

export const methodName = (method) => METHODS[method] ?? (method || tr("unknown method"));
export const stateName = (state) => STATES[state]?.() ?? state;

export function bytes(number) {
  const power = number < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(number) / 3));
  if (!power) return number === 1 ? tr("1 byte") : tr("{count} bytes", { count: count(number) });
  const digits = power && number / 1000 ** power < 100 ? 1 : 0;
  return `${(number / 1000 ** power).toFixed(digits)} ${UNITS[power]}`;
}

export function sizeOf(row) {
  return Object.values(row.bytes).reduce((sum, one) => sum + one, 0);
}

export function loss(value) {
  return value == null ? tr("no loss yet") : Number(value.toPrecision(4)).toString();
}

export function steps({ steps: done, planned_steps: planned }) {
  const told = { done: count(done), planned: count(planned ?? 0) };
  if (planned > done) return tr("{done} of {planned} steps", told);
  return done === 1 ? tr("1 step") : tr("{done} steps", told);
}

export function duration(seconds) {
  if (seconds == null) return tr("unknown");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const parts = { hours: count(hours), minutes, seconds: Math.floor(seconds % 60) };
  if (hours) return tr("{hours} h {minutes} min", parts);
  return minutes ? tr("{minutes} min {seconds} s", parts)
    : tr("{seconds} s", { seconds: seconds.toFixed(1) });
}

// Seconds since 1970 as a day, and where there is room or it is of today with the time.
export function date(seconds, isLong = false) {
  if (!seconds) return tr("unknown");
  const when = new Date(seconds * 1000);
  if (Number.isNaN(when.getTime())) return tr("unknown");
  const isNew = Math.abs(Date.now() - when.getTime()) < DAY_MS;
  const time = isLong || isNew ? { hour: "2-digit", minute: "2-digit" } : {};
  // As it is written where its reader lives: "en" alone would be the United States'.
  const place = navigator.languages?.find((one) => one.split("-")[0] === language()) ?? language();
  return when.toLocaleString(place, { year: "numeric", month: "short", day: "numeric", ...time });
}

// As a widget shows it.
export function written(value) {
  if (typeof value === "boolean") return value ? tr("on") : tr("off");
  if (typeof value === "number" && value && Math.abs(value) < 1e-3) return value.toExponential();
  return String(value ?? "") || tr("(empty)");
}

// All that the filter looks at.
export function searched(row) {
  const words = [row.title, row.run, methodName(row.method), row.model, row.data, row.note];
  words.push(row.architecture_title, stateName(row.state), row.pinned ? tr("pinned") : "");
  return words.join("\n").toLowerCase();
}
