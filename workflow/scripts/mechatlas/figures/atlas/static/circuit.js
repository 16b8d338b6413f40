// The page of a task: its prompt, the circuit as a graph with query, key and value inputs, how faithful it is, all tasks.

pages.circuit = async ([model, task]) => {
  const data = await core(model), own = data.tasks[task];
  if (!own) throw new Error(`${model} has no task ${task}; there are ${Object.keys(data.tasks).join(", ") || "none"}`);
  const details = await load(model, `task-${task}`);
  return {
    title: `${task} in ${model}`,
    nodes: [
      el("h1", {}, `What carries ${task}`, el("small", {}, ` in ${model}`)),
      el("p", { class: "badges" }, Object.keys(data.tasks).map((other) => link(address([model, "circuit", other]), badge(other, other === task ? WORDS_COLOUR : null)))),
      promptPart(own), summaryPart(data, own),
      el("h2", {}, "The circuit"), ...graphParts(model, data, task, details),
      el("h2", {}, "How much of the circuit is needed"), curvePart(own, details),
      el("h2", {}, "Each part removed alone"), dropTable(model, own, details),
      el("h2", {}, "All tasks over each other"), ...overlayParts(model, data),
    ].flat(),
  };
};

function promptPart(own) {
  const p = own.prompt, total = Object.values(own.counts).reduce((a, b) => a + b, 0);
  return el("div", { class: "example" },
    el("p", { class: "text" }, p.text, " ", el("span", { class: "query" }, p.answer_.trim() || p.answer_), el("small", {}, ` and not ${p.wrong_.trim()}`)),
    el("small", {}, `one of ${total} prompts; corrupted: ${p.corrupted_}`));
}

function summaryPart(data, own) {
  const { nodes, held_out, random } = own.circuit, control = random.layer || random.size;
  const heads = nodes.filter((n) => n.includes(".H")).length;
  return el("div", { class: "cards" },
    card(interval(held_out, 0, " %"), "of the score is kept by the circuit alone", `${plural(heads, "head")} and ${plural(nodes.length - heads, "MLP")}, on ${own.counts.held_out ?? 0} held-out prompts; everything else replaced by its mean`),
    control ? card(`${fixed(control.mean, 0)} %`, "by random circuits with as many heads in each layer", `the best of ${control.count} keeps ${fixed(control.max, 0)} %; p ${chance(control.p)}`) : null,
    card(interval(own.edges.held_out, 0, " %"), `by its ${own.edges.count} edges alone`, `random sets of edges of this size: ${fixed(100 * own.edges.random.mean, 0)} %`));
}

// --- graphs ----------------------------------------------------------------------------------------------------------

const nodeOf = (end) => end.replace(/\.[qkv]$/, "");

// Where a part stands: embedding below, heads of a layer in a row with its MLP to the right and above, logits on top.
function graphPlace(name, data) {
  if (name === "embed") return [(data.heads - 1) / 2, -1];
  if (name === "logits") return [(data.heads - 1) / 2, data.layers];
  const [, layer, head] = name.match(/^L(\d+)\.(?:H(\d+)|mlp)$/);
  return head === undefined ? [data.heads + 0.2, Number(layer) + 0.35] : [Number(head), Number(layer)];
}

function graphOption(data, names, edges, style) {
  const most = Math.max(...edges.map((e) => Math.abs(e.score)), 1e-12);
  return {
    grid: { left: 60, right: 20, top: 8, bottom: 34 },
    tooltip: { ...common().tooltip, formatter: (p) => p.data.said || p.name },
    xAxis: { type: "value", min: -1, max: data.heads + 1, interval: 1, name: "head", nameLocation: "middle", nameGap: 22, nameTextStyle: { color: variable("--soft") }, axisLabel: { color: variable("--soft"), formatter: (x) => (x >= 0 && x < data.heads ? String(x) : "") }, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: false } },
    yAxis: { type: "value", min: -1.5, max: data.layers + 0.5, interval: 0.5, axisLabel: { color: variable("--soft"), formatter: (y) => (Number.isInteger(y) && y >= 0 && y < data.layers ? `layer ${y}` : "") }, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: false } },
    series: [{
      type: "graph", coordinateSystem: "cartesian2d", layout: "none", symbolSize: names.length > 60 ? 12 : 26,
      edgeSymbol: ["none", "arrow"], edgeSymbolSize: edges.length > 400 ? 3 : 7, emphasis: { focus: "adjacency", lineStyle: { opacity: 1 } },
      label: { show: names.length <= 60, fontSize: 10, position: "inside", formatter: (p) => p.data.short },
      data: names.map((name) => ({ name, value: graphPlace(name, data), short: name.replace(/^L\d+\./, ""), ...style(name), ...(name.startsWith("L") ? {} : { symbol: "roundRect", symbolSize: [52, 22], label: { show: true, color: variable("--ink") } }) })),
      links: edges.map((e) => ({ source: e.source, target: e.target, said: e.said, lineStyle: { color: e.colour, width: 0.7 + 4 * Math.sqrt(Math.abs(e.score) / most), opacity: edges.length > 150 ? 0.4 : 0.75, curveness: e.curve ?? 0.12, type: e.score > 0 && e.helps === false ? "dashed" : "solid" } })),
    }],
  };
}

function openNode(model) {
  return (event) => event.dataType === "node" && /^L\d+\.H\d+$/.test(event.name) && go(model, "head", headPlace(event.name).join("."));
}

function graphParts(model, data, task, details) {
  if (!details.edges.length) return [el("p", {}, "The circuit of edges is empty.")];
  const all = details.edges.map(([from, to, kind, score]) => ({ source: from, target: nodeOf(to), kind, score, helps: score < 0, colour: KIND_COLOURS[kind] || "#7f7f7f", curve: { q: 0.08, k: 0.16, v: 0.24 }[kind] ?? 0.12, said: `${from} → ${to}: ${score < 0 ? "helps" : "hurts"}, ${fixed(Math.abs(score), 3)}` }));
  const state = { count: Math.min(all.length, 200) };
  const inside = new Set(data.tasks[task].circuit.nodes);
  const box = el("div"), said = el("output", {}, "");
  const draw = () => {
    const edges = all.slice(0, state.count);
    const names = [...new Set([...edges.flatMap((e) => [e.source, e.target]), ...inside])];
    said.textContent = `${edges.length} of ${all.length}`;
    box.replaceChildren(chart(() => graphOption(data, names, edges, (name) => ({
      itemStyle: { color: inside.has(name) ? WORDS_COLOUR : variable("--panel"), borderColor: variable("--soft"), borderWidth: 1 },
      label: { color: inside.has(name) ? "#ffffff" : variable("--ink") },
      said: `${name}${inside.has(name) ? ", in the circuit of heads and MLPs" : ""}${details.drop[name] ? `; ${fixed(details.drop[name][0], 0)} % lost without it` : ""}`,
    })), { height: graphHeight(data), label: `graph of the ${edges.length} strongest edges of the circuit of ${task}; the table below lists them`, click: openNode(model), renderer: all.length > 300 ? "canvas" : "svg" }));
  };
  draw();
  const slider = all.length > 20 ? el("label", {}, "strongest edges ", el("input", { type: "range", min: 1, max: all.length, value: state.count, oninput: (event) => ((state.count = Number(event.target.value)), (said.textContent = `${state.count} of ${all.length}`)), onchange: draw }), " ", said) : null;
  return [
    el("p", { class: "note" }, "An arrow goes from what writes to what reads. Colours: which input it enters. Width: how much the score changes when the edge alone carries its corrupted value; dashed edges hurt. Blue nodes are also in the circuit of heads and MLPs. Click a head to open it."),
    el("div", { class: "legend" }, Object.entries({ q: "query", k: "key", v: "value", mlp: "MLP", logits: "output" }).map(([kind, words]) => el("span", { class: "entry" }, el("i", { class: "swatch", style: { background: KIND_COLOURS[kind] } }), words)), slider),
    box,
    fold("edges as a table", table([
      { name: "from", key: (e) => e[0], cell: (e) => (/^L\d+\.H/.test(e[0]) ? headLink(model, e[0]) : e[0]) },
      { name: "to", key: (e) => e[1], cell: (e) => (/^L\d+\.H/.test(e[1]) ? headLink(model, nodeOf(e[1]), e[1]) : e[1]) },
      { name: "change of the score", key: (e) => Math.abs(e[3]), down: true, cell: (e) => fixed(e[3], 3), title: "when the edge alone carries its corrupted value; an edge that helps is below zero" },
    ], details.edges, { caption: "edges of the circuit", limit: 60 })),
  ];
}

const graphHeight = (data) => Math.min(1100, 150 + 75 * (data.layers + 1));

// --- faithfulness ----------------------------------------------------------------------------------------------------

function curvePart(own, details) {
  const rows = details.curve.filter(([procedure, split]) => split === "held_out");
  const procedures = [...new Set(rows.map(([procedure]) => procedure))];
  const control = details.random.layer || details.random.size || [];
  const colours = [WORDS_COLOUR, "#009e73", "#cc79a7"];
  const size = own.circuit.nodes.length;
  const lines = procedures.flatMap((procedure, i) => {
    const mine = rows.filter(([p]) => p === procedure).sort((a, b) => a[2] - b[2]);
    const name = procedure.replaceAll("_", " ");
    return [
      { name, type: "line", data: mine.map((r) => [r[2], r[3], r[4], r[5]]), symbolSize: 4, lineStyle: { color: colours[i], width: 2 }, itemStyle: { color: colours[i] }, encode: { x: 0, y: 1 } },
      { name, type: "custom", silent: true, clip: true, encode: { x: 0, y: [1, 2] }, itemStyle: { color: colours[i] }, data: mine.map((r) => [r[2], r[4], r[5]]), renderItem: (_, api) => ({ type: "line", shape: { x1: api.coord([api.value(0), api.value(1)])[0], y1: api.coord([api.value(0), api.value(1)])[1], x2: api.coord([api.value(0), api.value(2)])[0], y2: api.coord([api.value(0), api.value(2)])[1] }, style: { stroke: colours[i], lineWidth: 1, opacity: 0.5 } }) },
    ];
  });
  const random = control.length ? [{ name: "random circuits of the same size", type: "scatter", symbol: "diamond", symbolSize: 7, itemStyle: { color: CONTROL_COLOUR, opacity: 0.6 }, data: control.map((x) => [size, x]) }] : [];
  return el("div", {},
    el("p", { class: "note" }, "Score on held-out prompts, in percent of the whole model's, as parts are removed one after the other (from right to left), each with its interval. Diamonds: random circuits with as many heads in each layer as the circuit that was found."),
    chart((drawn) => ({
      grid: { left: 60, right: 20, top: drawn.getWidth() < 600 ? 76 : 46, bottom: 50 }, legend: { top: 0, itemGap: 22, data: [...procedures.map((p) => p.replaceAll("_", " ")), ...random.map((r) => r.name)], textStyle: { color: variable("--ink") } },
      tooltip: { ...common().tooltip, formatter: (p) => `${p.seriesName}\n${p.value[0]} heads and MLPs: ${p.value.length > 2 ? interval(p.value.slice(1), 0, " %") : `${fixed(p.value[1], 0)} %`}` },
      xAxis: axis("heads and MLPs that are kept"), yAxis: axis("% of the score", { nameGap: 40 }), series: [...lines, ...random],
    }), { label: "faithfulness of circuits by size, with random circuits" }));
}

function dropTable(model, own, details) {
  const inside = new Set(own.circuit.nodes);
  const rows = Object.entries(details.drop).map(([head, entry]) => ({ head, entry }));
  return table([
    { name: "part", key: (r) => r.head, cell: (r) => (r.head.includes(".H") ? headLink(model, r.head) : r.head) },
    { name: "score lost without it", key: (r) => r.entry[0], down: true, cell: (r) => interval(r.entry, 1, " %") },
    { name: "p, adjusted", key: (r) => r.entry[3], cell: (r) => chance(r.entry[3]) },
    { name: "in the circuit", key: (r) => String(inside.has(r.head)), cell: (r) => (inside.has(r.head) ? "yes" : "") },
    { name: "kept in half-samples", key: (r) => details.stability[r.head], down: true, cell: (r) => percent(details.stability[r.head]), title: "share of halves of the prompts in whose circuit it is" },
    { name: "measured roles", cell: (r) => own.heads[r.head]?.roles || "" },
  ], rows, { caption: "heads and MLPs removed alone", sort: 1, down: true, limit: 25 });
}

// --- overlay ---------------------------------------------------------------------------------------------------------

function overlayParts(model, data) {
  const tasks = Object.keys(data.tasks), colours = new Map(tasks.map((task, i) => [task, CLASS_COLOURS[i % CLASS_COLOURS.length]]));
  const on = new Set(tasks), box = el("div");
  const draw = () => {
    const holders = new Map();
    for (const task of tasks) if (on.has(task)) for (const name of data.tasks[task].circuit.nodes) holders.set(name, [...(holders.get(name) || []), task]);
    const rows = [];
    for (let layer = data.layers - 1; layer >= 0; layer--) {
      const own = [...holders].filter(([name]) => name.startsWith(`L${layer}.`)).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
      rows.push(el("div", { class: "lane" }, el("span", { class: "layer" }, `layer ${layer}`), own.map(([name, list]) => el(name.includes(".H") ? "a" : "span", { class: "part", href: name.includes(".H") ? headAddress(model, name) : null, title: `${name}: ${list.join(", ")}` }, name, el("span", { class: "dots" }, list.map((task) => el("i", { class: "swatch", style: { background: colours.get(task) } })))))));
    }
    box.replaceChildren(...rows);
  };
  draw();
  const toggle = (task) => el("button", { type: "button", class: "entry", "aria-pressed": "true", onclick: (event) => {
    on.has(task) ? on.delete(task) : on.add(task);
    event.currentTarget.setAttribute("aria-pressed", String(on.has(task)));
    draw();
  } }, el("i", { class: "swatch", style: { background: colours.get(task) } }), task);
  return [el("p", { class: "note" }, "Heads and MLPs in the circuit of each task; those with several dots are shared. Click a task to hide it."), el("div", { class: "legend", role: "group", "aria-label": "tasks that are shown" }, tasks.map(toggle)), box];
}
