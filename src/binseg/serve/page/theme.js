/* Colours: as the system, light or dark; the choice is remembered where the browser allows it. */

const ORDER = ["auto", "light", "dark"];
const SAID = { auto: "as your system", light: "light", dark: "dark" };
const KEY = "binseg-theme";

/** Let a button go through the three; `onChange` hears of every change, the system's too. */
export function listenTheme(button, onChange) {
  apply(button, recall());
  button.addEventListener("click", () => {
    const theme = ORDER[(ORDER.indexOf(recall()) + 1) % ORDER.length];
    remember(theme);
    apply(button, theme);
    onChange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
}

/** True where the page is dark now. */
export function isDark() {
  const theme = recall();
  return theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark";
}

let chosen = null;

function recall() {
  if (chosen) return chosen;
  let kept = null;
  try {
    kept = localStorage.getItem(KEY);
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
  chosen = ORDER.includes(kept) ? kept : "auto";
  return chosen;
}

function remember(theme) {
  chosen = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // as above
  }
}

function apply(button, theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.setAttribute("aria-label", `Colours: ${SAID[theme]}`);
  button.title = button.getAttribute("aria-label");
}
