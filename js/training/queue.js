// How many trainings wait in the queue, and how long they will take by runs like them: asked of
// nodes/host/workbench/queue.py when the queue changes.

import { api } from "../../../scripts/api.js";
import { count, tr } from "../locale.js";

const QUEUE = "/personalize/queue";
const SOON_MS = 500; // a queue that fills changes with each prompt

const watchers = new Set();
let [told, timer] = ["", undefined];

// Calls `react` when the line that `waiting` gives has changed.
export const onQueue = (react) => watchers.add(react);

// A line on those that wait; nothing where none does.
export const waiting = () => told;

export function queueLine({ trainings, seconds }) {
  if (!trainings) return "";
  const more = { count: count(trainings), time: seconds === null ? "" : clock(seconds) };
  return seconds === null ? tr("{count} more in the queue: time unknown", more)
    : tr("{count} more in the queue: about {time}", more);
}

// Seconds as minutes and seconds, with hours where there are any.
export function clock(seconds) {
  const whole = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

async function ask() {
  const reply = await api.fetchApi(QUEUE);
  const line = reply.status === 200 ? queueLine(await reply.json()) : "";
  if (line === told) return;
  told = line;
  for (const react of watchers) react();
}

// The host tells how many prompts are left, which changes as one is queued, begins or ends.
let left;
api.addEventListener("status", ({ detail }) => {
  const now = detail?.exec_info?.queue_remaining;
  if (now === left) return;
  left = now;
  clearTimeout(timer);
  timer = setTimeout(ask, SOON_MS);
});
