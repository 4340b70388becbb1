// Two pictures over each other and an edge between them: left of it is the one, right of it the
// other. It is moved by keys, with the slider below, or by hand on the pictures.

import { make } from "../body.js";
import { tr } from "../locale.js";

export const BELOW_PX = 42; // the slider and the names
export const SLIDER = `
.personalize-slider {
  container-type: size; display: flex; flex-direction: column; align-items: center;
  justify-content: center; min-width: 0; min-height: 0;
}
/* All of it as wide as the pictures, so that the edge is above the slider's thumb. */
.personalize-slider > * {
  box-sizing: border-box; flex: none;
  width: min(100cqw, (100cqh - ${BELOW_PX}px) * var(--ratio, 1));
}
.personalize-slider .stack {
  position: relative; aspect-ratio: var(--ratio, 1); cursor: ew-resize; touch-action: pan-y;
  overflow: hidden; border-radius: 4px;
}
.personalize-slider img {
  position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; object-fit: contain;
}
.personalize-slider .edge {
  position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff;
  outline: 1px solid #000; pointer-events: none;
}
.personalize-slider > :is(input, .names) { min-width: min(100cqw, 140px); }
.personalize-slider input {
  height: 24px; cursor: pointer; accent-color: var(--p-primary-color, #58f);
}
.personalize-slider .names {
  display: flex; justify-content: space-between; gap: 12px; height: 18px; line-height: 18px;
}
.personalize-slider .names > * {
  min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
`;

export class Slider {
  // `label` says to readers what is moved.
  constructor(label) {
    this.pictures = [0, 1].map(() => make("img", { draggable: false, decoding: "async" }));
    this.names = [0, 1].map(() => make("small"));
    this.edge = make("div", { className: "edge" });
    this.stack = make("div", {
      className: "stack",
      onpointerdown: (event) => this.take(event),
      onpointermove: (event) => this.stack.hasPointerCapture(event.pointerId) && this.move(event),
    }, ...this.pictures, this.edge);
    this.range = make("input", {
      type: "range", min: 0, max: 100, step: "any", value: 50, ariaLabel: label,
      oninput: () => this.cut(),
    });
    this.pictures[0].onload = () => this.shape();
    const below = make("div", { className: "names", ariaLive: "polite" }, ...this.names);
    this.element = make("div", { className: "personalize-slider" }, this.stack, this.range, below);
    this.cut();
  }

  // The left picture (0) or the right one (1), what it is called below, and in whole for readers.
  show(place, address, name, whole) {
    const picture = this.pictures[place];
    if (picture.getAttribute("src") !== address) picture.src = address;
    picture.alt = whole;
    this.names[place].textContent = name;
  }

  shape() {
    const { naturalWidth, naturalHeight } = this.pictures[0];
    this.element.style.setProperty("--ratio", naturalWidth / naturalHeight);
  }

  cut() {
    const percent = Number(this.range.value);
    this.pictures[1].style.clipPath = `inset(0 0 0 ${percent}%)`;
    this.edge.style.left = `${percent}%`;
    const value = Math.round(percent);
    this.range.ariaValueText = tr("{value} % of the left picture", { value });
  }

  take(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // or the browser would drag or select
    this.stack.setPointerCapture(event.pointerId);
    this.range.focus({ preventScroll: true });
    this.move(event);
  }

  move({ clientX }) {
    const { left, width } = this.stack.getBoundingClientRect(); // as large as it is on the screen
    this.range.value = (100 * (clientX - left)) / width;
    this.cut();
  }
}
