/* Files to keep. Masks, cut-outs and overlays are made here; polygons come from the server. */

import { getDescription, getRendered, patiently } from "./api.js";
import { ask } from "./background.js";
import { thresholdOf } from "./postprocessing.js";
import { isWhole, pixelsOf } from "./image.js";
import { zip } from "./zip.js";

const stemOf = (name) => name.replace(/\.[^.]*$/, "") || name;

/* What made the file, kept in it. */
const notesOf = (model, { level, postprocessing }) => ({
  Software: "binseg",
  binseg: JSON.stringify({ model: model.id, threshold: thresholdOf(level), postprocess: postprocessing }),
});

/** The mask of the shown image: PNG, 0 and 255, at its own size. */
export async function saveMask(shown, model, settings) {
  const { name } = shown.item; // another image may be shown when the file is made
  const { blob } = await ask("mask", { ...settings, notes: notesOf(model, settings) });
  keep(blob, `${stemOf(name)}_mask.png`);
}

/** Cut-out or overlay of the shown image. */
export async function saveRendered(kind, shown, model, settings, look) {
  const { name } = shown.item;
  keep(await render(kind, shown, model, settings, look), `${stemOf(name)}_${kind}.png`);
}

async function render(kind, shown, model, settings, look) {
  if (!shown.bitmap || !isWhole(shown.bitmap, shown.found)) {
    return getRendered(shown.item.file, model.id, thresholdOf(settings.level), settings.postprocessing, kind);
  }
  const pixels = pixelsOf(shown.bitmap);
  const { blob } = await ask(kind, { ...settings, ...look, pixels, notes: notesOf(model, settings) }, [pixels.buffer]);
  return blob;
}

/** The objects' outlines as GeoJSON, in pixels of the image. */
export async function savePolygons(shown, model, settings) {
  const { name, file } = shown.item;
  const description = await getDescription(file, model.id, thresholdOf(settings.level), settings.postprocessing);
  keep(new Blob([JSON.stringify(description.polygons)], { type: "application/geo+json" }), `${stemOf(name)}.geojson`);
}

/** Outputs of all items that are done, in one ZIP with a note of those that failed; only masks are made here. */
export async function saveAll(archive, kinds, items, failed, model, settings) {
  const files = [];
  const names = new Set();
  const predictions = items.map(({ name, file, prediction }) => ({ name, file, given: prediction.blob })); // as they are now
  for (const { name, file, given } of predictions) {
    const stem = unlike(names, stemOf(name));
    for (const kind of kinds) {
      const blob = kind === "mask"
        ? (await ask("mask", { ...settings, blob: given, notes: notesOf(model, settings) })).blob
        : await patiently(() => getRendered(file, model.id, thresholdOf(settings.level), settings.postprocessing, kind), { onWait: () => {} });
      files.push({ name: `${stem}_${kind}.png`, bytes: new Uint8Array(await blob.arrayBuffer()) });
    }
  }
  const missing = failed.map(({ name, trouble }) => `${name}: ${trouble.title}. ${trouble.message}\n`).join("");
  if (missing) files.push({ name: "failed.txt", bytes: new TextEncoder().encode(missing) });
  keep(zip(files), archive);
}

/** What a job made of an item. */
export function saveJob(item, { blob, suffix }) {
  keep(blob, `${stemOf(item.name)}_mask.${suffix}`);
}

function unlike(names, stem) {
  let name = stem;
  for (let n = 2; names.has(name); n += 1) name = `${stem}_${n}`;
  names.add(name);
  return name;
}

function keep(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // once the browser has begun to write it
}
