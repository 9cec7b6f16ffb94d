/* The page of `binseg label`: what a person does, sent to the server in order, and what comes back. */

import { asTrouble, request, setToken } from "../api.js";
import { listenTheme } from "../theme.js";
import { percent, zoomed } from "../words.js";
import { coloured, Easel } from "./easel.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 1500;
const POLL_MS = 4000;
const SAID = {
  none: ["none yet", "Draw a stroke on the thing and one beside it."],
  cold: ["trees", "Fresh from your strokes, on every stroke."],
  warm: ["network", "Trained beside on all that you have labelled."],
  model: ["your model", "Correct it where it is wrong."],
  correct: ["corrected", "The network, and near your strokes what they say."],
  "without help": ["nobody", "This image checks the engines: label it without help."],
};

let image = null; // {name, width, height, state, check, line, version}
let stretch = false;
let status = null;
let hidden = false;
const queue = []; // what the server hasn't kept yet
let sending = false;
let asked = 0;
let deciding = false; // a second Enter is not for the image that comes next

/* --- sending, in order, until it is kept --- */

const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((one) => one.toString(16).padStart(2, "0")).join("");

async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await request(`v1/label/${path}`, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

const get = async (path, query = {}) => (await request(`v1/label/${path}`, { query })).json();

/** Send an action when those before it are kept; it goes again until the server has it, or refuses. */
function send(path, body, then = () => {}) {
  queue.push({ path, body: { name: image.name, client: newId(), ...body }, then });
  work();
}

async function work() {
  if (sending) return;
  sending = true;
  while (queue.length) {
    showSaved();
    const { path, body, then } = queue[0];
    try {
      const { line } = await post(path, body);
      queue.shift();
      await then(line);
    } catch (error) {
      const trouble = asTrouble(error);
      if (trouble.kind === "token") askToken();
      const waits = ["gone", "busy", "slow", "token"].includes(trouble.kind) || trouble.code === "storage";
      if (!waits) queue.shift();
      showSaved(trouble);
      if (waits) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      else {
        note(trouble.message, true);
        deciding = false;
        easel.pending = [];
        await look();
      }
    }
  }
  sending = false;
  showSaved();
}

function showSaved(trouble = null) {
  const box = $("saved");
  box.classList.toggle("pending", queue.length > 0);
  box.classList.toggle("trouble", trouble !== null && queue.length > 0);
  if (trouble && queue.length) box.textContent = `Not saved yet (${queue.length}): ${trouble.message}`;
  else box.textContent = queue.length ? "Saving…" : "Saved";
}

/* --- an image --- */

const easel = new Easel($("stage"), {
  onView: ({ zoom }) => {
    $("zoom").textContent = zoomed(zoom);
    if (image && !easel.covers()) later(look);
  },
  onPoint: (point) => { $("readout").textContent = point ? `${point.x}, ${point.y}` : ""; },
  onSize: (step) => setSize(easel.pen.radius * 1.12 ** step),
  onStroke: drawn,
  getTile: async (level, row, column) => {
    const response = await request("v1/label/tile", { query: { name: image.name, level, row, column, stretch } });
    const bitmap = await createImageBitmap(await response.blob());
    $("working").hidden = true;
    return bitmap;
  },
});

let timer = 0;
function later(action) {
  clearTimeout(timer);
  timer = setTimeout(action, 60);
}

async function openImage(name) {
  deciding = false;
  if (!name) return note("All images are labelled or skipped.");
  $("working").hidden = false;
  try {
    image = await get("open", { name });
  } catch (error) {
    $("working").hidden = true;
    note(asTrouble(error).message, true);
    return undefined;
  }
  image.version = null;
  if (image.deep) $("contrast").disabled = true; // it is stretched already
  else $("contrast").disabled = false;
  easel.showSized(image.width, image.height);
  $("working").hidden = false; // until its first tile is there
  showImage();
  await look();
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  return undefined;
}

function showImage() {
  $("image-title").textContent = image.name;
  const badge = { done: ["done", "accepted"], skipped: ["", "skipped"], open: ["", "to label"] }[image.state];
  $("image-state").replaceChildren(badged(...badge), ` ${image.width} × ${image.height}`);
  if (image.check) $("image-state").append(" ", badged("check", "check image"));
  for (const option of $("images").options) option.selected = option.value === image.name;
  note(image.check && image.state === "open" ? "Check image: label it without help; the engines are measured on it." : "");
}

function badged(kind, text) {
  const badge = document.createElement("span");
  badge.className = `badge ${kind}`;
  badge.textContent = text;
  return badge;
}

/** Fetch what is labelled and predicted in sight, once the prediction knows of the last stroke. */
async function look({ fine = false } = {}) {
  if (!image) return;
  const { name, line } = image;
  asked += 1;
  const mine = asked;
  const { level, ...box } = easel.sight();
  if (box.right <= box.left || box.bottom <= box.top) return;
  try {
    const response = await request("v1/label/mask", { query: { name, level, after: line, fine, ...box } });
    const bitmap = await createImageBitmap(await response.blob(), { colorSpaceConversion: "none" });
    if (mine !== asked || image?.name !== name) return;
    const heard = (key) => response.headers.get(`X-Binseg-${key}`);
    const seen = Number(heard("Line"));
    image.line = Math.max(image.line, seen);
    image.version = Number(heard("Version"));
    image.fine = heard("Fine") === "1";
    easel.setOverlay(coloured(bitmap, { done: image.state === "done" }), { level, ...box }, seen);
    showEngine(heard("Engine"), Number(heard("Seconds")), Number(heard("Share")));
    if (!image.fine) later(() => look({ fine: true }));
  } catch (error) {
    const trouble = asTrouble(error);
    if (trouble.kind === "token") askToken();
    else if (trouble.kind !== "gone") note(trouble.message, true);
  }
}

function showEngine(engine, seconds, share) {
  const [kind] = engine.startsWith("without") ? [engine] : engine.split(" ");
  const [word, about] = SAID[kind] ?? [engine, ""];
  $("engine").textContent = word;
  $("engine-about").textContent = seconds && !["none", "without help"].includes(kind) ? `${about} ${seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`}.` : about;
  $("share").textContent = percent(share);
  $("status").textContent = `${percent(share)} is marked; help from ${word}.`;
}

/* --- what a person does --- */

function drawn(stroke) {
  if (!image) return;
  const { tool, value, radius, points } = stroke;
  const round = (number) => Math.round(number * 100) / 100;
  const rounded = points.map(([x, y]) => [round(x), round(y)]);
  const kept = async (line) => {
    stroke.line = line;
    image.line = Math.max(image.line, line);
    if (image.state !== "open") image = { ...image, state: "open" };
    showImage();
    if (!queue.length || queue[0].path === "accept") await look();
  };
  if (tool === "fill") send("fill", { x: Math.floor(points[0][0]), y: Math.floor(points[0][1]), value }, kept);
  else if (tool === "box") {
    const xs = points.map(([x]) => x);
    const ys = points.map(([, y]) => y);
    const box = { top: Math.min(...ys), left: Math.min(...xs), bottom: Math.max(...ys), right: Math.max(...xs) };
    for (const side of Object.keys(box)) box[side] = Math.round(box[side]);
    send("box", { ...box, value }, kept);
  } else send("stroke", { tool: tool === "brush" ? "brush" : "polygon", value, points: rounded, radius: round(radius) }, kept);
}

function undo(redo) {
  if (!image) return;
  if (easel.stroke) return void easel.cancel();
  send("undo", { redo }, async (line) => {
    if (line === null) return note(redo ? "Nothing to bring back." : "Nothing to undo.");
    image = { ...image, ...(await get("open", { name: image.name })) };
    easel.pending = [];
    showImage();
    await look();
    return undefined;
  });
}

function decide(path, body) {
  if (!image || deciding) return;
  deciding = true;
  if (easel.stroke) easel.finish();
  const after = image.name;
  const go = (seen) => send(path, path === "accept" ? { ...body, seen, version: body.empty ? null : image.version } : body, async () => {
    await poll();
    await openImage((await get("next", { after })).name);
  });
  settled(go, path === "accept" && !body.empty);
}

/** Strokes that are on their way, and the finest answer to them, come first; what others draw meanwhile isn't seen. */
async function settled(action, fine) {
  while (queue.length || sending) await new Promise((resolve) => setTimeout(resolve, 20));
  const seen = image.line;
  for (let tries = 0; fine && tries < 3 && !image.fine; tries += 1) await look({ fine: true });
  action(seen);
}

function setPen(change) {
  if (easel.stroke && change.tool) easel.cancel();
  Object.assign(easel.pen, change);
  for (const [id, key] of [["values", "value"], ["tools", "tool"]]) {
    for (const button of $(id).children) {
      const chosen = button.dataset[key] === String(easel.pen[key]);
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
  }
  easel.redraw();
}

function setSize(radius) {
  easel.pen.radius = Math.min(500, Math.max(0.5, radius));
  const { radius: now } = easel.pen;
  $("size").value = String(Math.round((100 * Math.log(now / 0.5)) / Math.log(1000)));
  $("size-value").textContent = now < 10 ? String(Math.round(10 * now) / 10) : String(Math.round(now));
  easel.redraw();
}

function setOpacity(value) {
  $("opacity").value = String(Math.min(100, Math.max(0, value)));
  easel.opacity = hidden ? 0 : Number($("opacity").value) / 100;
  easel.redraw();
}

function setContrast(on) {
  stretch = on;
  $("contrast").setAttribute("aria-pressed", String(on));
  easel.refresh();
}

/* --- the project --- */

async function poll() {
  let now = null;
  try {
    now = await get("status");
  } catch (error) {
    if (asTrouble(error).kind === "token") askToken();
    return;
  }
  const before = status;
  status = now;
  $("tally-bar").value = now.images ? (now.done + now.skipped) / now.images : 0;
  $("tally").textContent = `${now.done} of ${now.images} done${now.skipped ? `, ${now.skipped} skipped` : ""}`;
  showScore(now);
  showTraining(now.training);
  if (!before || before.done !== now.done || before.skipped !== now.skipped) await listImages();
  if (before && before.network !== now.network && image && !queue.length && !easel.stroke) await look();
}

function showScore({ standings, engine, checked, check_images: all, features }) {
  const best = standings.find((one) => one.engine === engine) ?? standings[0];
  if (!best) return;
  const range = best.low === null ? "" : ` (${best.low.toFixed(2)} to ${best.high.toFixed(2)})`;
  const head = document.createElement("p");
  const value = document.createElement("b");
  value.textContent = best.dice.toFixed(2);
  head.append(value, ` Dice${range}`);
  const about = document.createElement("p");
  about.className = "small soft";
  const others = standings.filter((one) => one !== best).map((one) => `${(SAID[one.engine] ?? [one.engine])[0]} ${one.dice.toFixed(2)}`);
  about.textContent = `The ${(SAID[best.engine] ?? [best.engine])[0]}, on ${best.num_checked} of ${checked} check images labelled (${all} in all)${others.length ? `; ${others.join(", ")}` : ""}.`;
  $("score").replaceChildren(head, about);
  $("score").title = Object.entries(features).map(([name, share]) => `${name}: ${percent(share)}`).join("\n");
  $("curve").hidden = false;
  $("advice").textContent = `${best.advice[0].toUpperCase()}${best.advice.slice(1)}.`;
  drawCurve(best.curve);
}

function drawCurve(points) {
  const svg = $("curve").querySelector("svg");
  const most = Math.max(1, ...points.map(([num]) => num));
  const x = (num) => 26 + (260 * num) / most;
  const y = (dice) => 76 - 68 * dice;
  const make = (name, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
    node.textContent = text;
    return node;
  };
  const grid = [0, 0.5, 1].flatMap((dice) => [
    make("line", { x1: 26, x2: 290, y1: y(dice), y2: y(dice), stroke: "currentColor", "stroke-opacity": 0.2 }),
    make("text", { x: 20, y: y(dice) + 3.5, "text-anchor": "end" }, dice),
  ]);
  const line = make("polyline", { points: points.map(([num, dice]) => `${x(num)},${y(dice)}`).join(" "), fill: "none", stroke: "currentColor", "stroke-width": 2 });
  const dots = points.map(([num, dice]) => make("circle", { cx: x(num), cy: y(dice), r: 3, fill: "currentColor" }));
  svg.replaceChildren(...grid, line, ...dots, make("text", { x: 290, y: 90, "text-anchor": "end" }, `${most} images labelled`));
}

function showTraining(training) {
  const { state, label, done, total, figures, error } = training;
  const runs = state === "running";
  $("train").disabled = runs;
  $("train-bar").hidden = !runs;
  if (runs && total) $("train-bar").value = done / total;
  else $("train-bar").removeAttribute("value");
  if (runs) {
    const told = Object.entries(figures ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
    $("train-text").textContent = `${label}${total ? `, ${done} of ${total}` : ""}${told ? ` (${told})` : ""}`;
  } else if (state === "done") {
    const range = training.low === null ? "" : ` (${training.low.toFixed(2)} to ${training.high.toFixed(2)})`;
    const on = training.split === "test" ? "check images it has never seen" : "validation images";
    $("train-text").textContent = `Done: Dice ${training.dice.toFixed(3)}${range} on ${training.num_images} ${on}. The model is in ${training.folder}.`;
  } else if (state === "failed") $("train-text").textContent = error;
}

async function listImages() {
  const rows = await get("images");
  const mark = { done: "✓", skipped: "–", open: "·" };
  $("images").replaceChildren(...rows.map(({ name, state, check, strokes }) => {
    const option = new Option(`${mark[state]} ${name}${check ? "  (check)" : ""}${state === "open" && strokes ? "  …" : ""}`, name);
    option.selected = name === image?.name;
    return option;
  }));
}

function note(text, warns = false) {
  $("note").textContent = text;
  $("note").hidden = !text;
  $("note").classList.toggle("warn", warns);
  if (text) $("status").textContent = text;
}

function askToken() {
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

/* --- keys --- */

const FAR = () => Math.max(1, easel.pen.radius / 2);
const KEYS = {
  f: () => setPen({ value: 1 }), g: () => setPen({ value: 0 }), e: () => setPen({ value: 255 }),
  b: () => setPen({ tool: "brush" }), l: () => setPen({ tool: "lasso" }), p: () => setPen({ tool: "polygon" }),
  k: () => setPen({ tool: "fill" }), x: () => setPen({ tool: "box" }),
  "[": () => setSize(easel.pen.radius / 1.25), "]": () => setSize(easel.pen.radius * 1.25),
  "+": () => easel.zoomBy(1.25), "=": () => easel.zoomBy(1.25), "-": () => easel.zoomBy(0.8),
  0: () => easel.fit(), 1: () => easel.zoomToPixels(),
  z: () => undo(false), y: () => undo(true),
  enter: () => (easel.stroke?.tool === "polygon" ? easel.finish() : decide("accept", {})),
  n: () => next(), s: () => decide("skip", {}), m: () => decide("accept", { empty: true }),
  ",": () => setOpacity(Number($("opacity").value) - 10), ".": () => setOpacity(Number($("opacity").value) + 10),
  o: () => { hidden = !hidden; setOpacity(Number($("opacity").value)); },
  c: () => !$("contrast").disabled && setContrast(!stretch),
  h: () => { easel.hand = true; $("stage").classList.add("panning"); },
  "?": () => $("help").showModal(),
  escape: () => easel.cancel(),
  " ": () => easel.press(),
  arrowleft: () => easel.moveCursor(-FAR(), 0), arrowright: () => easel.moveCursor(FAR(), 0),
  arrowup: () => easel.moveCursor(0, -FAR()), arrowdown: () => easel.moveCursor(0, FAR()),
};
const PAN = { arrowleft: [80, 0], arrowright: [-80, 0], arrowup: [0, 80], arrowdown: [0, -80] };

async function next() {
  if (image) await openImage((await get("next", { after: image.name })).name);
}

document.addEventListener("keydown", (event) => {
  if ($("help").open || $("token-dialog").open || event.altKey) return;
  const key = event.key.toLowerCase();
  const typing = event.target.matches("input, select, textarea");
  const pressing = event.target.matches("button, summary") && (key === " " || key === "enter");
  if (typing || pressing) return;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") undo(event.shiftKey);
    else if (key === "y") undo(true);
    else return;
  } else if (event.shiftKey && PAN[key]) easel.panBy(...PAN[key].map((by) => by * easel.ratio));
  else if (image && KEYS[key]) {
    if (!(event.repeat && "zyenterns ".includes(key))) KEYS[key]();
  } else return;
  event.preventDefault();
});
document.addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() === "h") {
    easel.hand = false;
    $("stage").classList.remove("panning");
  }
});

/* --- beginning --- */

for (const [id, key] of [["values", "value"], ["tools", "tool"]]) {
  for (const button of $(id).children) {
    const value = key === "value" ? Number(button.dataset.value) : button.dataset.tool;
    button.addEventListener("click", () => setPen({ [key]: value }));
  }
  $(id).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const all = [...$(id).children];
    const to = all[(all.indexOf(event.target) + step + all.length) % all.length];
    to.click();
    to.focus();
  });
}
$("size").addEventListener("input", () => setSize(0.5 * 1000 ** (Number($("size").value) / 100)));
$("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value)));
$("contrast").addEventListener("click", () => setContrast(!stretch));
for (const [id, action] of Object.entries({
  undo: KEYS.z, redo: KEYS.y, accept: () => decide("accept", {}), empty: KEYS.m, skip: KEYS.s, next: KEYS.n,
  "zoom-in": KEYS["+"], "zoom-out": KEYS["-"], "zoom-fit": KEYS[0], "help-open": KEYS["?"],
})) $(id).addEventListener("click", () => action());
$("images").addEventListener("change", () => openImage($("images").value));
$("train").addEventListener("click", async () => {
  try {
    await post("train", { minutes: Number($("minutes").value) });
    await poll();
  } catch (error) {
    $("train-text").textContent = asTrouble(error).message;
  }
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  $("token").value = "";
  $("token-dialog").close();
  if (!image) begin();
});
window.addEventListener("beforeunload", (event) => {
  if (queue.length) event.preventDefault(); // the browser asks whether to leave
});
listenTheme($("theme"), () => easel.redraw());
setPen({});
setSize(8);

async function begin() {
  await poll();
  if (!status) return;
  const asked = decodeURIComponent(location.hash.slice(1));
  const known = [...$("images").options].some((one) => one.value === asked);
  await openImage(known ? asked : (await get("next")).name);
}

begin();
setInterval(poll, POLL_MS);
