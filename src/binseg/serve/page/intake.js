/* Ways in: drop (folders too), paste, choose, take a photo. */

const $ = (id) => document.getElementById(id);
let numPasted = 0;

/** @param {object} on onFiles(files); canTake() false sends them to onRefused() */
export function listenIntake({ onFiles, canTake, onRefused }) {
  const give = (files) => {
    if (!canTake()) onRefused();
    else if (files.length) onFiles(files);
  };
  const ask = (input) => () => (canTake() ? $(input).click() : onRefused());
  for (const id of ["choose", "add"]) $(id).addEventListener("click", ask("files"));
  $("photo").addEventListener("click", ask("camera"));
  $("photo").hidden = !matchMedia("(pointer: coarse)").matches;
  for (const id of ["files", "camera"]) {
    $(id).addEventListener("change", () => {
      give([...$(id).files]);
      $(id).value = ""; // so that the same file can be chosen again
    });
  }
  listenDrop(give);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    give(files.map(named));
  });
}

/* Browsers call every pasted screenshot image.png. */
function named(file) {
  if (file.name && file.name !== "image.png") return file;
  numPasted += 1;
  return new File([file], `pasted-${numPasted}.png`, { type: file.type });
}

function listenDrop(give) {
  let depth = 0; // dragenter and dragleave come for every element passed
  const show = (on) => { $("drop").hidden = !on; };
  addEventListener("dragenter", (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    depth += 1;
    show(true);
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) show(false);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    show(false);
    give(await filesOf(event.dataTransfer));
  });
}

async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(walk))).flat();
}

async function walk(entry) {
  if (entry.isFile) return entry.name.startsWith(".") ? [] : [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  return (await Promise.all(found.map(walk))).flat();
}
