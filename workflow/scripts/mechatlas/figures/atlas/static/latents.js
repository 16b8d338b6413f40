// Latents of a dictionary: all of them by importance, and the page of one.

const FLAGS = ["", "dense", "single token", "dense, single token"];

pages.latents = async ([model, source, dictionary], settings) => {
  const [data, index] = await Promise.all([core(model), load(model, source, dictionary, "index")]);
  const said = data.dictionaries.find((d) => d.source === source && d.dictionary === dictionary);
  const words = new Map();
  for (const entry of index.words) words.set(entry.unit, [...(words.get(entry.unit) || []), entry]);
  const units = index.layer.map((layer, i) => ({ unit: `L${layer}.${index.point}.F${index.latent[i]}`, layer, share: index.share[i], rate: index.rate[i], flag: FLAGS[index.flag[i]] }));
  const state = { layer: settings.layer ?? "", explained: settings.all ? "" : "yes" };
  const box = el("div");
  const draw = () => {
    const rows = units.filter((u) => (state.layer === "" || u.layer === Number(state.layer)) && (!state.explained || words.has(u.unit)));
    box.replaceChildren(latentTable(model, source, dictionary, rows, words, mainMarks(index.judges)));
  };
  draw();
  const layers = [{ id: "", label: "all layers" }, ...said.layers.map((layer) => ({ id: String(layer), label: `layer ${layer}` }))];
  return {
    title: `${dictionary} of ${model}`,
    nodes: [
      el("h1", {}, `Latents of ${dictionary}`, el("small", {}, ` of ${model} on ${source}`)),
      el("p", {}, `A dictionary writes what the model holds at ${index.point.replaceAll("_", " ")} as a sum of a few latents, each a direction that is active on some tokens. ${said.alive} latents are alive; the ${said.explained} most important ones are explained.`),
      el("div", { class: "controls" }, choice("layer", layers, state.layer, (value) => ((state.layer = value), keep({ layer: value }), draw())),
        choice("latents", [{ id: "yes", label: "explained" }, { id: "", label: "all" }], state.explained, (value) => ((state.explained = value), keep({ all: value ? null : "1" }), draw()))),
      box,
    ],
  };
};

function latentTable(model, source, dictionary, rows, words, marks) {
  const first = (row) => words.get(row.unit)?.[0];
  return table([
    { name: "latent", key: (r) => r.unit, cell: (r) => (words.has(r.unit) ? link(latentAddress(model, source, dictionary, r.unit), r.unit) : r.unit) },
    { name: "in words", wide: true, cell: (r) => first(r)?.text || (words.has(r.unit) ? "not explained" : "") },
    { name: "correlation", key: (r) => first(r)?.correlation[0], down: true, cell: (r) => interval(first(r)?.correlation), title: "of predicted and true activation on all tokens of test documents" },
    ...marks.map((mark) => ({ name: `judge: ${mark.label}`, key: (r) => first(r)?.judge?.[mark.name]?.[0], down: true, cell: (r) => interval(first(r)?.judge?.[mark.name]), title: judgeHelp(mark) })),
    { name: "share of its layer", key: (r) => r.share, down: true, cell: (r) => percent(r.share, 2), title: "share of all that the layer's latents write" },
    { name: "active on", key: (r) => r.rate, down: true, cell: (r) => percent(r.rate, 2), title: "share of tokens" },
    { name: "flags", key: (r) => r.flag, down: true, cell: (r) => r.flag },
  ], rows, { caption: "latents, the most important of their layer first", limit: 100 });
}

pages.latent = async ([model, source, dictionary, place]) => {
  const [layer, latent] = place.split(".").map(Number);
  const [data, index] = await Promise.all([core(model), load(model, source, dictionary, "index")]);
  const unit = `L${layer}.${index.point}.F${latent}`;
  const words = index.words.filter((entry) => entry.unit === unit);
  if (!words.length) throw new Error(`${unit} of ${dictionary} is not among the explained latents; the page of the dictionary lists them`);
  const own = (await load(model, source, dictionary, `layer-${layer}`))[unit];
  const at = index.layer.findIndex((one, i) => one === layer && index.latent[i] === latent);
  const units = [...new Set(index.words.map((entry) => entry.unit))], now = units.indexOf(unit);
  const near = (step) => (units[now + step] ? el("a", { class: "step", href: latentAddress(model, source, dictionary, units[now + step]), rel: step < 0 ? "prev" : "next" }, step < 0 ? `← ${units[now + step]}` : `${units[now + step]} →`) : el("span", { class: "step off" }));
  const writers = Object.entries(data.written).flatMap(([head, list]) => list.filter(([d, u]) => d === `${source}/${dictionary}` && u === unit).map(([, , times]) => [head, times])).sort((a, b) => b[1] - a[1]);
  return {
    title: `${unit} of ${dictionary}`,
    nodes: [
      el("div", { class: "title" }, el("h1", {}, unit, el("small", {}, " of ", link(address([model, "latents", source, dictionary]), dictionary), `, ${model} on ${source}`)), el("span", { class: "steps" }, near(-1), near(1))),
      el("p", { class: "badges" }, badge(`${percent(index.share[at], 1)} of its layer's writing`), badge(`active on ${percent(index.rate[at], 2)} of tokens`), FLAGS[index.flag[at]] ? badge(FLAGS[index.flag[at]], CONTROL_COLOUR) : null),
      el("h2", {}, "What it is active on, in words"),
      ...words.map((entry) => el("article", { class: "words" }, el("p", { class: "said" }, entry.text || "Not explained."), el("p", { class: "note" }, `explainer ${entry.explainer}`),
        el("p", {}, "Correlation of predicted and true activation ", el("b", {}, interval(entry.correlation)), `. ${missing(entry.advantage[0]) ? "" : `${interval(entry.advantage)} above the closest control (${CONTROLS[entry.control] || entry.control}).`}`),
        fold("all scores, beside those of explanations that should fail", scoreTable(own.scores[entry.explainer] || {})),
        judgeText(entry, index.judges), judgeTable(own.judge?.[entry.explainer]))),
      el("h2", {}, "Examples"), el("p", { class: "note" }, "Shading: activation as a share of the largest; the ", el("span", { class: "query" }, "framed"), " token is the example."), own.examples.map((example) => latentExample(example, own.max)),
      el("div", { class: "columns" },
        own.histogram ? el("div", {}, el("h3", {}, "How strongly it is active"), histogram(own.histogram)) : null,
        own.promoted.length ? el("div", {}, el("h3", {}, "What it does to the output"), promoted(own.promoted)) : null,
        el("div", {}, el("h3", {}, "Neighbours"), neighbours(model, source, dictionary, own.neighbours, new Set(units))),
        writers.length ? el("div", {}, el("h3", {}, "Heads that write to it"), el("p", { class: "note" }, "By weights alone; times what a random direction reads."), el("ul", { class: "plain wrap" }, writers.map(([head, times]) => el("li", {}, headLink(model, head), ` ${fixed(times, 1)}`)))) : null),
    ].flat(),
  };
};

const histogram = ({ counts, top }) =>
  chart(() => ({
    grid: { left: 50, right: 10, top: 10, bottom: 44 }, tooltip: { ...common().tooltip, formatter: (p) => `${fixed((p.dataIndex * top) / counts.length)} to ${fixed(((p.dataIndex + 1) * top) / counts.length)}: ${counts[p.dataIndex]} tokens` },
    xAxis: axis("activation", { type: "category", data: counts.map((_, i) => fixed(((i + 0.5) * top) / counts.length, 1)) }), yAxis: axis("", { type: "log", min: 0.9 }),
    series: [{ type: "bar", data: counts.map((count) => count || null), barWidth: "90%", itemStyle: { color: WORDS_COLOUR } }],
  }), { height: 200, label: "histogram of activations, with a logarithmic scale of tokens" });

function promoted(lists) {
  const verbs = { 1: "promotes", "-1": "suppresses" }, how = { direct: "by its direction alone", steered: "when the model is steered with it" };
  return lists.map(([kind, sign, tokens, values]) => el("p", { class: "tokens" }, `${verbs[sign]} ${how[kind] || kind}: `, tokens.map((token, i) => [el("code", { title: fixed(values[i]) }, token), " "])));
}

function neighbours(model, source, dictionary, list, known) {
  const words = { similar: "like direction (cosine)", coactive: "active together (Jaccard)" };
  return Object.entries(words).map(([kind, label]) => {
    const own = list.filter(([one]) => one === kind);
    return own.length ? el("p", { class: "tokens" }, `${label}: `, own.map(([, unit, value]) => [known.has(unit) ? link(latentAddress(model, source, dictionary, unit), unit) : unit, ` ${fixed(value)} `])) : null;
  });
}
