/* Talking to the server: one function a route, and every failure as a `Trouble` in plain words. */

const SLACK_S = 20; // beyond the server's own limit, for the way there and back
const SLOWEST = 16_000; // bytes a second that the server waits for
let token = ""; // in memory only: gone when the page is closed
let maxSeconds = 120;

/** Use a token for all requests from now on. */
export function setToken(value) {
  token = value;
}

/** True once a token was given. */
export const hasToken = () => token !== "";

/** What went wrong, for people. `kind` is one of the keys of TITLES. */
export class Trouble extends Error {
  constructor(kind, message, { retryAfter = null, code = "" } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
    this.code = code;
  }

  get title() {
    return TITLES[this.kind];
  }
}

const TITLES = {
  large: "This image is too large",
  unreadable: "This isn\u2019t an image that the server can read",
  token: "The server asks for a token",
  busy: "The server is busy",
  slow: "That takes too long",
  stack: "This is a stack of several images",
  gone: "The server can\u2019t be reached",
  missing: "The model isn\u2019t there any more",
  refused: "The server refused",
  broken: "Something went wrong on the server",
  page: "Something went wrong in this page",
  done: "Done",
};

const KINDS = { 401: "token", 404: "missing", 408: "slow", 413: "large", 415: "unreadable", 422: "unreadable", 429: "busy", 503: "busy", 504: "slow" };

const CODES = { bad_parameter: "refused", stack: "stack", timeout: "slow" };

function kindOf(status, code) {
  if (code in CODES) return CODES[code];
  return KINDS[status] ?? (status >= 500 ? "broken" : "refused");
}

async function troubleOf(response) {
  let code = "";
  let message = "";
  try {
    ({ code, message } = (await response.json()).error);
  } catch {
    message = `It answered ${response.status} ${response.statusText}`.trim() + "."; // a proxy's page, not ours
  }
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  message = message.replace(" (POST /v1/jobs)", ""); // for programs; people have a button
  return new Trouble(kindOf(response.status, code), message, { code, retryAfter: Number.isFinite(after) ? after : null });
}

/** Ask the server; every failure is a Trouble. */
export async function request(path, { query = {}, signal, more = 0, ...options } = {}) {
  const url = new URL(path, document.baseURI);
  for (const [key, value] of Object.entries(query)) url.searchParams.set(key, String(value));
  const sending = (options.body?.size ?? 0) / SLOWEST; // the server counts from a body's last byte
  const late = AbortSignal.timeout((maxSeconds + SLACK_S + sending + more) * 1000);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  try {
    const response = await fetch(url, {
      ...options, headers, cache: "no-store", credentials: "same-origin",
      signal: signal ? AbortSignal.any([signal, late]) : late,
    });
    if (!response.ok) throw await troubleOf(response);
    return response;
  } catch (error) {
    throw asTrouble(error);
  }
}

/** Any error as a Trouble; an `AbortError` stays what it is, as the reader wanted it. */
export function asTrouble(error) {
  if (error instanceof Trouble || error.name === "AbortError") return error;
  if (error.name === "TimeoutError") return new Trouble("slow", `No answer came ${maxSeconds + SLACK_S} seconds after the image was sent.`);
  if (error instanceof TypeError && !navigator.onLine) return new Trouble("gone", "This device is offline. Your images are still here; try again when it is back.");
  if (error instanceof TypeError) return new Trouble("gone", "It may have been stopped, or the connection was lost. Your images are still here; try again when it is back.");
  return new Trouble("page", error.message);
}

/** The models' cards and the server's limits. */
export async function getModels() {
  const answer = await (await request("v1/models")).json();
  maxSeconds = answer.limits?.max_seconds ?? maxSeconds;
  return answer;
}

/** The examples' names, titles and credits. */
export async function getExamples() {
  const answer = await (await request("v1/examples")).json();
  return Array.isArray(answer) ? answer : answer.examples;
}

/** An example's image. */
export async function getExample(name) {
  return (await request(`v1/examples/${encodeURIComponent(name)}`)).blob();
}

async function post(path, body, query, signal) {
  return request(path, { method: "POST", body, query, signal, headers: { "Content-Type": "application/octet-stream" } });
}

const qualityOf = (response) => JSON.parse(response.headers.get("X-Binseg-Quality") ?? "null");

/** An image's probability: {blob: 8-bit grey PNG, seconds, quality or null, um2: a pixel's area or NaN}. */
export async function getProbability(file, model, signal) {
  const response = await post("v1/predict", file, { model, output: "probability" }, signal);
  const [width, height] = (response.headers.get("X-Binseg-Pixel-Um") ?? "x").split("x").map(Number.parseFloat);
  const seconds = Number.parseFloat(response.headers.get("X-Binseg-Seconds") ?? "");
  try {
    return { blob: await response.blob(), seconds, quality: qualityOf(response), um2: width * height };
  } catch (error) {
    throw asTrouble(error);
  }
}

/** The server's description of the mask: objects, polygons, run lengths. */
export async function getDescription(file, model, threshold, postprocessing) {
  const response = await post("v1/predict", file, { model, threshold, ...postprocessing, output: "json" });
  return response.json();
}

/** A cut-out or overlay made by the server, for images that this browser can't show whole. */
export async function getRendered(file, model, threshold, postprocessing, output) {
  return (await post("v1/predict", file, { model, threshold, ...postprocessing, output })).blob();
}

/** Begin a job: {id, state, progress}. */
export async function postJob(file, model, threshold, postprocessing, signal) {
  return (await post("v1/jobs", file, { model, threshold, ...postprocessing, output: "mask" }, signal)).json();
}

/** How far a job is. */
export async function getJob(id, signal) {
  return (await request(`v1/jobs/${encodeURIComponent(id)}`, { signal })).json();
}

/** What a finished job made: {blob, quality or null}. */
export async function getJobResult(id, signal) {
  const response = await request(`v1/jobs/${encodeURIComponent(id)}/result`, { signal, more: 3600 }); // gigabytes
  try {
    return { blob: await response.blob(), quality: qualityOf(response) };
  } catch (error) {
    throw asTrouble(error);
  }
}

/** End a job, or remove what it made. */
export async function deleteJob(id) {
  await request(`v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/** An image as the browser can show it, made by the server: an 8-bit PNG. */
export async function getPreview(file, signal) {
  return (await post("v1/preview", file, {}, signal)).blob();
}

/** Ask again while the server is busy, as long after as it says; `onWait` hears the seconds, each second. */
export async function patiently(request, { signal, onWait, most = 20 }) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await request();
    } catch (error) {
      if (error.kind !== "busy" || tries === most) throw error;
      for (let left = Math.max(1, Math.ceil(error.retryAfter ?? 2)); left > 0; left -= 1) {
        onWait(left);
        await pause(1000, signal);
      }
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("no longer wanted", "AbortError"));
    }, { once: true });
  });
}
