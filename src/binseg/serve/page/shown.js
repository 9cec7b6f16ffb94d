/* The image that is shown: its bitmap, its probability, its mask at the present settings. */

import { getPreview, patiently } from "./api.js";
import { ask } from "./background.js";
import { isEmpty } from "./postprocessing.js";
import { openBitmap } from "./image.js";

export class Shown {
  /**
   * @param {Viewer} viewer
   * @param {object} on onBitmap(item, bitmap), onMeasured(measure), onTrouble(item, error),
   *   onWait(item, seconds)
   */
  constructor(viewer, on) {
    this.viewer = viewer;
    this.on = on;
    this.item = null;
    this.bitmap = null;
    this.found = null; // {width, height, pixels, counts}: the probability
    this.mask = null; // after the post-processing; null where there is none
    this.settings = null; // {level, postprocessing}
    this.stop = new AbortController();
    this.measuring = false;
    this.stale = false;
  }

  /** Show an item, or nothing; what the last one held is freed. */
  async open(item) {
    this.close();
    this.item = item;
    if (!item) return;
    const { signal } = this.stop;
    try {
      const bitmap = await patiently(() => openBitmap(item.file, signal), { signal, onWait: (seconds) => this.on.onWait(item, seconds) });
      if (signal.aborted) {
        bitmap.close();
        return;
      }
      this.place(bitmap);
      this.on.onBitmap(item, bitmap);
    } catch (error) {
      if (!signal.aborted && error.name !== "AbortError") this.on.onTrouble(item, error);
    }
  }

  /** Free the bitmap, the probability and the worker's copy. */
  close() {
    this.stop.abort();
    this.stop = new AbortController();
    this.viewer.showImage(null);
    this.bitmap?.close();
    this.bitmap = null;
    ask("close");
    this.found = null;
    this.mask = null;
    this.item = null;
  }

  /** Take the prediction for the shown item. */
  async take({ blob }) {
    const { signal } = this.stop;
    const found = await ask("open", { blob });
    if (signal.aborted) return;
    this.found = found;
    for (let level = 254; level >= 0; level -= 1) found.counts[level] += found.counts[level + 1]; // now: pixels of at least that value
    if (this.bitmap && !this.agrees(this.bitmap)) await this.replace(signal);
    else if (this.bitmap) this.place(this.bitmap);
    this.update();
  }

  /** Forget the prediction, as the model is another now. */
  forget() {
    this.found = null;
    this.mask = null;
    this.viewer.showLayer(null);
  }

  place(bitmap) {
    this.bitmap = bitmap;
    this.viewer.showImage(bitmap, this.found ?? bitmap);
    if (this.found) this.showLayer();
  }

  /* A browser that turned the image another way than the server: the server's preview is right. */
  agrees({ width, height }) {
    return Math.abs(width / height / (this.found.width / this.found.height) - 1) < 0.02 || Math.min(width, height, this.found.width, this.found.height) < 100;
  }

  async replace(signal) {
    const bitmap = await createImageBitmap(await getPreview(this.item.file, signal));
    if (signal.aborted) {
      bitmap.close();
      return;
    }
    this.bitmap.close();
    this.place(bitmap);
  }

  /** Use other settings; the image follows at once, counting objects may come a moment later. */
  use(settings) {
    this.settings = settings;
    this.update();
  }

  update() {
    if (!this.found || !this.settings) return;
    if (isEmpty(this.settings.postprocessing)) {
      this.mask = null;
      this.on.onMeasured({ ...this.size, area: this.found.counts[this.settings.level + 1], count: null });
    }
    this.showLayer();
    this.measure();
  }

  get size() {
    return { width: this.found.width, height: this.found.height };
  }

  showLayer() {
    if (!this.settings) return;
    const { level, postprocessing } = this.settings;
    const cleaned = this.mask && !isEmpty(postprocessing);
    this.viewer.showLayer({
      ...this.size, probability: this.found.pixels,
      pixels: cleaned ? this.mask : this.found.pixels, level: cleaned ? 0 : level,
    });
  }

  /* Only the newest settings count: those passed on the way are never computed. */
  async measure() {
    this.stale = true;
    if (this.measuring) return;
    this.measuring = true;
    try {
      while (this.stale && this.found) await this.measureOnce();
    } catch (error) {
      if (this.item) this.on.onTrouble(this.item, error);
    } finally {
      this.measuring = false;
    }
  }

  async measureOnce() {
    this.stale = false;
    const { found, settings } = this;
    const measured = await ask("measure", settings);
    if (this.found !== found) {
      this.stale = true;
      return;
    }
    if (this.stale && isEmpty(this.settings.postprocessing)) return;
    this.mask = measured.mask ?? null;
    this.showLayer();
    this.on.onMeasured({ ...this.size, area: measured.area, count: measured.count });
  }

  /** The probability, 0 to 255, at an image pixel; null where there is none. */
  probabilityAt({ x, y }) {
    return this.found ? this.found.pixels[y * this.found.width + x] : null;
  }
}
