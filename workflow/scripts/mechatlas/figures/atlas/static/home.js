// The first page: every model as a small map.

pages.home = async () => {
  const cards = await Promise.all(CATALOGUE.map(async (entry) => {
    const data = await core(entry.model), names = headNames(data);
    const measure = measuresOf(data)[0], colours = colouring(measure, names);
    const rows = [];
    for (let layer = data.layers - 1; layer >= 0; layer--) rows.push(el("div", { class: "row" }, names.filter((n) => headPlace(n)[0] === layer).map((n) => el("i", { title: `${n}: ${measure.value(n)}`, style: { background: colours.colour(measure.value(n)) } }))));
    return el("article", { class: "model" },
      el("h2", {}, link(address([entry.model]), entry.model)),
      el("a", { class: "mini", href: address([entry.model]), "aria-label": `map of ${entry.model}`, style: { "--columns": String(data.heads) } }, rows),
      el("div", { class: "legend" }, colours.order.map((value) => el("span", { class: "entry", title: CLASS_WORDS[value] }, el("i", { class: "swatch", style: { background: colours.colour(value) } }), `${value} (${colours.counts.get(value)})`))),
      el("ul", { class: "plain" },
        el("li", {}, link(address([entry.model]), `map of its ${names.length} heads`)),
        entry.tasks.map((task) => el("li", {}, link(address([entry.model, "circuit", task]), `what carries ${task}`))),
        entry.dictionaries.map(([source, dictionary]) => el("li", {}, link(address([entry.model, "latents", source, dictionary]), `latents of ${dictionary} on ${source}`))),
        entry.transcoders.map(([source, transcoder]) => el("li", {}, link(address([entry.model, "features", source, transcoder]), `features of ${transcoder} on ${source}`))),
        entry.graphs ? el("li", {}, link(address([entry.model, "graphs"]), `${entry.graphs} attribution graphs`)) : null,
        entry.tasks.length ? el("li", {}, link(address([entry.model, "agreement"]), "do words and causes agree?")) : null));
  }));
  return {
    title: "the atlas",
    nodes: [
      el("h1", {}, "What is inside these language models"),
      el("p", {}, "A square is an attention head: a part that looks back from a token at earlier ones. Its colour says where it looks, by an explanation in words that was tested on other text. Grey heads do several things. Open a model to see them one by one, and to see which heads carry a task."),
      el("div", { class: "models" }, cards), el("p", { class: "note" }, "Press ? for keys, / to search. The ", link("../index.html", "index of reports"), " has the tables and notebooks."),
    ],
  };
};
