// The sparkline of a training at work, from what events say of its new steps.

const SPARKS = 60; // points, as in trainers/runs/catalog/curve.py

export class Growing {
  // Of `steps` steps the means of so many stretches are known, and what is between them is not.
  constructor(means, steps) {
    this.sums = [0]; // of the first 0, 1, 2, ... losses
    for (let step = 0; step < steps && means.length; step++) {
      this.add(means[Math.floor(((step + 0.5) * means.length) / steps)]);
    }
  }

  get steps() {
    return this.sums.length - 1;
  }

  add(loss) {
    this.sums.push(this.sums.at(-1) + loss);
  }

  // Adds points [step, loss] that follow; false where steps between are not known.
  take(points) {
    for (const [step, loss] of points) {
      if (step === this.steps + 1) this.add(loss);
      else if (step > this.steps) return false;
    }
    return true;
  }

  // Means of at most SPARKS stretches that differ in length by one at most.
  sparkline() {
    const parts = Math.min(SPARKS, this.steps);
    const end = (part) => Math.floor((this.steps * part) / parts);
    return Array.from({ length: parts }, (_, part) =>
      (this.sums[end(part + 1)] - this.sums[end(part)]) / (end(part + 1) - end(part)));
  }
}
