/* The slow part, beside the page: decoding probabilities, cleaning masks, encoding PNGs. It holds the
   probability of the one image that is shown. */

import { above, clean, isEmpty } from "./postprocessing.js";
import { decodeGrey, encode } from "./png.js";

let shown = null; // {width, height, pixels}

const TASKS = {
  /** Take an image's probability PNG; give its pixels and how many have each value. */
  async open({ blob }) {
    shown = null;
    shown = await decodeGrey(blob);
    const counts = new Float64Array(256);
    for (const value of shown.pixels) counts[value] += 1;
    const pixels = shown.pixels.slice();
    return [{ width: shown.width, height: shown.height, pixels, counts }, [pixels.buffer]];
  },

  /** Measure the mask at a level; the mask itself comes along where a post-processing changed it. */
  async measure({ level, postprocessing }) {
    const mask = above(shown.pixels, level);
    const found = clean(mask, shown.width, shown.height, postprocessing);
    return isEmpty(postprocessing) ? [found, []] : [{ ...found, mask }, [mask.buffer]];
  },

  /** A mask as PNG: of the image shown, or of any other's probability PNG. */
  async mask({ blob, level, postprocessing, notes }) {
    const source = blob ? await decodeGrey(blob) : shown;
    const mask = above(source.pixels, level);
    clean(mask, source.width, source.height, postprocessing);
    return [{ blob: await encode(mask, source.width, source.height, notes) }, []];
  },

  /** The image (RGBA pixels at the mask's size) cut out by its mask. */
  async cutout({ pixels, level, postprocessing, notes }) {
    const mask = above(shown.pixels, level);
    clean(mask, shown.width, shown.height, postprocessing);
    for (let i = 0; i < mask.length; i += 1) {
      if (mask[i]) pixels[4 * i + 3] = 255;
      else pixels.fill(0, 4 * i, 4 * i + 4);
    }
    return [{ blob: await encode(pixels, shown.width, shown.height, notes) }, []];
  },

  /** The image with the mask's colour over it and its outline. */
  async overlay({ pixels, level, postprocessing, notes, colour, opacity }) {
    const { width, height } = shown;
    const mask = above(shown.pixels, level);
    clean(mask, width, height, postprocessing);
    const out = new Uint8Array(3 * mask.length);
    const broad = Math.max(1, Math.round(Math.min(width, height) / 240));
    for (let i = 0; i < mask.length; i += 1) {
      const edge = mask[i] && isEdge(mask, i % width, Math.floor(i / width), width, height, broad);
      const share = mask[i] ? (edge ? Math.min(1, 1.8 * opacity) : opacity) : 0;
      for (let c = 0; c < 3; c += 1) out[3 * i + c] = Math.round(pixels[4 * i + c] * (1 - share) + colour[c] * share);
    }
    return [{ blob: await encode(out, width, height, notes) }, []];
  },

  /** Forget the image. */
  async close() {
    shown = null;
    return [{}, []];
  },
};

function isEdge(mask, x, y, width, height, broad) {
  const i = y * width + x;
  return (x >= broad && !mask[i - broad]) || (x + broad < width && !mask[i + broad])
    || (y >= broad && !mask[i - broad * width]) || (y + broad < height && !mask[i + broad * width]);
}

let last = Promise.resolve(); // one task after another, in their order

addEventListener("message", ({ data: { id, task, values } }) => {
  last = last.then(async () => {
    try {
      const [result, moved] = await TASKS[task](values);
      postMessage({ id, result }, moved);
    } catch (error) {
      postMessage({ id, error: error.message });
    }
  });
});
