/* Images as the browser shows them. Turned by their EXIF, as the server turns them. */

import { getPreview } from "./api.js";
import { readHeader } from "./png.js";

const LARGEST = 8192; // a side of the bitmap on screen; beyond, phones run out of memory
const THUMBNAIL = 144;

/**
 * A bitmap of a file, as large as is sensible; the server's preview where the browser can't.
 *
 * @returns {Promise<ImageBitmap>} to be closed by whoever asked
 */
export async function openBitmap(file, signal) {
  if (!(await hasManyBits(file))) {
    try {
      return await limit(await createImageBitmap(file));
    } catch {
      // TIFF and the like: the browser's word for "not mine" says nothing more; the server knows better
    }
  }
  return createImageBitmap(await getPreview(file, signal));
}

/* 16-bit PNGs: a browser drops the lower bits, and a microscope's 12 bits would be black. */
async function hasManyBits(file) {
  const header = readHeader(new Uint8Array(await file.slice(0, 33).arrayBuffer()));
  return header !== null && header.bits === 16;
}

async function limit(bitmap) {
  const shrink = LARGEST / Math.max(bitmap.width, bitmap.height);
  if (shrink >= 1) return bitmap;
  const small = await createImageBitmap(bitmap, {
    resizeWidth: Math.round(bitmap.width * shrink), resizeHeight: Math.round(bitmap.height * shrink), resizeQuality: "medium",
  });
  bitmap.close();
  return small;
}

/** True where a bitmap is a whole image of this size, and not a smaller preview. */
export const isWhole = (bitmap, { width, height }) => bitmap.width === width && bitmap.height === height;

/** The bitmap's RGBA pixels. */
export function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

/** Draw a bitmap into a canvas element, cut to the canvas's square. */
export function drawThumbnail(canvas, bitmap) {
  canvas.width = THUMBNAIL;
  canvas.height = THUMBNAIL;
  const side = Math.min(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
}
