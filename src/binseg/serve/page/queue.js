/* The images that were given: a strip of tiles with their states, two at a time on their way. */

import { asTrouble, getProbability, patiently, Trouble } from "./api.js";
import { drawThumbnail } from "./image.js";
import { bytes } from "./words.js";

const AT_ONCE = 2;
const SAID = { waiting: "waiting", sending: "looking…", busy: "server busy", done: "", failed: "failed" };
let numMade = 0;

export class Queue {
  /**
   * @param {HTMLUListElement} list
   * @param {object} on onChange(item) after an item's state changed, onChoose(item or null)
   */
  constructor(list, { onChange, onChoose }) {
    this.list = list;
    this.items = [];
    this.current = null;
    this.model = null;
    this.limits = {};
    this.onChange = onChange;
    this.onChoose = onChoose;
  }

  add(files) {
    const added = files.map((file) => this.make(file));
    this.items.push(...added);
    if (added.length) this.choose(added[0]);
    this.next();
    this.drawThumbnails(added);
  }

  make(file) {
    numMade += 1;
    const item = { id: numMade, file, name: file.name || `image ${numMade}`, state: "waiting", trouble: null, prediction: null, wait: 0, stop: null };
    const [tile, remove] = [document.createElement("button"), document.createElement("button")];
    tile.type = remove.type = "button";
    tile.className = "tile";
    tile.dataset.kind = (/\.(\w{1,4})$/.exec(item.name)?.[1] ?? "").toUpperCase(); // until there is a thumbnail
    tile.append(document.createElement("canvas"), document.createElement("span"));
    tile.addEventListener("click", () => this.choose(item));
    remove.className = "remove";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${item.name}`);
    remove.addEventListener("click", () => this.remove(item));
    item.element = document.createElement("li");
    item.element.append(tile, remove);
    item.tile = tile;
    this.list.append(item.element);
    this.show(item);
    return item;
  }

  /* One after another: a hundred photos decoded at once would take a phone's memory. */
  async drawThumbnails(items) {
    for (const item of items) {
      if (!this.items.includes(item) || item.drawn) continue;
      try {
        const bitmap = await createImageBitmap(item.file);
        this.drawTile(item, bitmap);
        bitmap.close();
      } catch {
        // not the browser's kind of image: the tile gets the server's preview when it is shown
      }
    }
  }

  drawTile(item, bitmap) {
    drawThumbnail(item.tile.querySelector("canvas"), bitmap);
    item.tile.classList.add("drawn");
    item.drawn = true;
  }

  choose(item) {
    this.current = item;
    for (const one of this.items) one.tile.setAttribute("aria-current", String(one === item));
    if (item) this.reveal(item.element); // in the strip alone: the page stays where the reader has it
    this.onChoose(item);
  }

  reveal({ offsetLeft: left, offsetWidth: width }) {
    const { list } = this;
    const [first, last] = [left - list.offsetLeft, left - list.offsetLeft + width];
    if (first < list.scrollLeft) list.scrollLeft = first;
    else if (last > list.scrollLeft + list.clientWidth) list.scrollLeft = last - list.clientWidth;
  }

  remove(item) {
    const place = this.items.indexOf(item);
    const focused = item.element.contains(document.activeElement);
    item.stop?.abort();
    item.element.remove();
    this.items.splice(place, 1);
    if (this.current === item) this.choose(this.items[Math.min(place, this.items.length - 1)] ?? null);
    if (focused) this.current?.tile.focus();
  }

  clear() {
    for (const item of this.items) {
      item.stop?.abort();
      item.element.remove();
    }
    this.items = [];
    this.choose(null);
  }

  /** Have images looked at (again): those that the test takes, or all. */
  retry(chosen = () => true) {
    for (const item of this.items.filter(chosen)) {
      item.stop?.abort();
      item.prediction = null;
      this.set(item, "waiting");
    }
    this.next();
  }

  next() {
    const free = AT_ONCE - this.items.filter((item) => item.state === "sending" || item.state === "busy").length;
    const waiting = this.items.filter((item) => item.state === "waiting");
    if (this.current?.state === "waiting") waiting.sort((a, b) => (b === this.current) - (a === this.current));
    for (const item of waiting.slice(0, Math.max(0, free))) this.look(item);
  }

  async look(item) {
    const stop = new AbortController();
    item.stop = stop;
    this.set(item, "sending");
    try {
      this.check(item.file);
      const prediction = await patiently(() => {
        this.set(item, "sending");
        return getProbability(item.file, this.model, stop.signal);
      }, {
        signal: stop.signal,
        onWait: (seconds) => {
          item.wait = seconds;
          this.set(item, "busy");
        },
      });
      if (item.stop !== stop) return;
      item.prediction = prediction;
      this.set(item, "done");
    } catch (error) {
      if (item.stop !== stop || error.name === "AbortError") return;
      item.trouble = asTrouble(error);
      this.set(item, "failed");
    } finally {
      this.next();
    }
  }

  /* What is refused anyway need not travel first. */
  check(file) {
    const { max_bytes: most } = this.limits;
    if (most && file.size > most) throw new Trouble("large", `It has ${bytes(file.size)}; this server takes up to ${bytes(most)} an image. Save it smaller, or cut it, and try again.`);
    if (!file.size) throw new Trouble("unreadable", "The file is empty.");
  }

  set(item, state) {
    item.state = state;
    if (state !== "failed") item.trouble = null;
    this.show(item);
    this.onChange(item);
  }

  show({ tile, state, name, prediction }) {
    const judged = state === "done" ? prediction.quality?.flag : "";
    const flag = judged && judged !== "ok" ? judged : "";
    tile.dataset.state = state;
    tile.dataset.flag = flag;
    tile.lastChild.textContent = state === "failed" ? `✕ ${name}` : flag ? `! ${name}` : SAID[state] || name;
    tile.title = flag ? `${name}: ${flag}` : name;
    tile.setAttribute("aria-label", `${name}${SAID[state] ? `, ${SAID[state]}` : ""}${flag ? `, ${flag}` : ""}`);
  }
}
