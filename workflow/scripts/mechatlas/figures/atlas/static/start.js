// From an address to a page.

const KINDS = { head: "head", agreement: "agreement", circuit: "circuit", latents: "latents", latent: "latent", features: "features", feature: "feature", graphs: "graphs" };

function route({ parts, settings }) {
  const [first, kind, ...rest] = parts;
  for (const name of ["source", "explainer"]) if (settings[name]) chosen[name] = settings[name];
  if (!first) return CATALOGUE.length === 1 ? pages.map([CATALOGUE[0].model], settings) : pages.home();
  if (first === "search") return pages.search(parts.slice(1), settings);
  if (!CATALOGUE.some((entry) => entry.model === first)) throw new Error(`there is no model ${first} here; there are ${CATALOGUE.map((entry) => entry.model).join(", ")}`);
  if (!kind) return pages.map([first], settings);
  if (!KINDS[kind]) throw new Error(`there is no page ${kind}`);
  return pages[KINDS[kind]]([first, ...rest], settings);
}

function drawTabs({ parts: [model, kind, ...rest] }) {
  const entry = CATALOGUE.find((one) => one.model === model) || (CATALOGUE.length === 1 && model !== "search" ? CATALOGUE[0] : null);
  const tab = (words, parts, on) => el("a", { href: address(parts), "aria-current": on ? "page" : null }, words);
  const tabs = document.getElementById("tabs");
  if (!entry) return tabs.replaceChildren(...CATALOGUE.map((one) => tab(one.model, [one.model], false)));
  const name = entry.model;
  tabs.replaceChildren(...[
    CATALOGUE.length > 1 && el("select", { "aria-label": "model", onchange: (event) => go(event.target.value) }, CATALOGUE.map((one) => el("option", { selected: one.model === name }, one.model))),
    tab("heads", [name], !kind || kind === "head"),
    entry.tasks.length && tab("circuits", [name, "circuit", kind === "circuit" ? rest[0] : entry.tasks[0]], kind === "circuit"),
    ...entry.dictionaries.map(([source, dictionary]) => tab(entry.dictionaries.length > 1 ? `latents: ${dictionary}, ${source}` : "latents", [name, "latents", source, dictionary], kind?.startsWith("latent") && rest[0] === source && rest[1] === dictionary)),
    ...entry.transcoders.map(([source, transcoder]) => tab(entry.transcoders.length > 1 ? `features: ${transcoder}, ${source}` : "features", [name, "features", source, transcoder], kind?.startsWith("feature") && rest[0] === source && rest[1] === transcoder)),
    entry.graphs > 0 && tab("graphs", [name, "graphs"], kind === "graphs"),
    entry.tasks.length > 0 && tab("agreement", [name, "agreement"], kind === "agreement"),
  ].filter(Boolean));
}

let turn = 0;

async function show() {
  const mine = ++turn, at = here();
  main.setAttribute("aria-busy", "true");
  let page;
  try {
    page = await route(at);
  } catch (error) {
    page = { title: "not found", nodes: [el("h1", {}, "Not here"), el("p", { role: "alert" }, error.message), el("p", {}, link("#/", "all models"))] };
  }
  if (mine !== turn) return; // Another page was asked for meanwhile.
  main.replaceChildren(...page.nodes.filter(Boolean));
  drawTabs(at);
  dropCharts();
  document.title = `${page.title} · mechatlas`;
  main.removeAttribute("aria-busy");
}

startTheme();
fillHelp();
startSearch();
document.getElementById("theme").addEventListener("click", switchTheme);
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", async () => {
  await show();
  if (!document.activeElement?.closest?.("#find")) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
});
show();
