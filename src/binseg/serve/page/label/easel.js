/* The image to draw on: tiles of the image, what is labelled and predicted over it, and the stroke under way. */

import { Viewer } from "../viewer.js";

const TILE = 1024;
const MOST_TILES = 48;
const LEVELS = 8;
const PREDICTED = [86, 180, 233, 200];
const THING = [230, 159, 0, 235];
const NOT_IT = [138, 123, 200, 150];
const COLOURS = { 1: "#e69f00", 0: "#8a7bc8", 255: "#ffffff" };

/** A canvas coloured by codes: 0 and 1 predicted, 2 and 3 labelled. */
export function coloured(bitmap, { done }) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const image = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const pixels = new Uint32Array(image.data.buffer);
  const word = ([r, g, b, a]) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const table = new Uint32Array(256);
  table[1] = word(PREDICTED);
  table[2] = done ? 0 : word(NOT_IT);
  table[3] = word(THING);
  for (let i = 0; i < pixels.length; i += 1) pixels[i] = table[pixels[i] & 255];
  context.putImageData(image, 0, 0);
  return canvas;
}

export class Easel extends Viewer {
  /**
   * @param {HTMLElement} stage as the viewer's
   * @param {object} hears onView, onPoint as the viewer's; onStroke({tool, value, points, radius}) when one is drawn;
   *   onSize(step) for the wheel; getTile(level, row, column) gives a promise of a bitmap
   */
  constructor(stage, hears) {
    super(stage, hears);
    this.hears = hears;
    this.tiles = new Map();
    this.wanted = new Set();
    this.overlay = null;
    this.opacity = 0.55;
    this.pen = { tool: "brush", value: 1, radius: 8 };
    this.stroke = null; // under way: {tool, value, radius, points}
    this.pending = []; // drawn, and not in the overlay yet
    this.cursor = null; // where the brush is, in pixels of the image
    this.hand = false; // H is held: dragging moves
    this.sawPen = false;
    this.generation = 0;
  }

  /** Show an image of a size; its tiles come as they are needed. */
  showSized(width, height) {
    this.generation += 1;
    for (const bitmap of this.tiles.values()) bitmap.close();
    this.tiles.clear();
    this.wanted.clear();
    this.overlay = null;
    this.stroke = null;
    this.pending = [];
    this.cursor = { x: width / 2, y: height / 2 };
    this.bitmap = true; // the viewer draws once there is one
    this.size = { width, height };
    this.fit();
    this.redraw();
  }

  /** Fetch all tiles anew, as with another contrast. */
  refresh() {
    this.generation += 1;
    this.tiles.clear();
    this.wanted.clear();
    this.grounded = false;
    this.redraw();
  }

  /* --- what is in sight --- */

  get level() {
    return Math.max(0, Math.min(LEVELS, Math.floor(Math.log2(1 / this.view.scale) + 1e-6)));
  }

  /** Level and box (whole cells of the level) of the image that is in sight. */
  sight() {
    const { scale, left, top } = this.view;
    const level = this.level;
    const step = 2 ** level;
    const down = (value) => Math.max(0, Math.floor(value / step) * step);
    const box = {
      left: down(-left / scale), top: down(-top / scale),
      right: Math.min(this.size.width, Math.ceil((this.canvas.width - left) / scale / step) * step),
      bottom: Math.min(this.size.height, Math.ceil((this.canvas.height - top) / scale / step) * step),
    };
    return { level, ...box };
  }

  /** True if the overlay holds all that is in sight, as finely as it can be seen. */
  covers() {
    const { overlay } = this;
    if (!overlay) return false;
    const now = this.sight();
    return overlay.level <= now.level && overlay.left <= now.left && overlay.top <= now.top && overlay.right >= now.right && overlay.bottom >= now.bottom;
  }

  /** Lay an overlay over its box; pending strokes up to a line of the log are in it. */
  setOverlay(canvas, box, line) {
    this.overlay = { canvas, ...box };
    this.pending = this.pending.filter((one) => one.line === null || one.line > line);
    this.redraw();
  }

  /* --- drawing --- */

  drawGround() {
    const { canvas, ground } = this;
    ground.width = canvas.width;
    ground.height = canvas.height;
    const context = ground.getContext("2d");
    context.imageSmoothingEnabled = this.view.scale < 1;
    context.imageSmoothingQuality = "high";
    const coarse = this.coarsest;
    this.drawLevel(context, coarse);
    if (this.level < coarse) this.drawLevel(context, this.level);
    this.grounded = true;
  }

  /** The level at which the whole image is one tile: always there, under whatever is finer. */
  get coarsest() {
    return Math.max(0, Math.min(LEVELS, Math.ceil(Math.log2(Math.max(this.size.width, this.size.height) / TILE))));
  }

  drawLevel(context, level) {
    const side = TILE * 2 ** level;
    const { scale, left, top } = this.view;
    const { width, height } = this.size;
    const first = (offset) => Math.max(0, Math.floor(-offset / scale / side));
    const last = (offset, room, length) => Math.min(Math.ceil(length / side), Math.ceil((room - offset) / scale / side));
    for (let row = first(top); row < last(top, this.canvas.height, height); row += 1) {
      for (let column = first(left); column < last(left, this.canvas.width, width); column += 1) {
        const key = `${level}/${row}/${column}`;
        const bitmap = this.tiles.get(key);
        if (!bitmap) {
          this.fetchTile(key, level, row, column);
          continue;
        }
        this.tiles.delete(key); // to the end: the first one is the longest unseen
        this.tiles.set(key, bitmap);
        const wide = Math.min(side, width - column * side);
        const high = Math.min(side, height - row * side);
        context.drawImage(bitmap, left + scale * column * side, top + scale * row * side, scale * wide, scale * high);
      }
    }
  }

  async fetchTile(key, level, row, column) {
    if (this.wanted.has(key)) return;
    this.wanted.add(key);
    const { generation } = this;
    try {
      const bitmap = await this.hears.getTile(level, row, column);
      if (generation !== this.generation) return;
      this.tiles.set(key, bitmap);
      const coarse = `${this.coarsest}/0/0`;
      for (const old of this.tiles.keys()) {
        if (this.tiles.size <= MOST_TILES) break;
        if (old !== coarse) this.tiles.delete(old);
      }
      this.grounded = false;
      this.redraw();
    } finally {
      if (generation === this.generation) this.wanted.delete(key);
    }
  }

  draw() {
    super.draw();
    if (!this.size) return;
    const { context, overlay, view } = this;
    context.save();
    context.setTransform(view.scale, 0, 0, view.scale, view.left, view.top);
    context.beginPath();
    context.rect(0, 0, this.size.width, this.size.height);
    context.clip();
    context.globalAlpha = this.opacity;
    if (overlay) {
      context.imageSmoothingEnabled = false;
      context.drawImage(overlay.canvas, overlay.left, overlay.top, overlay.right - overlay.left, overlay.bottom - overlay.top);
    }
    for (const one of this.pending) this.drawStroke(one);
    if (this.stroke) this.drawStroke(this.stroke);
    context.globalAlpha = 1;
    context.restore();
    this.drawCursor();
  }

  drawLayer() {
    // the overlay takes its place
  }

  drawStroke({ tool, value, radius, points }) {
    const { context } = this;
    const thin = 1.6 * this.ratio / this.view.scale;
    context.strokeStyle = context.fillStyle = COLOURS[value];
    context.beginPath();
    if (tool === "box") {
      const [[x0, y0], [x1, y1]] = [points[0], points[points.length - 1]];
      context.lineWidth = thin;
      context.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
      context.stroke();
      return;
    }
    context.moveTo(...points[0]);
    for (const [x, y] of points) context.lineTo(x, y);
    if (tool === "brush") {
      context.lineWidth = 2 * radius;
      context.lineCap = context.lineJoin = "round";
      context.stroke();
    } else {
      context.lineWidth = thin;
      context.stroke();
      if (points.length > 2) {
        context.globalAlpha = 0.35 * this.opacity;
        context.fill();
        context.globalAlpha = this.opacity;
      }
    }
  }

  drawCursor() {
    if (!this.cursor) return;
    const { context, view, pen } = this;
    const x = view.left + this.cursor.x * view.scale;
    const y = view.top + this.cursor.y * view.scale;
    const radius = pen.tool === "brush" ? Math.max(2, pen.radius * view.scale) : 5 * this.ratio;
    for (const [width, colour] of [[3, "#000a"], [1.4, COLOURS[pen.value]]]) {
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.lineWidth = width * this.ratio;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  /* --- strokes --- */

  inImage({ x, y }) {
    return [(x - this.view.left) / this.view.scale, (y - this.view.top) / this.view.scale];
  }

  begin(point, value) {
    const { tool, radius } = this.pen;
    if (tool === "polygon" && this.stroke) {
      const [x, y] = this.stroke.points[0];
      if (this.stroke.points.length > 2 && Math.hypot(point[0] - x, point[1] - y) * this.view.scale < 12 * this.ratio) this.finish();
      else this.stroke.points.push(point);
    } else {
      this.stroke = { tool, value, radius, points: [point], line: null };
      if (tool === "fill") this.finish();
    }
    this.redraw();
  }

  extend(points) {
    if (!this.stroke || this.stroke.tool === "polygon") return;
    const kept = this.stroke.points;
    const least = 0.7 / this.view.scale;
    for (const point of points) {
      const last = kept[kept.length - 1];
      if (this.stroke.tool === "box") kept[1] = point;
      else if (Math.hypot(point[0] - last[0], point[1] - last[1]) >= least) kept.push(point);
    }
    this.redraw();
  }

  /** End the stroke under way and hand it on. */
  finish() {
    const done = this.stroke;
    this.stroke = null;
    if (!done) return;
    const least = { lasso: 3, polygon: 3, box: 2 }[done.tool] ?? 1;
    if (done.points.length >= least) {
      if (done.tool === "brush" || done.tool === "lasso" || done.tool === "polygon") this.pending.push(done);
      this.hears.onStroke(done);
    }
    this.redraw();
  }

  cancel() {
    this.stroke = null;
    this.redraw();
  }

  /* --- pointers --- */

  onWheel(event) {
    if (!this.size) return;
    event.preventDefault();
    if (event.ctrlKey || event.metaKey || this.hand) super.onWheel(event);
    else this.hears.onSize(event.deltaY > 0 ? -1 : 1);
  }

  onDown(event) {
    if (!this.size) return;
    this.stage.focus({ preventScroll: true });
    if (event.pointerType === "pen") this.sawPen = true;
    const point = this.at(event);
    this.stage.setPointerCapture(event.pointerId);
    const pans = this.hand || event.button === 1 || (event.pointerType === "touch" && this.sawPen);
    this.pointers.set(event.pointerId, { ...point, pans });
    if (this.pointers.size === 2) { // the second finger: the first one wasn't drawing
      if (this.stroke?.tool !== "polygon") this.cancel();
      for (const one of this.pointers.values()) one.pans = true;
    } else if (pans) {
      this.stage.classList.add("held");
      event.preventDefault();
    } else {
      event.preventDefault();
      this.cursor = this.asCursor(point);
      this.begin(this.inImage(point), event.button === 2 ? 0 : this.pen.value);
    }
  }

  onMove(event) {
    if (!this.size) return;
    const now = this.at(event);
    this.cursor = this.asCursor(now);
    this.onPoint(this.pixelAt(now));
    const before = this.pointers.get(event.pointerId);
    if (before?.pans) {
      if (this.pointers.size === 1) this.panBy(now.x - before.x, now.y - before.y);
      else {
        const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
        const apart = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
        this.zoomBy(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
        this.panBy((now.x - before.x) / 2, (now.y - before.y) / 2);
      }
      this.pointers.set(event.pointerId, { ...now, pans: true });
    } else if (before) {
      const events = event.getCoalescedEvents?.() ?? [];
      this.extend((events.length ? events : [event]).map((one) => this.inImage(this.at(one))));
    }
    this.redraw();
  }

  onUp(event) {
    const before = this.pointers.get(event.pointerId);
    super.onUp(event);
    if (!before || before.pans) return;
    if (event.type === "pointercancel") this.cancel();
    else if (this.stroke?.tool !== "polygon") this.finish();
  }

  onDouble() {
    if (this.stroke?.tool === "polygon") {
      this.stroke.points.pop(); // the second click of the two
      this.finish();
    }
  }

  onKey() {
    // the page's keys do all of it
  }

  listen() {
    super.listen();
    this.stage.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  asCursor(point) {
    const [x, y] = this.inImage(point);
    return { x, y };
  }

  /** Move the brush by keys, in pixels of the image, and keep it in sight. */
  moveCursor(dx, dy) {
    const { width, height } = this.size;
    const x = Math.min(width, Math.max(0, this.cursor.x + dx));
    const y = Math.min(height, Math.max(0, this.cursor.y + dy));
    this.cursor = { x, y };
    const there = { x: this.view.left + x * this.view.scale, y: this.view.top + y * this.view.scale };
    const over = (value, room) => Math.min(0, room - value) + Math.max(0, -value);
    this.panBy(over(there.x, this.canvas.width), over(there.y, this.canvas.height));
    if (this.stroke) this.extend([[x, y]]);
    this.redraw();
  }

  /** Space: put the brush down or lift it; a corner of a polygon or box. */
  press() {
    const point = [this.cursor.x, this.cursor.y];
    if (!this.stroke || this.stroke.tool === "polygon") this.begin(point, this.pen.value);
    else this.finish();
  }
}
