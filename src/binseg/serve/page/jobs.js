/* Large images and stacks: sent as a job, asked after until it is done, then kept as a file. */

import { deleteJob, getJob, getJobResult, patiently, postJob, Trouble } from "./api.js";

const EVERY_MS = 700;
const MISSES = 40; // times in a row that the server may not answer: jobs survive its restart
const LONGEST_MS = 10_000; // between two of them
const PASSING = ["gone", "busy", "broken", "slow"]; // a restart, also behind a proxy

/** Troubles after which a job is worth a try. */
export const canBeJob = (trouble, file, limits) => ["large", "stack", "slow"].includes(trouble.kind) && limits.max_job_bytes >= file.size;

/**
 * Have an image's mask made by a job.
 *
 * @param {function} onProgress hears a share 0 to 1
 * @param {AbortSignal} signal ends it, on the server too
 * @returns {Promise<{blob: Blob, quality: object | null, suffix: string}>} the mask: PNG, or TIFF for stacks and huge images
 */
export async function runJob(file, model, threshold, postprocessing, { signal, onProgress }) {
  const { id } = await patiently(() => postJob(file, model, threshold, postprocessing, signal), { signal, onWait: () => onProgress(0) });
  try {
    const { blob, quality } = await follow(id, signal, onProgress);
    forget(id);
    return { blob, quality, suffix: blob.type.includes("tif") ? "tif" : "png" };
  } catch (trouble) {
    if (signal.aborted || trouble.kind === "refused") forget(id);
    throw trouble;
  }
}

/* The server removes old jobs by itself, should this not arrive. */
const forget = (id) => deleteJob(id).catch(() => {});

async function follow(id, signal, onProgress) {
  for (let missed = 0; ;) {
    const wait = Math.min(EVERY_MS * (missed + 1), LONGEST_MS);
    try {
      const { state, progress, error } = await getJob(id, signal);
      onProgress(progress ?? 0);
      if (state === "done") return await getJobResult(id, signal);
      missed = 0;
      if (state === "failed") throw new Trouble("refused", error?.message ?? "The job was given up.");
    } catch (trouble) {
      missed += 1;
      if (!PASSING.includes(trouble.kind) || missed === MISSES) throw trouble;
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
