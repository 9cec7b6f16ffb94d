/* The image with its mask: zoom and pan down to pixels, and the before/after wipe. */

import { paint } from "./paint.js";

const MOST = 64; // screen pixels an image pixel
const STEP = 1.25;

export class Viewer {
  /**
   * @param {HTMLElement} stage takes focus, pointers and keys; holds the canvas and the wipe's handle
   * @param {function} onView called with {scale} after the view has changed
   * @param {function} onPoint called with the image pixel {x, y} under the pointer, or null
   */
  constructor(stage, { onView, onPoint }) {
    this.stage = stage;
    this.canvas = stage.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.handle = stage.querySelector("[role=slider]");
    this.onView = onView;
    this.onPoint = onPoint;
    this.bitmap = null;
    this.layer = null;
    this.look = null;
    this.view = { scale: 1, left: 0, top: 0 };
    this.fitted = true;
    this.wiped = false;
    this.share = 0.5;
    this.pointers = new Map();
    this.ground = new OffscreenCanvas(1, 1); // the image alone, as it is on screen
    this.grounded = false;
    this.painted = new OffscreenCanvas(1, 1);
    this.framed = 0;
    new ResizeObserver(() => this.resize()).observe(stage);
    this.listen();
  }

  /* --- what to show --- */

  /** Show a bitmap as an image of width x height; null shows nothing. */
  showImage(bitmap, size = null) {
    const same = this.size && size && this.size.width === size.width && this.size.height === size.height && this.bitmap;
    this.bitmap = bitmap;
    this.size = size;
    if (!bitmap) this.layer = null;
    this.grounded = false;
    if (!same) this.fit();
    this.redraw();
  }

  /** Show a mask layer over it; paint.js says of what it is made. */
  showLayer(layer) {
    this.layer = layer;
    this.redraw();
  }

  setLook(look) {
    this.look = look;
    this.redraw();
  }

  setWipe(on) {
    this.wiped = on;
    this.handle.hidden = !on;
    this.moveWipe(this.share);
  }

  moveWipe(share) {
    this.share = Math.min(1, Math.max(0, share));
    const percent = Math.round(100 * this.share);
    this.handle.style.left = `${100 * this.share}%`;
    this.handle.setAttribute("aria-valuenow", String(percent));
    this.handle.setAttribute("aria-valuetext", `${percent} % before, ${100 - percent} % after`);
    this.redraw();
  }

  /* --- the view --- */

  get ratio() {
    return Math.min(2, devicePixelRatio || 1);
  }

  get fitScale() {
    if (!this.size) return 1;
    return Math.min(this.canvas.width / this.size.width, this.canvas.height / this.size.height, 8 * this.ratio);
  }

  /** Screen pixels (as the page counts them) to an image pixel. */
  get zoom() {
    return this.view.scale / this.ratio;
  }

  fit() {
    this.fitted = true;
    const scale = this.fitScale;
    if (this.size) {
      this.view = { scale, left: (this.canvas.width - scale * this.size.width) / 2, top: (this.canvas.height - scale * this.size.height) / 2 };
    }
    this.changed();
  }

  /** Zoom to a scale; the point (x, y) of the canvas stays where it is. */
  zoomTo(scale, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.size) return;
    const least = Math.min(this.fitScale, this.ratio);
    const chosen = Math.min(MOST * this.ratio, Math.max(least, scale));
    const grown = chosen / this.view.scale;
    this.view = { scale: chosen, left: x - (x - this.view.left) * grown, top: y - (y - this.view.top) * grown };
    this.fitted = false;
    this.keepInSight();
    if (Math.abs(chosen / this.fitScale - 1) < 0.01) this.fit();
    else this.changed();
  }

  zoomBy(factor, x, y) {
    this.zoomTo(this.view.scale * factor, x, y);
  }

  /** One image pixel to one screen pixel. */
  zoomToPixels() {
    this.zoomTo(this.ratio);
  }

  panBy(dx, dy) {
    if (!this.size) return;
    this.view = { ...this.view, left: this.view.left + dx, top: this.view.top + dy };
    this.fitted = false;
    this.keepInSight();
    this.changed();
  }

  /* An image smaller than the stage stays in its middle, a larger one covers it. */
  keepInSight() {
    const { scale } = this.view;
    for (const [side, room, length] of [["left", this.canvas.width, scale * this.size.width], ["top", this.canvas.height, scale * this.size.height]]) {
      if (length <= room) this.view[side] = (room - length) / 2;
      else this.view[side] = Math.min(0, Math.max(room - length, this.view[side]));
    }
  }

  changed() {
    this.grounded = false;
    this.stage.classList.toggle("zoomed", !this.fitted);
    this.onView({ zoom: this.zoom, fitted: this.fitted });
    this.redraw();
  }

  resize() {
    const width = Math.max(1, Math.round(this.stage.clientWidth * this.ratio));
    const height = Math.max(1, Math.round(this.stage.clientHeight * this.ratio));
    if (width === this.canvas.width && height === this.canvas.height) return;
    this.canvas.width = width;
    this.canvas.height = height;
    if (this.fitted) this.fit();
    else if (this.size) this.keepInSight();
    this.grounded = false;
    this.draw();
  }

  /* --- drawing --- */

  redraw() {
    if (this.framed) return;
    this.framed = requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.framed);
    this.framed = 0;
    const { canvas, context } = this;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.bitmap) return;
    if (!this.grounded) this.drawGround();
    context.drawImage(this.ground, 0, 0);
    if (this.layer && this.look) this.drawLayer();
  }

  /* Shrinking megapixels well takes longer than all else: once a view, not once a threshold. */
  drawGround() {
    const { canvas, ground } = this;
    ground.width = canvas.width; // this clears it, too
    ground.height = canvas.height;
    const context = ground.getContext("2d");
    const { scale, left, top } = this.view;
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, left, top, scale * this.size.width, scale * this.size.height);
    this.grounded = true;
  }

  drawLayer() {
    const { canvas, context, view } = this;
    const from = this.wiped ? Math.round(this.share * canvas.width) : 0;
    const x0 = Math.max(from, Math.floor(view.left), 0);
    const y0 = Math.max(0, Math.floor(view.top));
    const width = Math.min(canvas.width, Math.ceil(view.left + view.scale * this.size.width)) - x0;
    const height = Math.min(canvas.height, Math.ceil(view.top + view.scale * this.size.height)) - y0;
    if (width <= 0 || height <= 0) return;
    const image = new ImageData(width, height);
    const area = { width, height, left: view.left - x0, top: view.top - y0, scale: view.scale };
    paint(new Uint32Array(image.data.buffer), area, this.layer, { ...this.look, line: 1.5 * this.ratio });
    if (this.painted.width < width || this.painted.height < height) {
      this.painted = new OffscreenCanvas(Math.max(width, this.painted.width), Math.max(height, this.painted.height));
    }
    this.painted.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.painted, 0, 0, width, height, x0, y0, width, height);
  }

  /* --- pointers and keys --- */

  listen() {
    const { stage } = this;
    stage.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this.onDown(event));
    stage.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => this.onUp(event));
    stage.addEventListener("pointerleave", () => this.onPoint(null));
    stage.addEventListener("dblclick", (event) => this.onDouble(event));
    stage.addEventListener("keydown", (event) => this.onKey(event));
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * this.ratio, y: (event.clientY - box.top) * this.ratio };
  }

  onWheel(event) {
    if (!this.size) return;
    event.preventDefault();
    const { x, y } = this.at(event);
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoomBy(Math.exp(-Math.max(-240, Math.min(240, event.deltaY * lines)) / 400), x, y);
  }

  onDown(event) {
    if (event.target.closest("button") || !this.size || (event.pointerType === "mouse" && event.button !== 0)) return;
    this.stage.setPointerCapture(event.pointerId);
    const wiping = event.target.closest("[role=slider]") !== null;
    this.pointers.set(event.pointerId, { ...this.at(event), wiping });
    if (wiping) this.handle.focus();
    this.stage.classList.add("held");
  }

  onMove(event) {
    const now = this.at(event);
    this.onPoint(this.pixelAt(now));
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    if (before.wiping) {
      this.moveWipe(now.x / this.canvas.width);
    } else if (this.pointers.size === 1) {
      this.panBy(now.x - before.x, now.y - before.y);
    } else {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
      this.zoomBy(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
      this.panBy((now.x - before.x) / 2, (now.y - before.y) / 2);
    }
    this.pointers.set(event.pointerId, { ...now, wiping: before.wiping });
  }

  onUp(event) {
    this.pointers.delete(event.pointerId);
    if (!this.pointers.size) this.stage.classList.remove("held");
  }

  onDouble(event) {
    if (event.target.closest("button, [role=slider]")) return;
    const { x, y } = this.at(event);
    if (this.fitted) this.zoomBy(4, x, y);
    else this.fit();
  }

  pixelAt({ x, y }) {
    if (!this.size) return null;
    const point = { x: Math.floor((x - this.view.left) / this.view.scale), y: Math.floor((y - this.view.top) / this.view.scale) };
    return point.x >= 0 && point.y >= 0 && point.x < this.size.width && point.y < this.size.height ? point : null;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = event.target === this.handle ? this.wipeKeys()[event.key] : event.target === this.stage && this.viewKeys()[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  wipeKeys() {
    const by = (step) => () => this.moveWipe(this.share + step);
    return {
      ArrowLeft: by(-0.02), ArrowDown: by(-0.02), ArrowRight: by(0.02), ArrowUp: by(0.02),
      PageDown: by(-0.1), PageUp: by(0.1), Home: by(-1), End: by(1),
    };
  }

  viewKeys() {
    const far = 0.12 * Math.min(this.canvas.width, this.canvas.height);
    return {
      ArrowLeft: () => this.panBy(far, 0), ArrowRight: () => this.panBy(-far, 0),
      ArrowUp: () => this.panBy(0, far), ArrowDown: () => this.panBy(0, -far),
      "+": () => this.zoomBy(STEP), "=": () => this.zoomBy(STEP), "-": () => this.zoomBy(1 / STEP),
      0: () => this.fit(), 1: () => this.zoomToPixels(),
    };
  }
}
