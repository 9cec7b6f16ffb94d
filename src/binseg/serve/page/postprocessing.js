/* What the page does to a mask, pixel for pixel what the server does (binseg.postprocess.steps). */

import { findRegions } from "./regions.js";

/**
 * Clean a mask in place and measure it.
 *
 * First holes of at most `fill_holes` pixels are filled: regions of the outside, joined by their sides,
 * that don't reach the image's edge. Then objects (joined by sides or corners) of fewer than
 * `min_area` pixels go, then all but the largest; of two equally large ones the upper one stays.
 *
 * @param {Uint8Array} mask 0 or 255 a pixel
 * @returns {{area: number, count: number}} pixels inside, and objects
 */
export function clean(mask, width, height, { min_area = 0, fill_holes = 0, largest_only = false } = {}) {
  if (fill_holes > 0) {
    const holes = findRegions(mask, width, height, { inside: false, diagonal: false });
    paint(mask, holes, 255, (n) => !holes.touches[n] && holes.areas[n] <= fill_holes);
  }
  const objects = findRegions(mask, width, height);
  const kept = objects.areas.map((area) => area >= min_area);
  if (largest_only) {
    let largest = -1;
    objects.areas.forEach((area, n) => {
      if (kept[n] && (largest < 0 || area > objects.areas[largest])) largest = n;
    });
    kept.forEach((_, n) => { kept[n] = n === largest; });
  }
  paint(mask, objects, 0, (n) => !kept[n]);
  const areas = objects.areas.filter((_, n) => kept[n]);
  return { area: areas.reduce((sum, area) => sum + area, 0), count: areas.length };
}

function paint(mask, regions, value, chosen) {
  const take = regions.areas.map((_, n) => chosen(n));
  if (!take.includes(true)) return;
  for (let k = 0; k < regions.starts.length; k += 1) {
    if (take[regions.region[k]]) mask.fill(value, regions.starts[k], regions.ends[k]);
  }
}

/** True where a post-processing does nothing. */
export function isEmpty({ min_area, fill_holes, largest_only }) {
  return !(min_area > 1 || fill_holes > 0 || largest_only);
}

/** The mask (0 or 255) of the pixels whose 8-bit probability is above a level. */
export function above(probability, level) {
  const mask = new Uint8Array(probability.length);
  for (let i = 0; i < mask.length; i += 1) mask[i] = probability[i] > level ? 255 : 0;
  return mask;
}

/* The slider's steps lie halfway between two 8-bit values. There, and only there, thresholding the
   rounded probability gives the very mask that the server gives for the unrounded one:
   p > (n + 0.5) / 255 exactly where round(255 p) > n. */

/** The threshold of a level 0 to 254. */
export const thresholdOf = (level) => (level + 0.5) / 255;

/** The level nearest to a threshold. */
export const levelOf = (threshold) => Math.min(254, Math.max(0, Math.round(threshold * 255 - 0.5)));
