"use strict";
/* Theme, tips over the charts, and the list to search in. Text of the run becomes text nodes only, never markup. */

(function theme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() {
    return root.dataset.theme === "dark" || (root.dataset.theme !== "light" && system.matches);
  }
  function show() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
    button.removeAttribute("aria-pressed");
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
})();

(function tips() {
  const tip = document.getElementById("tip");
  function show(event) {
    const owner = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = owner === null;
    if (owner === null) return;
    tip.textContent = owner.getAttribute("data-tip");
    const wide = tip.offsetWidth;
    const left = Math.min(Math.max(8, event.clientX - wide / 2), window.innerWidth - wide - 8);
    const above = event.clientY - tip.offsetHeight - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
  }
  document.addEventListener("pointermove", show, { passive: true });
  document.addEventListener("pointerdown", show, { passive: true });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
})();

function made(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

(function browse() {
  const block = document.getElementById("data");
  if (block === null) return;
  const data = JSON.parse(block.textContent);
  const pageSize = 20;
  const field = (name) => document.getElementById(name);
  let page = 0;
  let hits = [];

  for (const row of [...data.kept, ...data.rejected]) {
    row.all = [row.text, row.to || "", ...(row.made || []).flat()].join("\n").toLocaleLowerCase();
  }

  function marked(text, words) {
    const lowered = text.toLocaleLowerCase();
    if (!words.length || lowered.length !== text.length) return [text];
    const parts = [];
    let at = 0;
    while (at < text.length) {
      let next = -1;
      let found = "";
      for (const word of words) {
        const place = lowered.indexOf(word, at);
        if (place >= 0 && (next < 0 || place < next || (place === next && word.length > found.length))) {
          next = place;
          found = word;
        }
      }
      if (next < 0) break;
      if (next > at) parts.push(text.slice(at, next));
      parts.push(made("mark", "", text.slice(next, next + found.length)));
      at = next + found.length;
    }
    parts.push(text.slice(at));
    return parts;
  }

  function tags(row) {
    const list = made("div", "meta");
    if (row.id) list.append(made("span", "tag", row.id));
    if (row.rule) list.append(made("span", "tag", `rejected: ${row.rule.replaceAll("_", " ")}`));
    if (row.c !== undefined) list.append(made("span", "tag", row.c ? "classification" : "not classification"));
    if (row.near !== null) list.append(made("span", "tag", `ROUGE-L ${row.near.toFixed(2)} with ${row.to}`));
    return list;
  }

  function card(row, words) {
    const item = made("li", "", made("h3", "text", ...marked(row.text, words)), tags(row));
    for (const [index, [input, output]] of (row.made || []).entries()) {
      const pair = made("dl", "made");
      const score = (row.judged || [])[index] ?? null;
      const asked = row.turns && index > 0 ? "Then" : "Input";
      if (input) pair.append(made("dt", "", asked), made("dd", "", ...marked(input, words)));
      pair.append(made("dt", "", "Output"), made("dd", "", ...marked(output, words)));
      if (score !== null) pair.append(made("dt", "", "Judged"), made("dd", "", `${score} of 5`));
      item.append(pair);
    }
    return item;
  }

  function best(row, none) {
    const scores = (row.judged || []).filter((score) => score !== null);
    return scores.length ? Math.max(...scores) : none;
  }

  const orders = {
    best: (a, b) => best(b, 0) - best(a, 0),
    worst: (a, b) => best(a, 9) - best(b, 9),
    near: (a, b) => (b.near ?? -1) - (a.near ?? -1),
    new: (a, b) => (a.near ?? 2) - (b.near ?? 2),
    long: (a, b) => b.text.length - a.text.length,
    short: (a, b) => a.text.length - b.text.length,
  };

  function query() {
    return field("query").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  }

  function search() {
    const words = query();
    const isKept = field("which").value === "kept";
    const kind = field("kind").value;
    const rule = field("rule").value;
    field("field-kind").hidden = !isKept || field("kind").length < 2;
    field("field-rule").hidden = isKept;
    hits = (isKept ? data.kept : data.rejected).filter((row) =>
      words.every((word) => row.all.includes(word)) &&
      (!isKept || kind === "" || row.c === (kind === "c")) &&
      (isKept || rule === "" || row.rule === rule));
    const order = orders[field("order").value];
    if (order) hits.sort(order);
    page = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(hits.length / pageSize));
    const words = query();
    field("results").replaceChildren(...hits.slice(page * pageSize, (page + 1) * pageSize).map((row) => card(row, words)));
    field("found").textContent = hits.length === 1 ? "1 instruction" : `${hits.length.toLocaleString("en")} instructions`;
    field("page").textContent = `Page ${page + 1} of ${pages}`;
    field("previous").disabled = page === 0;
    field("next").disabled = page + 1 >= pages;
  }

  function turn(by) {
    page += by;
    show();
    field("found").scrollIntoView({ block: "start" });
  }

  const form = field("browse-form");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", search);
  field("previous").addEventListener("click", () => turn(-1));
  field("next").addEventListener("click", () => turn(1));
  search();
})();
