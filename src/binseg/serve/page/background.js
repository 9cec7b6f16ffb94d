/* The page's side of the worker. */

const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let numAsked = 0;

worker.addEventListener("message", ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
});

worker.addEventListener("error", () => {
  for (const { reject } of waiting.values()) reject(new Error("This browser can't run the page's worker."));
  waiting.clear();
});

/** Have the worker do a task; its tasks are in worker.js. */
export function ask(task, values = {}, moved = []) {
  numAsked += 1;
  const id = numAsked;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, values }, moved);
  });
}
