// What is said of runs: numbers with their units, times, states and methods in words.

const METHODS = {
  lora: "LoRA", dreambooth: "DreamBooth", textual_inversion: "Textual Inversion",
};
const STATES = {
  training: "training now", done: "done", stopped: "stopped early", unfinished: "unfinished",
  damaged: "damaged",
};
const UNITS = ["bytes", "kB", "MB", "GB", "TB"];
const DAY_MS = 86_400_000;

export const methodName = (method) => METHODS[method] ?? (method || "unknown method");
export const stateName = (state) => STATES[state] ?? state;
export const count = (number) => number.toLocaleString("en");

export function bytes(number) {
  const power = number < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(number) / 3));
  const digits = power && number / 1000 ** power < 100 ? 1 : 0;
  return `${(number / 1000 ** power).toFixed(digits)} ${UNITS[power]}`;
}

export function sizeOf(row) {
  return Object.values(row.bytes).reduce((sum, one) => sum + one, 0);
}

export function loss(value) {
  return value == null ? "no loss yet" : Number(value.toPrecision(4)).toString();
}

export function steps({ steps: done, planned_steps: planned }) {
  return planned > done ? `${count(done)} of ${count(planned)} steps` : `${count(done)} steps`;
}

export function duration(seconds) {
  if (seconds == null) return "unknown";
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (hours) return `${count(hours)} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${seconds.toFixed(1)} s`;
}

// Seconds since 1970 as a day, and where there is room or it is of today with the time.
export function date(seconds, isLong = false) {
  if (!seconds) return "unknown";
  const when = new Date(seconds * 1000);
  if (Number.isNaN(when.getTime())) return "unknown";
  const isNew = Math.abs(Date.now() - when.getTime()) < DAY_MS;
  const time = isLong || isNew ? { hour: "2-digit", minute: "2-digit" } : {};
  return when.toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", ...time });
}

// As a widget shows it.
export function written(value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (typeof value === "number" && value && Math.abs(value) < 1e-3) return value.toExponential();
  return String(value ?? "") || "(empty)";
}

// All that the filter looks at.
export function searched(row) {
  const words = [row.title, row.run, methodName(row.method), row.model, row.data, row.note];
  words.push(row.architecture_title, stateName(row.state), row.pinned ? "pinned" : "");
  return words.join("\n").toLowerCase();
}
