// Keys and the help that lists them.

const KEYS = [
  ["/", "search"], ["?", "this help"], ["t", "light or dark"], ["h", "all models"], ["m", "map of the model"],
  ["j, k", "next and previous head or latent"], ["arrow keys", "in the map: the next cell; on a page of a head: the next head, up and down a layer"],
  ["Enter", "open the cell, the first search result"], ["Esc", "leave the search, close this help"],
];

function fillHelp() {
  const box = document.getElementById("keys");
  box.replaceChildren(
    el("h2", { id: "keys-title" }, "Keys"),
    el("table", {}, el("tbody", {}, KEYS.map(([key, what]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, what))))),
    el("p", { class: "note" }, "Every view has an address of its own: copy it to come back to it. Numbers in brackets are intervals; p is the share of controls that do as well."),
    el("form", { method: "dialog" }, el("button", { autofocus: true }, "close")));
}

const typing = (node) => node.closest?.("input, select, textarea, dialog[open]");

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = document.getElementById("query"), help = document.getElementById("keys");
  if (event.key === "Escape") {
    if (document.activeElement === field) field.blur();
    return;
  }
  if (typing(event.target)) return;
  const { parts } = here(), model = CATALOGUE.some((entry) => entry.model === parts[0]) ? parts[0] : CATALOGUE.length === 1 ? CATALOGUE[0].model : null;
  const follow = (rel) => main.querySelector(`a[rel="${rel}"]`)?.click();
  const actions = {
    "/": () => field.focus(), "?": () => help.showModal(), t: switchTheme, h: () => go(), m: () => model && go(model),
    j: () => follow("next"), k: () => follow("prev"),
  };
  const arrows = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
  if (event.key in actions) actions[event.key]();
  else if (event.key in arrows && event.target.closest?.("#map")) walkMap(event.target, event.key);
  else if (event.key in arrows && parts[1] === "head" && !event.target.closest?.(".scroll")) walkHeads(parts, arrows[event.key]);
  else return;
  event.preventDefault();
}

// The cell beside the one that has the focus, as the map is laid out now.
function walkMap(cell, key) {
  const rows = [...cell.closest("#map").querySelectorAll('[role="row"]')].map((row) => [...row.querySelectorAll(".cell")]);
  const row = rows.findIndex((cells) => cells.includes(cell)), column = rows[row].indexOf(cell);
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
  const next = rows[row + step[0]]?.[column + step[1]];
  if (!next) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

async function walkHeads(parts, [up, right]) {
  const data = await core(parts[0]), [layer, head] = parts[2].split(".").map(Number);
  const to = [layer + up, head + right];
  if (to[0] >= 0 && to[0] < data.layers && to[1] >= 0 && to[1] < data.heads) go(parts[0], "head", to.join("."));
}

// --- light and dark --------------------------------------------------------------------------------------------------

const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function switchTheme() {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  try {
    localStorage.setItem("mechatlas-theme", document.documentElement.dataset.theme);
  } catch {} // A page on disk may be without storage; the switch then holds until it is closed.
  redrawCharts();
}

function startTheme() {
  try {
    const kept = localStorage.getItem("mechatlas-theme");
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch {}
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
}
