// The status line of a training in the page's language. The server writes it in English, for all
// pages and its log: nodes/host/runs. Here are its sentences again; what is none of them, such as
// the words of an error, stays as it came.

import { mark, tr } from "../locale.js";

const SENTENCES = [
  mark("run {run} of {runs}"),
  mark("run {run} of {runs}: {name}"),
  mark("comparing with earlier runs"),
  mark("planning memory"),
  mark("waiting: this run trains elsewhere"),
  mark("encoding pictures {done}/{all}"),
  mark("preparing the model"),
  mark("encoding captions {done}/{all}"),
  mark("asking the base model {done}/{all}"),
  mark("about {time} by run {run}"),
  mark("going on from step {step}"),
  mark("beginning at step {step} of {run}"),
  mark("step {step}/{steps}"),
  mark("loss {loss}"),
  mark("rate {rate}"),
  mark("{time} left"),
  mark("done: {steps} steps in {time}, loss {loss}, {path}"),
  mark("stopped at step {step} of {steps} and kept; run again hands it out, loss {loss}, {path}"),
  mark("trained before, {steps} steps: taken from disk, {path}"),
  mark("cancelled before the first step"),
  mark("cancelled at step {step}; run again goes on"),
  mark("cancelled at step {step}; run again goes on from step {start}"),
  mark("cancelled at step {step}; run again starts anew"),
  mark("ended by an error: {error}"),
  mark("the result is in the graph, but it was not kept. {error}"),
];
const LONG = ["name", "path", "error"]; // values that may have blanks in them

const PATTERNS = SENTENCES.map((sentence) => [sentence, patternOf(sentence)]);

function patternOf(sentence) {
  const literal = sentence.replace(/[.*+?^$()|[\]\\]/g, "\\$&");
  const value = (whole, name) => `(?<${name}>${LONG.includes(name) ? ".+" : "\\S+"})`;
  return new RegExp(`^${literal.replace(/\{(\w+)\}/g, value)}$`);
}

export function statusWords(text) {
  return (text ?? "").split("\n").map(inWords).join("\n");
}

// A step's line has several parts.
function inWords(line) {
  return told(line) ?? line.split(" · ").map((part) => told(part) ?? part).join(" · ");
}

function told(text) {
  for (const [sentence, pattern] of PATTERNS) {
    const found = pattern.exec(text);
    if (found) return tr(sentence, found.groups);
  }
  return undefined;
}
