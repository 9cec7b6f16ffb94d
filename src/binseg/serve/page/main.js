/* The page: images come in, the queue asks the server, the viewer shows, the panel sets. */

import { asTrouble, getExample, getExamples, getModels, hasToken, setToken, Trouble } from "./api.js";
import { showCard } from "./card.js";
import { thresholdOf } from "./postprocessing.js";
import { listenIntake } from "./intake.js";
import { canBeJob, runJob } from "./jobs.js";
import { PROBABILITY_COLOURS } from "./paint.js";
import { drawThumbnail } from "./image.js";
import { Queue } from "./queue.js";
import { saveAll, saveRendered, saveJob, saveMask, savePolygons } from "./save.js";
import { Settings } from "./settings.js";
import { Shown } from "./shown.js";
import { listenTheme } from "./theme.js";
import { Viewer } from "./viewer.js";
import { area as areaOf, bytes, percent, whole, zoomed } from "./words.js";

const $ = (id) => document.getElementById(id);
const INVITATION = matchMedia("(pointer: coarse)").matches ? "Choose or take an image" : "Drop images here";
const ZIPS = {
  "save-all": ["masks.zip", ["mask"]],
  "save-all-cutouts": ["cutouts.zip", ["cutout"]],
  "save-everything": ["binseg.zip", ["mask", "cutout", "overlay"]],
};
const USELESS = ["unreadable", "large", "stack", "done"]; // asking for these again changes nothing
let models = [];
let said = 0;

const viewer = new Viewer($("stage"), {
  onView: ({ zoom, fitted }) => {
    $("zoom").textContent = zoomed(zoom);
    $("zoom-fit").disabled = fitted;
  },
  onPoint: (point) => {
    const value = point && shown.probabilityAt(point);
    $("readout").hidden = value === null;
    if (value !== null) $("readout").textContent = `x ${point.x}, y ${point.y} · probability ${(value / 255).toFixed(2)}`;
  },
});

const settings = new Settings({
  onMask: () => shown.use(settings.mask),
  onLook: () => viewer.setLook(settings.look),
});

const shown = new Shown(viewer, {
  onBitmap: (item, bitmap) => queue.drawTile(item, bitmap),
  onMeasured: showMeasure,
  onTrouble: (item, error) => {
    // The image's own trouble (it can't be read) comes with the server's response; else it is this one.
    if (item.state === "done") showTrouble(asTrouble(error));
  },
  onWait: (item, seconds) => item.state === "done" && showWorking(`The server is busy; trying again in ${seconds} s`),
});

const queue = new Queue($("queue"), {
  onChange: (item) => {
    if (item === queue.current) showState(item);
    for (const id of Object.keys(ZIPS)) $(id).hidden = done().length < 2;
  },
  onChoose: choose,
});

const done = () => queue.items.filter((item) => item.state === "done");

/* --- what is shown --- */

function choose(item) {
  $("start").hidden = item !== null;
  $("show").hidden = item === null;
  $("controls").hidden = item === null;
  $("keys").hidden = item === null;
  shown.open(item);
  clearMeasure();
  if (!item) {
    $("card").open = true;
    say("No images.");
    $("choose").focus();
    return;
  }
  if (queue.items.length === 1 && matchMedia("(max-width: 899px)").matches) $("card").open = false; // it is long
  $("image-name").textContent = item.name;
  $("image-name").title = item.name;
  showState(item);
}

function showState(item) {
  const { state } = item;
  $("trouble").hidden = state !== "failed";
  $("stage").classList.toggle("failed", state === "failed");
  if (state === "waiting" || state === "sending") showWorking(state === "waiting" ? "Waiting for its turn…" : "Looking…");
  else if (state === "busy") showWorking(`The server is busy; trying again in ${item.wait} s`);
  else showWorking("");
  if (state !== "done") shown.forget();
  for (const id of ["save-mask", "save-cutout", "save-overlay", "save-polygons"]) $(id).disabled = state !== "done";
  if (state === "failed") showTrouble(item.trouble);
  if (state === "done" && item.prediction) takePrediction(item);
}

async function takePrediction(item) {
  try {
    await shown.take(item.prediction);
    if (queue.current !== item) return;
    settings.setCounts(shown.found?.counts ?? null);
    showQuality(item.prediction.quality);
  } catch (error) {
    if (queue.current === item && error.name !== "AbortError") showTrouble(asTrouble(error));
  }
}

function showWorking(text) {
  $("working").hidden = !text;
  $("working-text").textContent = text;
}

function showTrouble(trouble) {
  showWorking("");
  clearMeasure();
  $("trouble").hidden = false;
  $("trouble-title").textContent = trouble.title;
  $("trouble-text").textContent = trouble.message;
  $("trouble-token").hidden = trouble.kind !== "token";
  showJob(queue.current, trouble);
  $("token-open").hidden = trouble.kind !== "token" && !hasToken();
  $("alert").textContent = `${trouble.title}. ${trouble.message}`;
}

/* A job beside the trouble that made it needed. */
function showJob(item, trouble) {
  const runs = item.job !== undefined;
  $("as-job").hidden = runs || !canBeJob(trouble, item.file, queue.limits);
  $("as-job").classList.toggle("main", !$("as-job").hidden);
  $("retry").classList.toggle("main", $("as-job").hidden);
  $("retry").hidden = runs || USELESS.includes(trouble.kind);
  $("job-progress").hidden = !runs;
  if (!runs) return;
  $("job-progress").value = item.job;
  $("trouble-text").textContent = `The job is running: ${Math.round(100 * item.job)} %. Its mask is saved when it is done; other images can go on meanwhile.`;
}

async function sendJob(item) {
  const stop = new AbortController();
  item.stop = stop; // removing the image ends the job
  const tell = (share) => {
    item.job = share;
    if (queue.current === item && item.state === "failed") showJob(item, item.trouble);
  };
  tell(0);
  try {
    const { level, postprocessing } = settings.mask;
    const made = await runJob(item.file, queue.model, thresholdOf(level), postprocessing, { signal: stop.signal, onProgress: tell });
    saveJob(item, made);
    say(`${item.name}: saved.`);
    item.trouble = new Trouble("done", `The job is done and its mask is in your downloads. ${qualityText(made.quality)}`.trim());
  } catch (error) {
    if (error.name === "AbortError") return;
    item.trouble = asTrouble(error);
  } finally {
    delete item.job;
  }
  if (queue.current === item) showTrouble(item.trouble);
}

function clearMeasure() {
  for (const id of ["share", "objects"]) $(id).textContent = "–";
  $("facts").textContent = "";
  $("quality").hidden = true;
  settings.setCounts(null);
}

function showMeasure({ width, height, area, count }) {
  $("share").textContent = percent(area / (width * height));
  if (count !== null) {
    $("objects").textContent = whole(count);
    $("objects-label").textContent = count === 1 ? "object" : "objects";
    announce(`${$("image-name").textContent}: ${percent(area / (width * height))} of the image, ${whole(count)} ${count === 1 ? "object" : "objects"}.`);
  }
  const { seconds, um2 } = queue.current?.prediction ?? {};
  const took = seconds >= 0 ? ` · ${seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`}` : "";
  const real = um2 > 0 ? `${areaOf(area * um2)}: ` : "";
  $("facts").textContent = `${real}${whole(area)} px of ${width} × ${height}${took}`;
  $("share").dataset.pixels = String(area);
}

/* The server judges the mask at the model's own threshold. */
function showQuality(quality) {
  $("quality").hidden = !quality;
  $("quality").classList.toggle("warn", quality?.flag !== "ok");
  $("quality").textContent = qualityText(quality);
}

function qualityText(quality) {
  if (!quality) return "";
  const { expected_dice: dice, low, high, flag, reason } = quality;
  const figures = `Expected Dice ${dice.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)})`;
  const texts = { ok: figures, look: `Look closely. ${figures}: ${reason}.` };
  return texts[flag] ?? `Don’t trust this mask unseen: the image is unlike the training data (${reason}).`;
}

/* A slider that moves must not flood a screen reader: the last word counts. */
function announce(text) {
  clearTimeout(said);
  said = setTimeout(() => say(text), 500);
}

function say(text) {
  $("status").textContent = text;
}

/* --- what is set --- */

function listenTools() {
  $("zoom-in").addEventListener("click", () => viewer.zoomBy(1.5));
  $("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / 1.5));
  $("zoom-fit").addEventListener("click", () => viewer.fit());
  $("zoom-one").addEventListener("click", () => viewer.zoomToPixels());
  $("wipe").addEventListener("click", () => {
    const on = $("wipe").getAttribute("aria-pressed") !== "true";
    $("wipe").setAttribute("aria-pressed", String(on));
    viewer.setWipe(on);
  });
  $("as-job").addEventListener("click", () => queue.current && sendJob(queue.current));
  $("retry").addEventListener("click", () => queue.current && retry(queue.current));
  $("trouble-remove").addEventListener("click", () => queue.current && queue.remove(queue.current));
  $("clear").addEventListener("click", () => queue.clear());
  addEventListener("online", () => queue.retry((item) => item.trouble?.kind === "gone"));
}

async function retry(item) {
  $("trouble").hidden = true;
  $("stage").focus({ preventScroll: true }); // the button that had the focus is gone
  // The server may have started anew, with other models.
  if (!models.length || ["missing", "gone"].includes(item.trouble?.kind)) await loadModels();
  queue.retry((one) => one === item || one.trouble?.kind === "gone");
  if (!shown.bitmap && queue.current === item) shown.open(item);
}

function listenSaving() {
  const model = () => models.find(({ id }) => id === queue.model);
  const kinds = {
    "save-mask": () => saveMask(shown, model(), settings.mask),
    "save-cutout": () => saveRendered("cutout", shown, model(), settings.mask, settings.look),
    "save-overlay": () => saveRendered("overlay", shown, model(), settings.mask, settings.look),
    "save-polygons": () => savePolygons(shown, model(), settings.mask),
  };
  for (const [id, [name, made]] of Object.entries(ZIPS)) {
    kinds[id] = () => saveAll(name, made, done(), queue.items.filter(({ state }) => state === "failed"), model(), settings.mask);
  }
  for (const [id, save] of Object.entries(kinds)) {
    $(id).addEventListener("click", async () => {
      $("save-trouble").hidden = true;
      $(id).setAttribute("aria-busy", "true");
      try {
        await save();
        say("Saved.");
      } catch (error) {
        const trouble = asTrouble(error);
        $("save-trouble").hidden = false;
        $("save-trouble").textContent = `${trouble.title}. ${trouble.message}`;
        $("alert").textContent = $("save-trouble").textContent;
      }
      $(id).removeAttribute("aria-busy");
    });
  }
}

function askToken() {
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

function listenToken() {
  for (const id of ["token-open", "trouble-token"]) $(id).addEventListener("click", askToken);
  $("token-cancel").addEventListener("click", () => $("token-dialog").close());
  $("token-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setToken($("token").value.trim());
    $("token").value = "";
    $("token-dialog").close();
    $("token-open").hidden = false;
    await loadModels();
    queue.retry((item) => item.trouble?.kind === "token");
  });
}

/* --- models and examples --- */

function useModel(id) {
  const model = models.find((one) => one.id === id);
  queue.model = id;
  settings.setModel(model);
  showCard($("card-body"), model);
  $("card").hidden = false;
  shown.use(settings.mask);
  if (queue.items.length) queue.retry((item) => item.job === undefined);
}

async function loadModels() {
  let before;
  try {
    const answer = await getModels();
    before = models.find(({ id }) => id === queue.model);
    models = answer.models;
    queue.limits = answer.limits ?? {};
  } catch (error) {
    startTrouble(asTrouble(error));
    return;
  }
  $("start-title").textContent = INVITATION;
  $("start-hint").hidden = false;
  $("choose").textContent = "Choose images";
  $("model").replaceChildren(...models.map((model) => new Option(titleOf(model), model.id)));
  $("model-pick").hidden = !models.length;
  const most = queue.limits;
  $("limits").textContent = `JPEG, PNG, TIFF, WebP or BMP${most.max_bytes ? `, up to ${bytes(most.max_bytes)}` : ""}${most.max_pixels ? ` and ${Math.round(most.max_pixels / 1e6).toLocaleString("en")} megapixels` : ""}. They go to this server and nowhere else.`;
  if (!models.length) {
    $("start-title").textContent = "This server has no model";
    $("limits").textContent = "Start it with one: binseg serve runs/first, or binseg serve --demo.";
    return;
  }
  const again = models.find(({ id }) => id === before?.id) ?? models.find(({ name }) => name === before?.name);
  $("model").value = (again ?? models.find((model) => model.is_default) ?? models[0]).id;
  if ($("model").value !== before?.id) useModel($("model").value);
  if (!before) loadExamples();
}

/* The run's name, and what it finds; the id where two have one name. */
const titleOf = ({ id, name, finds }) => `${name}${sameName(name) ? ` (${id.slice(0, 6)})` : ""}${finds ? `: ${finds}` : ""}`;

const sameName = (name) => models.filter((model) => model.name === name).length > 1;

/* The page is here but the server doesn't answer as it should. */
function startTrouble(trouble) {
  $("start-title").textContent = trouble.title;
  $("start-hint").hidden = true;
  $("limits").textContent = trouble.message;
  $("choose").textContent = trouble.kind === "token" ? "Enter the token" : "Try again";
  $("alert").textContent = `${trouble.title}. ${trouble.message}`;
  $("token-open").hidden = trouble.kind !== "token" && !hasToken();
  if (trouble.kind === "token") askToken();
}

async function loadExamples() {
  try {
    const examples = await getExamples();
    const made = await Promise.allSettled(examples.map(makeExample)); // one that fails hides no other
    const buttons = made.flatMap(({ value }) => value ?? []);
    $("example-list").replaceChildren(...buttons);
    $("examples").hidden = !buttons.length;
  } catch {
    $("examples").hidden = true; // a nicety: whatever ails the server shows where it matters
  }
}

async function makeExample({ name, title, credit }) {
  const blob = await getExample(name);
  const [line, button, canvas] = ["li", "button", "canvas"].map((tag) => document.createElement(tag));
  const bitmap = await createImageBitmap(blob);
  drawThumbnail(canvas, bitmap);
  bitmap.close();
  button.type = "button";
  button.title = credit ?? "";
  button.append(canvas, title ?? name);
  button.addEventListener("click", () => queue.add([new File([blob], name, { type: blob.type })]));
  line.append(button);
  return line;
}

function drawLegend() {
  const image = new ImageData(256, 1);
  new Uint32Array(image.data.buffer).set(PROBABILITY_COLOURS);
  $("legend-bar").getContext("2d").putImageData(image, 0, 0);
}

listenTheme($("theme"), () => {
  settings.drawHistogram();
  viewer.setLook(settings.look);
});
listenIntake({
  onFiles: (files) => queue.add(files),
  canTake: () => models.length > 0,
  onRefused: () => ($("token-open").hidden ? loadModels() : askToken()),
});
listenTools();
listenSaving();
listenToken();
drawLegend();
viewer.setLook(settings.look);
$("model").addEventListener("change", () => useModel($("model").value));
$("controls").hidden = true;
$("keys").hidden = true;
loadModels();
