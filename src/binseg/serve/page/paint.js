/* The mask as screen pixels: only what is on screen is computed, so the largest image is as quick as
   the smallest, and at any zoom each pixel of the image has its true square. */

const CIVIDIS = [[0, 34, 78], [35, 62, 108], [87, 93, 109], [123, 122, 119], [161, 152, 118], [206, 186, 99], [254, 232, 56]];

/** The colours of probabilities 0 to 255, dark blue to yellow: told apart by every kind of eye. */
export const PROBABILITY_COLOURS = Uint32Array.from({ length: 256 }, (_, value) => {
  const place = (value / 255) * (CIVIDIS.length - 1);
  const from = CIVIDIS[Math.floor(place)];
  const to = CIVIDIS[Math.ceil(place)];
  return pack(from.map((c, i) => c + (to[i] - c) * (place % 1)), 255);
});

function pack([red, green, blue], alpha) {
  return ((alpha << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;
}

/**
 * Paint the mask of the part of the image that is on screen.
 *
 * @param {Uint32Array} out width x height screen pixels, RGBA
 * @param {object} area width and height on screen; left, top: where the image's corner is, counted
 *   from the area's; scale: screen pixels to an image pixel
 * @param {object} layer pixels, width, height: 8-bit values; level: above it is inside; probability:
 *   what to show in the mode "probability"
 * @param {object} look mode (fill, outline, cutout, probability), colour [r, g, b], opacity 0 to 1,
 *   line: width of the outline in screen pixels, ground: two RGB of the cut-out's chequers
 */
export function paint(out, area, layer, look) {
  if (look.mode === "probability") return paintProbability(out, area, layer, look);
  return paintMask(out, area, layer, look);
}

/* For each screen pixel along one axis, the image pixel under the point `shift` beside its middle. */
function places(count, offset, scale, size, shift) {
  const out = new Int32Array(count);
  for (let i = 0; i < count; i += 1) out[i] = Math.min(size - 1, Math.max(0, Math.floor((i + 0.5 + shift - offset) / scale)));
  return out;
}

function paintProbability(out, { width, height, left, top, scale }, layer, { opacity }) {
  const columns = places(width, left, scale, layer.width, 0);
  const rows = places(height, top, scale, layer.height, 0);
  const alpha = Math.round(255 * opacity) << 24;
  for (let y = 0, at = 0; y < height; y += 1) {
    const row = rows[y] * layer.width;
    for (let x = 0; x < width; x += 1, at += 1) out[at] = ((PROBABILITY_COLOURS[layer.probability[row + columns[x]]] & 0xffffff) | alpha) >>> 0;
  }
}

function paintMask(out, { width, height, left, top, scale }, layer, look) {
  const { pixels, level } = layer;
  const quarter = scale < 3 ? 0.25 : 0; // four points a screen pixel, for soft edges; none where pixels are squares
  const [west, east] = [-quarter, quarter].map((shift) => places(width, left, scale, layer.width, shift));
  const [north, south] = [-quarter, quarter].map((shift) => rowsAt(height, top, scale, layer, shift));
  // In whole image pixels where these are small, so that the line is equally broad everywhere.
  const line = look.mode === "cutout" ? 0 : scale < look.line ? scale * Math.ceil(look.line / scale) : look.line;
  const [farWest, farEast] = [-line, line].map((shift) => places(width, left, scale, layer.width, shift));
  const [farNorth, farSouth] = [-line, line].map((shift) => rowsAt(height, top, scale, layer, shift));
  const middleColumn = places(width, left, scale, layer.width, 0);
  const middleRow = rowsAt(height, top, scale, layer, 0);
  const shades = shadesOf(look);
  for (let y = 0, at = 0; y < height; y += 1) {
    const [up, down, middle, above, below] = [north[y], south[y], middleRow[y], farNorth[y], farSouth[y]];
    for (let x = 0; x < width; x += 1, at += 1) {
      let inside = 0;
      if (pixels[up + west[x]] > level) inside += 1;
      if (pixels[up + east[x]] > level) inside += 1;
      if (pixels[down + west[x]] > level) inside += 1;
      if (pixels[down + east[x]] > level) inside += 1;
      if (look.mode === "cutout") {
        out[at] = shades.ground[(((x >> 3) + (y >> 3)) & 1) * 5 + inside];
      } else if (inside === 0) {
        out[at] = 0;
      } else {
        const column = middleColumn[x];
        const edge = pixels[middle + farWest[x]] <= level || pixels[middle + farEast[x]] <= level
          || pixels[above + column] <= level || pixels[below + column] <= level;
        out[at] = edge ? shades.edge[inside] : shades.fill[inside];
      }
    }
  }
}

function rowsAt(count, offset, scale, layer, shift) {
  const out = places(count, offset, scale, layer.height, shift);
  for (let i = 0; i < count; i += 1) out[i] *= layer.width;
  return out;
}

/* The pixel values by how many of a pixel's four points are inside. */
function shadesOf({ mode, colour, opacity, ground }) {
  const fill = mode === "outline" ? 0 : 255 * opacity;
  const edge = mode === "outline" ? 255 * Math.max(0.15, opacity) : 255 * Math.min(1, 1.8 * opacity);
  const steps = [0, 1, 2, 3, 4];
  return {
    fill: Uint32Array.from(steps, (n) => pack(colour, Math.round((fill * n) / 4))),
    edge: Uint32Array.from(steps, (n) => pack(colour, Math.round((edge * n) / 4))),
    ground: Uint32Array.from(ground.flatMap((shade) => steps.map((n) => pack(shade, Math.round((255 * (4 - n)) / 4))))),
  };
}
