// Features of a transcoder: the most important of each layer, and the page of one with its strongest examples.

const featureAddress = (model, source, transcoder, unit) => address([model, "feature", source, transcoder, unit.replace(/^L(\d+)\/F(\d+)$/, "$1.$2")]);

function featureExample(example) {
  const parts = example.tokens.flatMap((text, i) => (i === example.at ? tokenNode(text, { class: "query key", title: `activation ${fixed(example.value)}`, style: { "--a": "1" } }) : [text]));
  return el("p", { class: "text" }, example.cut[0] ? el("span", { class: "gap" }, "… ") : null, parts, example.cut[1] ? el("span", { class: "gap" }, " …") : null);
}

pages.features = async ([model, source, transcoder], settings) => {
  const [data, rows] = await Promise.all([core(model), load(model, source, `transcoder-${transcoder}`)]);
  const said = data.transcoders.find((t) => t.source === source && t.transcoder === transcoder);
  const state = { layer: settings.layer ?? "" }, box = el("div");
  const draw = () => box.replaceChildren(table([
    { name: "feature", key: (r) => r.unit, cell: (r) => link(featureAddress(model, source, transcoder, r.unit), r.unit) },
    { name: "strongest example", wide: true, cell: (r) => (r.examples.length ? featureExample(r.examples[0]) : "none") },
    { name: "share of its layer", key: (r) => r.share, down: true, cell: (r) => percent(r.share, 2), title: "share of all that the layer's features write" },
    { name: "active on", key: (r) => r.density, down: true, cell: (r) => percent(r.density, 2), title: "share of tokens" },
    { name: "largest activation", key: (r) => r.max, down: true, cell: (r) => fixed(r.max) },
  ], rows.filter((r) => state.layer === "" || r.layer === Number(state.layer)), { caption: "features, the most important of their layer first", limit: 60 }));
  draw();
  const layers = [{ id: "", label: "all layers" }, ...[...new Set(rows.map((r) => r.layer))].map((layer) => ({ id: String(layer), label: `layer ${layer}` }))];
  return {
    title: `${transcoder} of ${model}`,
    nodes: [
      el("h1", {}, `Features of ${transcoder}`, el("small", {}, ` of ${model} on ${source}`)),
      el("p", {}, `A transcoder does what the MLPs do with sparse features: each reads before the MLP of its layer and writes to the outputs of that layer and later ones. ${said.alive} features are alive; the ${said.shown} that write most are listed. Attribution graphs are drawn with them.`),
      el("div", { class: "controls" }, choice("layer", layers, state.layer, (value) => ((state.layer = value), keep({ layer: value }), draw()))), box,
    ],
  };
};

pages.feature = async ([model, source, transcoder, place]) => {
  const rows = await load(model, source, `transcoder-${transcoder}`);
  const unit = `L${place.replace(".", "/F")}`, at = rows.findIndex((row) => row.unit === unit), row = rows[at];
  if (!row) throw new Error(`${unit} of ${transcoder} is not among the features that are listed`);
  const near = (step) => (rows[at + step] ? el("a", { class: "step", href: featureAddress(model, source, transcoder, rows[at + step].unit), rel: step < 0 ? "prev" : "next" }, step < 0 ? `← ${rows[at + step].unit}` : `${rows[at + step].unit} →`) : el("span", { class: "step off" }));
  return {
    title: `${unit} of ${transcoder}`,
    nodes: [
      el("div", { class: "title" }, el("h1", {}, unit, el("small", {}, " feature of ", link(address([model, "features", source, transcoder]), transcoder), `, ${model} on ${source}`)), el("span", { class: "steps" }, near(-1), near(1))),
      el("p", { class: "badges" }, badge(`${percent(row.share, 1)} of its layer's writing`), badge(`active on ${percent(row.density, 2)} of tokens`), badge(`largest activation ${fixed(row.max)}`), badge(`mean where active ${fixed(row.mean)}`), badge(`decoder norm ${fixed(row.norm)}`)),
      el("h2", {}, "Strongest examples"), el("p", { class: "note" }, "The ", el("span", { class: "query" }, "framed"), " token is where the feature is active."),
      ...row.examples.map((example) => el("div", { class: "example" }, featureExample(example), el("small", {}, `activation ${fixed(example.value)}`))),
    ],
  };
};
