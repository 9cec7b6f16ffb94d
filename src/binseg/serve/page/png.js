/* PNG, to the bit: a browser's own canvas may add noise against fingerprinting, or manage colours.

   Reads what the server sends for `output=probability` (8-bit grey), writes masks (8-bit grey, 0 and
   255) and images (RGB, RGBA). Compression is the browser's own (CompressionStream). */

const SIGNATURE = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
const COLOUR_TYPE = { 1: 0, 3: 2, 4: 6 };

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let bit = 0; bit < 8; bit += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

/** CRC-32 of bytes, as PNG and ZIP use it. */
export function crc32(bytes, crc = 0) {
  let c = ~crc;
  for (let i = 0; i < bytes.length; i += 1) c = CRC_TABLE[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return ~c >>> 0;
}

/** Width, height, bits and colour type of a PNG's first bytes; null where they are no PNG. */
export function readHeader(bytes) {
  if (bytes.length < 33 || SIGNATURE.some((value, i) => bytes[i] !== value)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return { width: view.getUint32(16), height: view.getUint32(20), bits: bytes[24], type: bytes[25], interlaced: bytes[28] !== 0 };
}

/** Decode an 8-bit grey PNG into {width, height, pixels}. */
export async function decodeGrey(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const header = readHeader(bytes);
  if (!header || header.bits !== 8 || header.type !== 0 || header.interlaced) throw new Error("The server's prediction isn't an 8-bit grey PNG.");
  const view = new DataView(bytes.buffer);
  const parts = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + length));
    if (name === "IEND") break;
    at += 12 + length;
  }
  const raw = await through(new Blob(parts), new DecompressionStream("deflate"));
  const { width, height } = header;
  if (raw.length !== (width + 1) * height) throw new Error("The server's prediction was cut short.");
  return { width, height, pixels: undoFilters(raw, width, height) };
}

function undoFilters(raw, width, height) {
  const out = new Uint8Array(width * height);
  for (let y = 0; y < height; y += 1) {
    const filter = raw[y * (width + 1)];
    const from = y * (width + 1) + 1;
    const to = y * width;
    for (let x = 0; x < width; x += 1) {
      const left = x ? out[to + x - 1] : 0;
      const up = y ? out[to + x - width] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) guess = paeth(left, up, x && y ? out[to + x - width - 1] : 0);
      out[to + x] = raw[from + x] + guess;
    }
  }
  return out;
}

function paeth(left, up, corner) {
  const a = Math.abs(up - corner);
  const b = Math.abs(left - corner);
  const c = Math.abs(left + up - 2 * corner);
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

/** Encode rows of 1 (grey), 3 (RGB) or 4 (RGBA) bytes a pixel; `notes` become text chunks. */
export async function encode(pixels, width, height, notes = {}) {
  const channels = pixels.length / (width * height);
  const stride = width * channels;
  const raw = new Uint8Array((stride + 1) * height);
  const up = channels === 1; // masks repeat downwards, photographs sideways
  for (let y = 0; y < height; y += 1) {
    const to = y * (stride + 1);
    const from = y * stride;
    raw[to] = up ? 2 : 1;
    for (let x = 0; x < stride; x += 1) {
      const before = up ? (y ? pixels[from + x - stride] : 0) : (x >= channels ? pixels[from + x - channels] : 0);
      raw[to + 1 + x] = pixels[from + x] - before;
    }
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, COLOUR_TYPE[channels], 0, 0, 0], 8);
  const data = await through(new Blob([raw]), new CompressionStream("deflate"));
  const texts = Object.entries(notes).map(([key, value]) => chunk("iTXt", new TextEncoder().encode(`${key}\0\0\0\0\0${value}`)));
  return new Blob([SIGNATURE, chunk("IHDR", header), ...texts, chunk("IDAT", data), chunk("IEND", new Uint8Array())], { type: "image/png" });
}

function chunk(name, data) {
  const out = new Uint8Array(data.length + 12);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i += 1) out[4 + i] = name.charCodeAt(i);
  out.set(data, 8);
  view.setUint32(data.length + 8, crc32(out.subarray(4, data.length + 8)));
  return out;
}

async function through(blob, stream) {
  return new Uint8Array(await new Response(blob.stream().pipeThrough(stream)).arrayBuffer());
}
