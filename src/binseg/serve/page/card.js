/* The model's card: what it finds, how good it is and what that means, data, licence. */

const MEANINGS = {
  dice: ["Dice", "overlap of mask and truth: twice what both share, by what both hold together; 1 is perfect"],
  iou: ["IoU", "what mask and truth share, by what either holds; stricter than Dice"],
  precision: ["Precision", "of the pixels that it takes, how many are right"],
  recall: ["Recall", "of the pixels that it should take, how many it takes"],
  specificity: ["Specificity", "of the background, how much it leaves alone"],
  accuracy: ["Accuracy", "pixels that are right; high even for an empty mask where objects are small"],
  mean_iou: ["Mean IoU", "IoU of object and background, averaged"],
};
const FITS = { stretch: "resized", tile: "in tiles, at its own scale", letterbox: "resized, with a border" };

/** Fill the card's element with a model's facts. */
export function showCard(body, model) {
  const parts = [];
  if (model.summary) parts.push(make("p", model.summary));
  parts.push(...scoreParts(model.scores ?? {}));
  parts.push(facts(model));
  body.replaceChildren(...parts);
}

function scoreParts(scores) {
  const groups = Object.entries(scores).filter(([, values]) => values && typeof values === "object");
  const plain = Object.entries(scores).filter(([, value]) => typeof value === "number");
  if (plain.length) groups.unshift(["How good it is", Object.fromEntries(plain)]);
  groups.sort(([a], [b]) => rank(a) - rank(b));
  return groups.map(([title, values], place) => {
    const lines = Object.entries(values).filter(([, value]) => typeof value === "number").map(([name, value]) => {
      const line = make("div", "", "score");
      const [label, meaning] = MEANINGS[name] ?? [name.replaceAll("_", " "), ""];
      line.append(make("b", label), make("span", value.toFixed(3)));
      if (meaning && place === 0) line.append(make("span", meaning, "meaning"));
      return line;
    });
    const heading = `Scores: ${title.replace(/^val\b/, "validation")}`;
    if (place === 0) return section("div", make("h3", heading), lines);
    return section("details", make("summary", heading, "small soft"), lines);
  });
}

/* The image's own size is what counts for whoever uses the masks; test before validation. */
const rank = (title) => (/original/.test(title) ? 0 : 2) + (/test/.test(title) ? 0 : 1);

function facts({ id, input = {}, threshold, data = {}, licence, created }) {
  const list = make("dl", "", "facts");
  const put = (name, value) => value !== undefined && value !== "" && value !== null && list.append(make("dt", name), make("dd", String(value)));
  const channels = { 1: "grey", 3: "RGB" }[input.channels];
  if (input.height && input.width) put("Looks at", `${input.width} × ${input.height} px${channels ? `, ${channels}` : ""}`);
  put("Your image is", FITS[input.resize] ?? input.resize);
  put("Threshold", Number(threshold).toFixed(3));
  put("Trained on", data.name ?? data.kind);
  if (data.num_train) put("Images", [["train", data.num_train], ["validation", data.num_val], ["test", data.num_test]].filter(([, n]) => n).map(([name, n]) => `${n.toLocaleString("en")} ${name}`).join(", "));
  put("About the data", data.note);
  put("Licence", licence || "not stated");
  put("Made", (created ?? "").slice(0, 10));
  put("Id", id);
  return list;
}

function section(tag, head, lines) {
  const part = make(tag, "");
  part.append(head, ...lines);
  return part;
}

function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}
