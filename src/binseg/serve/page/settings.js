/* The panel's controls: threshold, view and post-processing. */

import { levelOf, thresholdOf } from "./postprocessing.js";
import { isDark } from "./theme.js";

const $ = (id) => document.getElementById(id);

export class Settings {
  /** @param {object} on onMask() after threshold or post-processing changed, onLook() after the view did */
  constructor({ onMask, onLook }) {
    this.own = 127;
    this.counts = null;
    $("threshold").addEventListener("input", () => this.setLevel(Number($("threshold").value), onMask));
    $("threshold-reset").addEventListener("click", () => {
      this.setLevel(this.own, onMask);
      $("threshold").focus(); // the button is off now
    });
    for (const id of ["specks", "holes", "largest", "specks-area", "holes-area"]) $(id).addEventListener("change", onMask);
    for (const [number, box] of [["specks-area", "specks"], ["holes-area", "holes"]]) {
      $(number).addEventListener("input", () => {
        if ($(number).validity.valid && $(number).value) $(box).checked = true;
        onMask();
      });
    }
    for (const id of ["modes", "opacity", "colours"]) {
      $(id).addEventListener("input", (event) => {
        this.pickColour(event.target);
        this.showLook();
        onLook();
      });
    }
    this.showLook();
  }

  /** A model's own threshold is where the slider starts, its own corrections are switched on. */
  setModel({ threshold, postprocess }) {
    this.own = levelOf(threshold);
    for (const [box, number, area] of [["specks", "specks-area", postprocess.min_area], ["holes", "holes-area", postprocess.fill_holes]]) {
      if (area > 0) $(number).value = String(area);
      $(box).checked = area > 0;
    }
    $("largest").checked = postprocess.largest_only;
    this.setLevel(this.own, () => {});
  }

  setLevel(level, then) {
    $("threshold").value = String(level);
    const text = thresholdOf(level).toFixed(3);
    $("threshold-value").textContent = text;
    $("threshold").setAttribute("aria-valuetext", level === this.own ? `${text}, the model’s own` : text);
    $("threshold-reset").disabled = level === this.own;
    this.drawHistogram();
    then();
  }

  /** Level and post-processing, as the server takes them. */
  get mask() {
    const area = (box, number) => ($(box).checked && $(number).validity.valid ? Number($(number).value) : 0);
    return {
      level: Number($("threshold").value),
      postprocessing: { min_area: area("specks", "specks-area"), fill_holes: area("holes", "holes-area"), largest_only: $("largest").checked },
    };
  }

  get look() {
    const colour = $("own-colour").classList.contains("chosen") ? $("own-colour").value : document.querySelector("[name=colour]:checked").value;
    return {
      mode: document.querySelector("[name=mode]:checked").value,
      colour: [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16)),
      opacity: Number($("opacity").value) / 100,
      ground: isDark() ? [[52, 58, 65], [38, 43, 49]] : [[255, 255, 255], [223, 227, 232]],
    };
  }

  pickColour(target) {
    if (target.id === "own-colour") {
      target.classList.add("chosen");
      for (const radio of document.querySelectorAll("[name=colour]")) radio.checked = false;
    } else if (target.name === "colour") {
      $("own-colour").classList.remove("chosen");
    }
  }

  showLook() {
    const { mode } = this.look;
    $("opacity-value").textContent = `${$("opacity").value} %`;
    $("opacity").disabled = mode === "cutout";
    $("opacity-line").classList.toggle("off", mode === "cutout");
    $("colours").disabled = mode === "cutout" || mode === "probability";
    $("colours").classList.toggle("off", $("colours").disabled);
    $("legend").hidden = mode !== "probability";
  }

  /** How many pixels have at least each value 0 to 255; null for none. */
  setCounts(counts) {
    this.counts = counts;
    this.drawHistogram();
  }

  /* How often each probability is there; what the mask takes in the accent's colour. */
  drawHistogram() {
    const canvas = $("histogram");
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.counts) return;
    const style = getComputedStyle(canvas);
    const [taken, left] = [style.getPropertyValue("color"), style.getPropertyValue("caret-color")];
    const level = Number($("threshold").value);
    const heights = Array.from({ length: 256 }, (_, n) => Math.log1p(this.counts[n] - (this.counts[n + 1] ?? 0)));
    const most = Math.max(...heights, 1);
    heights.forEach((height, n) => {
      const tall = (height / most) * canvas.height;
      context.fillStyle = n > level ? taken : left;
      context.fillRect(n - 0.5, canvas.height - tall, 1, tall);
    });
  }
}
