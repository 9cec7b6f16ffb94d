"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const percent = (share) => `${(100 * share).toFixed(3)}%`;
  // An exact tie, such as 1/32, goes to the even digit, as everywhere else; toFixed takes it up.
  const fixed = (value, digits) => {
    const isTie = (value * 2 ** (digits + 1)) % 2 === 1;
    const steps = Math.floor(value * 10 ** digits);
    return (isTie && steps % 2 === 0 ? steps / 10 ** digits : value).toFixed(digits);
  };
  document.documentElement.classList.add("scripted");

  // The threshold slider.
  if (data.sweep) {
    const sweep = data.sweep;
    const slider = byId("threshold-slider");
    const show = () => {
      const at = Number(slider.value);
      const threshold = sweep.thresholds[at];
      byId("threshold-value").value = threshold.toFixed(3);
      slider.setAttribute("aria-valuetext", threshold.toFixed(3));
      for (const span of document.querySelectorAll("[data-score]")) {
        span.textContent = fixed(sweep[span.dataset.score][at], 4);
      }
      for (const span of document.querySelectorAll("[data-change]")) {
        const values = sweep[span.dataset.change];
        const change = values[at] - values[sweep.start];
        const text = Math.abs(change).toFixed(4);
        span.textContent =
          at === sweep.start ? "as used" : `${change < 0 ? "\u2212" : "+"}${text}`;
      }
      const line = byId("sweep-line");
      line.setAttribute("x1", percent(threshold));
      line.setAttribute("x2", percent(threshold));
      byId("pr-point").setAttribute("cx", percent(sweep.recall[at]));
      byId("pr-point").setAttribute("cy", percent(1 - sweep.precision[at]));
    };
    slider.addEventListener("input", show);
    byId("threshold-reset").addEventListener("click", () => {
      slider.value = sweep.start;
      show();
    });
    show();
  }

  // The images: each card's button holds all that the viewer shows.
  const cards = [...document.querySelectorAll("button.open")];
  const cardOf = new Map(cards.map((card) => [card.dataset.id, card]));
  const viewer = byId("viewer");
  let shown = 0;
  const setMode = () => {
    const mode = viewer.querySelector("[name=mode]:checked").value;
    viewer.dataset.mode = mode;
    byId("wipe").disabled = mode !== "compare";
  };
  const setWipe = () => {
    const at = Number(byId("wipe").value);
    byId("stage-left").style.clipPath = `inset(0 ${100 - at}% 0 0)`;
    byId("stage-right").style.clipPath = `inset(0 0 0 ${at}%)`;
    byId("stage-bar").style.left = `${at}%`;
    byId("wipe").setAttribute("aria-valuetext", `${at}% truth, ${100 - at}% prediction`);
  };
  const showImage = (number) => {
    shown = (number + cards.length) % cards.length;
    const card = cards[shown];
    const [image, errors] = card.querySelectorAll("img");
    const sources = {
      "stage-image": [image.src, `Image ${card.dataset.id}`],
      "stage-left": [card.dataset.truth, "Truth laid over it"],
      "stage-right": [card.dataset.prediction, "Prediction laid over it"],
      "stage-errors": [errors.src, "Error map"],
    };
    for (const [id, [source, alt]] of Object.entries(sources)) {
      byId(id).src = source;
      byId(id).alt = alt;
    }
    const stage = byId("stage");
    stage.style.setProperty("--across", image.getAttribute("width"));
    stage.style.setProperty("--down", image.getAttribute("height"));
    byId("viewer-id").textContent = card.dataset.id;
    byId("viewer-dice").textContent = card.dataset.dice;
    byId("viewer-number").textContent = `${shown + 1} of ${cards.length}`;
  };
  const open = (card) => {
    showImage(cards.indexOf(card));
    setMode();
    setWipe();
    viewer.showModal();
    byId("wipe").focus();
  };
  for (const card of cards) card.addEventListener("click", () => open(card));
  viewer.addEventListener("change", setMode);
  byId("wipe").addEventListener("input", setWipe);
  byId("viewer-close").addEventListener("click", () => viewer.close());
  byId("viewer-previous").addEventListener("click", () => showImage(shown - 1));
  byId("viewer-next").addEventListener("click", () => showImage(shown + 1));
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  const drag = (event) => {
    if (viewer.dataset.mode !== "compare") return;
    const box = byId("stage").getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    byId("wipe").value = Math.round(100 * Math.min(1, Math.max(0, share)));
    setWipe();
  };
  byId("stage").addEventListener("pointerdown", (event) => {
    event.preventDefault();
    byId("stage").setPointerCapture(event.pointerId);
    drag(event);
  });
  byId("stage").addEventListener("pointermove", (event) => {
    if (byId("stage").hasPointerCapture(event.pointerId)) drag(event);
  });

  // The table of images.
  const PAGE = 50;
  const DICE = 1;
  const POOR = 0.5;
  const { columns, rows, marks } = data;
  const heads = [...document.querySelectorAll("table.images thead th")];
  const collator = new Intl.Collator(undefined, { numeric: true });
  const valueOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const textOf = (cell, column) => {
    if (cell === null) return "\u2013";
    if (Array.isArray(cell)) return cell[1];
    return column.kind === "number" ? fixed(cell, column.digits) : cell;
  };
  const texts = rows.map((row) =>
    columns.flatMap(({ kind }, place) => (kind === "text" ? [row[place]] : [])).join("\n").toLowerCase(),
  );
  const MARKS = {
    missed: "object missed",
    alarm: "false alarm",
    empty: "empty truth",
    ignored: "all ignored",
  };
  let sortBy = DICE;
  let descending = false;
  let page = 0;
  let order = rows.map((_, number) => number);

  const isKept = (number) => {
    const wanted = byId("show").value;
    const dice = valueOf(rows[number][DICE]);
    if (!texts[number].includes(byId("search").value.trim().toLowerCase())) return false;
    if (wanted === "poor") return dice !== null && dice < POOR;
    if (wanted === "image") return cardOf.has(rows[number][0]);
    if (wanted === "empty") return marks[number] === "empty" || marks[number] === "alarm";
    return wanted === "" || marks[number] === wanted;
  };
  const compare = (left, right) => {
    const [one, other] = [valueOf(rows[left][sortBy]), valueOf(rows[right][sortBy])];
    // What has no figure stands last, whichever way is sorted.
    if (one === null || other === null) return (one === null) - (other === null) || left - right;
    const found = columns[sortBy].kind === "text" ? collator.compare(one, other) : one - other;
    return (descending ? -found : found) || left - right;
  };
  const element = (name, className, ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  const idCell = (number) => {
    const id = rows[number][0];
    const head = element("th", "");
    head.scope = "row";
    const name = element("bdi", "name");
    // Long names may break after what joins their words.
    id.split(/(?<=[_./-])/).forEach((piece) => name.append(piece, document.createElement("wbr")));
    const card = cardOf.get(id);
    if (card) {
      const button = element("button", "link", name);
      button.type = "button";
      button.setAttribute("aria-haspopup", "dialog");
      button.addEventListener("click", () => open(card));
      head.append(button);
    } else {
      head.append(name);
    }
    if (marks[number]) head.append(" ", element("span", `mark ${marks[number]}`, MARKS[marks[number]]));
    return head;
  };
  const diceCell = (cell) => {
    const made = element("td", "num dice", textOf(cell, columns[DICE]));
    if (cell !== null) {
      const bar = element("span", cell < POOR ? "meter poor" : "meter");
      const fill = element("span", "");
      fill.style.width = percent(cell);
      bar.append(fill);
      made.append(bar);
    }
    return made;
  };
  const draw = () => {
    const last = Math.max(0, Math.ceil(order.length / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    const start = page * PAGE;
    const part = order.slice(start, start + PAGE);
    byId("rows").replaceChildren(
      ...part.map((number) => {
        const cells = columns.slice(1).map((column, before) => {
          const cell = rows[number][before + 1];
          if (before + 1 === DICE) return diceCell(cell);
          const text = textOf(cell, column);
          return column.kind === "number"
            ? element("td", "num", text)
            : element("td", "", element("bdi", "", text));
        });
        return element("tr", "", idCell(number), ...cells);
      }),
    );
    const count = (number) => number.toLocaleString("en");
    byId("status").textContent =
      order.length === 0
        ? "No image fits."
        : `${count(start + 1)} to ${count(start + part.length)} of ${count(order.length)}` +
          (order.length < rows.length ? ` (${count(rows.length)} in all)` : " images");
    byId("page-number").textContent = `Page ${page + 1} of ${last + 1}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === last;
    document.querySelector(".pages").hidden = last === 0;
  };
  const arrange = () => {
    order = rows.map((_, number) => number).filter(isKept).sort(compare);
    page = 0;
    draw();
  };
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      descending = sortBy === place ? !descending : false;
      sortBy = place;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      arrange();
    });
  });
  byId("search").addEventListener("input", arrange);
  byId("show").addEventListener("change", arrange);
  const turn = (by) => {
    page += by;
    draw();
    document.querySelector(".images").scrollIntoView({ block: "start" });
  };
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  arrange();

  // On paper nothing can be unfolded.
  const folded = [...document.querySelectorAll("details[data-print]")];
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = folded.filter((one) => !one.open);
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
