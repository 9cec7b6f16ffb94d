/* Numbers as people read them. */

/** 1234567 bytes as "1.2 MB". */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, count)) / 3));
  const value = count / 1000 ** step;
  return `${value < 10 && step ? value.toFixed(1).replace(/\.0$/, "") : Math.round(value)} ${units[step]}`;
}

/** A share 0 to 1 as per cent; small ones with more digits, and 0 only where it is nothing. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value.toFixed(value < 10 && value > 0 ? 2 : 1)} %`;
}

/** Square micrometres as µm², from 0.1 mm² on as mm². */
export function area(um2) {
  const [value, unit] = um2 < 1e5 ? [um2, "µm²"] : [um2 / 1e6, "mm²"];
  return `${value.toLocaleString("en", { maximumSignificantDigits: 4 })} ${unit}`;
}

/** 1234567 as "1,234,567". */
export const whole = (count) => count.toLocaleString("en");

/** A zoom as per cent of a screen pixel. */
export const zoomed = (zoom) => `${zoom < 0.1 ? (100 * zoom).toFixed(1) : Math.round(100 * zoom).toLocaleString("en")} %`;
