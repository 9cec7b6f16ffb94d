/* Connected regions of a mask, by runs and union-find: a phone's 12 megapixels take a blink.

   A mask is a Uint8Array of width x height, row by row; 0 is outside, anything else inside. */

/**
 * Regions of the pixels that are inside (or, with `inside` false, outside).
 *
 * @returns {{starts: Int32Array, ends: Int32Array, rows: Int32Array, region: Int32Array,
 *   areas: number[], touches: boolean[]}} each run's first and past-the-last pixel (indices into the
 *   mask), its row and region; each region's area, and whether it reaches the image's edge.
 *   Regions are numbered as they appear, row by row.
 */
export function findRegions(mask, width, height, { inside = true, diagonal = true } = {}) {
  const count = countRuns(mask, width, height, inside);
  const starts = new Int32Array(count);
  const ends = new Int32Array(count);
  const rows = new Int32Array(count);
  const parent = new Int32Array(count);
  const reach = diagonal ? 1 : 0;
  let n = 0;
  let above = 0; // runs of the row above: [above, row)
  for (let y = 0; y < height; y += 1) {
    const row = n;
    let candidate = above;
    const base = y * width;
    for (let x = 0; x < width;) {
      if ((mask[base + x] !== 0) !== inside) {
        x += 1;
        continue;
      }
      const start = x;
      while (x < width && (mask[base + x] !== 0) === inside) x += 1;
      starts[n] = base + start;
      ends[n] = base + x;
      rows[n] = y;
      parent[n] = n;
      while (candidate < row && ends[candidate] + width + reach <= base + start) candidate += 1;
      for (let k = candidate; k < row && starts[k] + width < base + x + reach; k += 1) join(parent, k, n);
      n += 1;
    }
    above = row;
  }
  return gather({ starts, ends, rows, parent, width, height });
}

function countRuns(mask, width, height, inside) {
  let count = 0;
  for (let y = 0; y < height; y += 1) {
    let before = false;
    for (let x = y * width; x < (y + 1) * width; x += 1) {
      const here = (mask[x] !== 0) === inside;
      if (here && !before) count += 1;
      before = here;
    }
  }
  return count;
}

function root(parent, k) {
  while (parent[k] !== k) {
    parent[k] = parent[parent[k]];
    k = parent[k];
  }
  return k;
}

function join(parent, a, b) {
  const first = root(parent, a);
  const second = root(parent, b);
  if (first < second) parent[second] = first;
  else parent[first] = second;
}

function gather({ starts, ends, rows, parent, width, height }) {
  const region = new Int32Array(starts.length);
  const areas = [];
  const touches = [];
  for (let k = 0; k < starts.length; k += 1) {
    const top = root(parent, k); // the smallest of its region, so it was numbered before
    if (top === k) {
      region[k] = areas.length;
      areas.push(0);
      touches.push(false);
    } else {
      region[k] = region[top];
    }
    areas[region[k]] += ends[k] - starts[k];
    const left = starts[k] === rows[k] * width;
    const right = ends[k] === (rows[k] + 1) * width;
    if (left || right || rows[k] === 0 || rows[k] === height - 1) touches[region[k]] = true;
  }
  return { starts, ends, rows, region, areas, touches };
}
