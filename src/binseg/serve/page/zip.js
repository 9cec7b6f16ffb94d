/* A ZIP of files that are compressed already (PNG): stored as they are, names in UTF-8. */

import { crc32 } from "./png.js";

const DATE = (40 << 9) | (1 << 5) | 1; // 2020-01-01: the same masks give the same bytes

/** Pack [{name, bytes}] into one ZIP blob. */
export function zip(files) {
  const parts = [];
  const index = [];
  let offset = 0;
  for (const { name, bytes } of files) {
    const label = new TextEncoder().encode(name);
    const common = [20, 0x800, 0, 0, DATE]; // version, UTF-8 names, stored, time, date
    const sizes = [crc32(bytes), bytes.length, bytes.length];
    const local = record(0x04034b50, common, sizes, [label.length, 0]);
    parts.push(local, label, bytes);
    index.push(record(0x02014b50, [20, ...common], sizes, [label.length, 0, 0, 0, 0], [0, offset]), label);
    offset += local.length + label.length + bytes.length;
  }
  const length = index.reduce((sum, part) => sum + part.length, 0);
  const end = record(0x06054b50, [0, 0, files.length, files.length], [length, offset], [0]);
  return new Blob([...parts, ...index, end], { type: "application/zip" });
}

/* A signature, then in turn numbers of 2, 4, 2, 4 bytes. */
function record(signature, ...groups) {
  const out = [];
  const put = (value, bytes) => {
    for (let i = 0; i < bytes; i += 1) out.push((value >>> (8 * i)) & 255);
  };
  put(signature, 4);
  groups.forEach((group, i) => group.forEach((value) => put(value, i % 2 ? 4 : 2)));
  return Uint8Array.from(out);
}
