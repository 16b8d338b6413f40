// Search over all explanations of heads and latents of all models: every word must be there, in any order.

let texts = null;

// All texts, loaded when the first search is made.
function allTexts() {
  texts = texts || Promise.all(CATALOGUE.flatMap((entry) => [
    core(entry.model).then((data) => data.words.map((w) => ({ model: entry.model, kind: "head", unit: w.head, where: `${w.explainer}, ${w.source}`, text: w.text, score: w.iou[0], href: headAddress(entry.model, w.head), class: w.class }))),
    ...entry.dictionaries.map(([source, dictionary]) => load(entry.model, source, dictionary, "index").then((index) => index.words.map((w) => ({ model: entry.model, kind: "latent", unit: w.unit, where: `${dictionary}, ${w.explainer}, ${source}`, text: w.text, score: w.correlation[0], href: latentAddress(entry.model, source, dictionary, w.unit), class: "" })))),
  ])).then((lists) => lists.flat());
  return texts;
}

function find(list, query) {
  const parts = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!parts.length) return [];
  return list.filter((entry) => {
    const all = `${entry.unit} ${entry.class} ${entry.text} ${entry.model}`.toLowerCase();
    return parts.every((part) => all.includes(part));
  });
}

// A text with the words that were looked for marked.
function marked(text, query) {
  const parts = query.toLowerCase().split(/\s+/).filter(Boolean), low = text.toLowerCase(), out = [];
  let at = 0;
  while (at < text.length) {
    const hits = parts.map((part) => [low.indexOf(part, at), part.length]).filter(([place]) => place >= 0).sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    if (!hits.length) break;
    const [place, size] = hits[0];
    out.push(text.slice(at, place), el("mark", {}, text.slice(place, place + size)));
    at = place + size;
  }
  return [...out, text.slice(at)];
}

pages.search = async ([query = ""]) => {
  const list = await allTexts(), hits = find(list, query);
  const field = document.getElementById("query");
  if (document.activeElement !== field) field.value = query;
  return {
    title: `search: ${query}`,
    nodes: [
      el("h1", {}, query ? `${hits.length} explanations with “${query}”` : "Search"),
      el("p", { class: "note", role: "status" }, query ? `of ${list.length} explanations of heads and latents` : `Type words; ${list.length} explanations of heads and latents are searched.`),
      hits.length ? table([
        { name: "unit", key: (e) => e.unit, cell: (e) => el("a", { href: e.href, class: "hit" }, e.unit) },
        { name: "model", key: (e) => e.model, cell: (e) => e.model }, { name: "kind", key: (e) => e.kind, cell: (e) => e.kind },
        { name: "in words", wide: true, cell: (e) => marked(e.text || "not explained", query) },
        { name: "score", key: (e) => e.score, down: true, cell: (e) => fixed(e.score), title: "IoU of heads, correlation of latents" },
        { name: "from", cell: (e) => e.where },
      ], hits, { caption: "explanations found", limit: 100 }) : null,
    ],
  };
};

function startSearch() {
  const field = document.getElementById("query");
  let timer = null;
  const ask = async () => {
    clearTimeout(timer);
    const query = field.value.trim(), at = here().parts, searching = at[0] === "search";
    if ((!query && !searching) || (searching && (at[1] || "") === query)) return;
    history[searching ? "replaceState" : "pushState"](null, "", address(["search", query].filter(Boolean)));
    await show();
  };
  field.addEventListener("input", () => (clearTimeout(timer), (timer = setTimeout(ask, 120))));
  document.getElementById("find").addEventListener("submit", async (event) => {
    event.preventDefault();
    await ask();
    main.querySelector("a.hit")?.focus();
  });
}
