"use strict";
const data = JSON.parse(document.getElementById("graph-data").textContent);
const $ = (id) => document.getElementById(id);
const state = { share: data.share, edges: Math.min(data.links.length, 400), kinds: new Set(data.kinds.map((k) => k.name)),
  clicked: null, pinned: new Set(), groups: structuredClone(data.supernodes), grouped: false };
const nodes = data.nodes;
const byKind = new Map(data.kinds.map((kind) => [kind.name, kind]));
const chart = echarts.init($("chart"), null, { renderer: "canvas" });

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;  // never innerHTML: tokens may hold anything
  made.append(...children);
  return made;
}
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) => (value === null ? "–" : Number(value).toPrecision(3).replace("-", "−"));

// What is shown: groups of nodes, each a node of its own unless supernodes are drawn as one.
function units() {
  const kept = nodes.map((node, i) => i).filter((i) => visible(nodes[i], i));
  const home = new Map(kept.map((i) => [i, i]));
  const shown = kept.map((i) => ({ key: i, members: [i], name: nodes[i].label }));
  if (!state.grouped) return { shown, home };
  const result = [], taken = new Set();
  Object.entries(state.groups).forEach(([name, members], g) => {
    const inside = members.filter((i) => home.has(i));
    if (!inside.length) return;
    inside.forEach((i) => { home.set(i, `g${g}`); taken.add(i); });
    result.push({ key: `g${g}`, members: inside, name, group: name });
  });
  return { shown: result.concat(shown.filter((unit) => !taken.has(unit.key))), home };
}
function visible(node, i) {
  if (state.pinned.has(i) || i === state.clicked) return true;
  if (!state.kinds.has(node.kind)) return false;
  return node.fixed || node.share <= state.share + 1e-12;
}

// Positions: a column for each token (biases left of them), a row for each layer, nodes of a cell side by side.
function place(shown) {
  const cells = new Map();
  shown.forEach((unit) => {
    const node = nodes[unit.members[0]];
    unit.row = mean(unit.members.map((i) => nodes[i].row));
    unit.column = mean(unit.members.map((i) => nodes[i].column));
    unit.size = Math.max(...unit.members.map((i) => nodes[i].size));
    unit.kind = node.kind;
    const cell = `${unit.row}|${unit.column}`;
    if (!cells.has(cell)) cells.set(cell, []);
    cells.get(cell).push(unit);
  });
  const last = data.tokens.length - 1;
  shown.filter((unit) => unit.kind === "logit").forEach((unit, i) => Object.assign(unit, { x: Math.max(last - i, -1), y: data.layers }));
  for (const cell of cells.values()) {
    if (cell[0].kind === "logit") continue;
    cell.sort((a, b) => b.size - a.size || String(a.key).localeCompare(String(b.key)));
    const across = Math.max(1, Math.ceil(Math.sqrt(cell.length)));
    cell.forEach((unit, i) => {
      const line = Math.floor(i / across), inLine = Math.min(across, cell.length - line * across);
      unit.x = unit.column + (((i % across) + 0.5) / inLine - 0.5) * 0.84;
      unit.y = unit.row + (across > 1 ? (line / across) * 0.7 - 0.3 : 0);
    });
  }
}
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function joined(home) {
  const sums = new Map();
  for (const [source, target, weight] of data.links) {
    const from = home.get(source), to = home.get(target);
    if (from === undefined || to === undefined || from === to) continue;
    const key = `${from}>${to}`;
    const found = sums.get(key) || { source: from, target: to, weight: 0 };
    found.weight += weight;
    sums.set(key, found);
  }
  const links = [...sums.values()].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  return links;
}

function option() {
  const { shown, home } = units();
  place(shown);
  const all = joined(home), largest = all.length ? Math.abs(all[0].weight) : 1;
  const clicked = state.clicked === null ? null : home.get(state.clicked);
  const links = clicked === null || clicked === undefined ? all.slice(0, state.edges)
    : all.filter((link) => link.source === clicked || link.target === clicked);
  const near = new Set(clicked === null ? [] : links.flatMap((link) => [link.source, link.target]));
  $("count").textContent = `${shown.length} of ${nodes.length} nodes, ${links.length} of ${all.length} edges`;
  return {
    animation: false, backgroundColor: "transparent",
    grid: { left: 60, right: 16, top: 12, bottom: 64 },
    tooltip: { confine: true, formatter: (item) => hover(item), borderWidth: 1, enterable: false },
    xAxis: axis({ min: -1.5, max: data.tokens.length - 0.5, 
      formatter: (v) => (v === -1 ? "biases" : data.tokens[v] ?? ""), rotate: data.tokens.length > 12 ? 40 : 0 }),
    yAxis: axis({ min: -1.5, max: data.layers + 0.5, 
      formatter: (v) => (v === -1 ? "embed" : v === data.layers ? "logits" : String(v)) }),
    dataZoom: [{ type: "inside", xAxisIndex: 0, filterMode: "none" },
      { type: "inside", yAxisIndex: 0, filterMode: "none" }],
    series: [{
      type: "graph", coordinateSystem: "cartesian2d", edgeSymbol: ["none", "arrow"], edgeSymbolSize: 5, z: 3,
      data: shown.map((unit) => item(unit, near, clicked)),
      links: links.map((link) => ({
        source: `n${link.source}`, target: `n${link.target}`, value: link.weight,
        lineStyle: { color: colour(link.weight < 0 ? "--minus" : "--plus"), curveness: 0.06,
          width: 0.6 + 4 * Math.abs(link.weight) / largest,
          opacity: clicked === null || clicked === undefined ? 0.18 + 0.5 * Math.abs(link.weight) / largest : 0.75 },
      })),
    }],
  };
}
function item(unit, near, clicked) {
  const kind = byKind.get(unit.kind), picked = unit.members.some((i) => state.pinned.has(i));
  return {
    id: `n${unit.key}`, name: `n${unit.key}`, value: [unit.x, unit.y], key: unit.key, members: unit.members,
    symbol: unit.group ? "roundRect" : kind.symbol, symbolSize: (unit.group ? 12 : 6) + 12 * unit.size,
    itemStyle: { color: colour(kind.colour), opacity: clicked === null || near.has(unit.key) || unit.key === clicked ? 1 : 0.35,
      borderColor: colour("--ink"), borderWidth: picked ? 2.5 : unit.key === clicked ? 2 : 0.4 },
    label: { show: Boolean(unit.group) || unit.kind === "logit", position: "top", color: colour("--ink"), fontSize: 11,
      formatter: () => (unit.group ? unit.name : nodes[unit.members[0]].short).slice(0, unit.group ? 28 : 13) },
  };
}
function axis({ min, max, formatter, rotate }) {
  return { type: "value", min, max, interval: 1, axisLine: { show: false }, axisTick: { show: false },
    splitLine: { lineStyle: { color: colour("--line") } },
    axisLabel: { color: colour("--soft"), rotate: rotate || 0, hideOverlap: false, customValues: range(min + 0.5, max - 0.5),
      formatter: (v) => String(formatter(v)).slice(0, 16) } };
}
const range = (from, to) => Array.from({ length: Math.round(to - from) + 1 }, (_, i) => from + i);

function hover(item) {
  if (item.dataType === "edge") return element("span", `effect ${short(item.data.value)}`);
  const members = item.data.members;
  if (members.length > 1) return element("span", `${members.length} nodes: ${members.map((i) => nodes[i].label).slice(0, 6).join(", ")}`);
  const box = element("div", null), node = nodes[members[0]];
  box.style.maxWidth = "26rem";
  box.style.whiteSpace = "normal";
  box.append(element("b", node.label), element("div", facts(node)));
  const more = data.details[node.id];
  if (more) box.append(...detail(more, 2));
  return box;
}
function facts(node) {
  const parts = [byKind.get(node.kind).title];
  if (node.value !== null) parts.push(`${node.kind === "logit" ? "p" : "activation"} ${short(node.value)}`);
  if (node.share !== null) parts.push(`within the first ${Math.round(100 * node.share)} % of influence`);
  return parts.join(" · ");
}
function detail(more, most) {
  const made = [];
  if (more.note) made.push(element("p", more.note));
  for (const [title, list] of [["promotes", more.up], ["suppresses", more.down]]) {
    if (!list || !list.length) continue;
    const line = element("p", `${title} `);
    list.slice(0, 2 * most + 2).forEach(([text, value]) => line.append(Object.assign(element("code", text), { title: short(value) }), " "));
    made.push(line);
  }
  (more.examples || []).slice(0, most).forEach((example) => {
    const line = element("div", null);
    line.className = "example";
    const top = Math.max(...example.values, 1e-9);
    example.tokens.forEach((text, i) => {
      const token = element("span", text);
      if (example.values[i] > 0) token.style.background = `rgba(230, 159, 0, ${0.15 + 0.6 * example.values[i] / top})`;
      line.append(token);
    });
    made.push(line);
  });
  return made;
}

function panel() {
  const box = $("panel");
  box.replaceChildren();
  if (state.clicked === null) {
    box.append(element("p", "Click a node for its inputs, outputs and examples. Drag to move, wheel to zoom."));
  } else {
    const node = nodes[state.clicked], pinned = state.pinned.has(state.clicked);
    const pin = button(pinned ? "Unpin" : "Pin", () => { pinned ? state.pinned.delete(state.clicked) : state.pinned.add(state.clicked); draw(); });
    pin.setAttribute("aria-pressed", String(pinned));
    box.append(element("h2", node.label), element("p", facts(node)), pin, button("Close", () => choose(null)));
    if (data.details[node.id]) box.append(...detail(data.details[node.id], 5));
    box.append(...neighbours("Inputs", 1, 0), ...neighbours("Outputs", 0, 1));
  }
  box.append(element("h3", "Pinned"));
  if (!state.pinned.size) box.append(element("p", "none"));
  state.pinned.forEach((i) => box.append(element("div", null, button(nodes[i].label, () => choose(i)))));
  box.append(element("h3", "Supernodes"));
  Object.entries(state.groups).forEach(([name, members]) => {
    const line = element("div", `${name} (${members.length}) `);
    line.append(button("Dissolve", () => { delete state.groups[name]; draw(); }));
    box.append(line);
  });
  const name = element("input", null);
  name.placeholder = "name of a supernode";
  name.setAttribute("aria-label", "name of a new supernode");
  box.append(name, button("Group the pinned", () => {
    if (!state.pinned.size || !name.value) return;
    for (const group of Object.keys(state.groups)) {
      state.groups[group] = state.groups[group].filter((i) => !state.pinned.has(i));
      if (!state.groups[group].length) delete state.groups[group];
    }
    state.groups[name.value] = [...state.pinned];
    state.grouped = true;
    $("grouped").checked = true;
    draw();
  }));
}
function neighbours(title, mine, other) {
  const found = data.links.filter((link) => link[mine] === state.clicked).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
  if (!found.length) return [];
  const list = element("ol", null);
  found.slice(0, 12).forEach((link) => list.append(element("li", `${short(link[2])} `, button(nodes[link[other]].label, () => choose(link[other])))));
  return [element("h3", `${title} (${found.length})`), list];
}
function button(text, action) {
  const made = element("button", text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}
function choose(i) { state.clicked = i; draw(); }
function draw() { chart.setOption(option(), { notMerge: true }); panel(); }

function download(name, url) {
  const link = element("a", "");
  link.href = url;
  link.download = name;
  link.click();
}
const file = (name, text, type) => download(name, URL.createObjectURL(new Blob([text], { type })));
$("png").addEventListener("click", () => download(`${data.slug}.png`, chart.getDataURL({ type: "png", pixelRatio: 2, backgroundColor: colour("--paper") })));
$("svg").addEventListener("click", () => file(`${data.slug}.svg`, svgText(), "image/svg+xml"));
function svgText() {
  const drawn = echarts.init(null, null, { renderer: "svg", ssr: true, width: chart.getWidth(), height: chart.getHeight() });
  drawn.setOption({ ...option(), backgroundColor: colour("--paper") });
  const text = drawn.renderToSVGString();
  drawn.dispose();
  return text;
}
$("save").addEventListener("click", () => file(`${data.slug}.view.json`, JSON.stringify({
  pinnedIds: [...state.pinned].map((i) => nodes[i].id),
  supernodes: Object.entries(state.groups).map(([name, members]) => [name, ...members.map((i) => nodes[i].id)]),
}), "application/json"));
$("load").addEventListener("change", async (event) => {
  try {
    const view = JSON.parse(await event.target.files[0].text()), at = new Map(nodes.map((node, i) => [node.id, i]));
    const known = (ids) => ids.map((id) => at.get(id)).filter((i) => i !== undefined);
    state.pinned = new Set(known(view.pinnedIds));
    state.groups = Object.fromEntries(view.supernodes.map(([name, ...ids]) => [name, known(ids)]));
    draw();
  } catch (error) { $("count").textContent = `That file is no saved view (${error.message}).`; }
});
$("share").value = state.share;
$("share").addEventListener("input", (event) => { state.share = Number(event.target.value); $("share-value").textContent = short(state.share); draw(); });
$("share-value").textContent = short(state.share);
Object.assign($("edges"), { max: Math.max(1, data.links.length), value: state.edges });
$("edges").addEventListener("input", (event) => { state.edges = Number(event.target.value); $("edges-value").textContent = event.target.value; draw(); });
$("edges-value").textContent = state.edges;
$("grouped").addEventListener("change", (event) => { state.grouped = event.target.checked; draw(); });
data.kinds.forEach((kind) => {
  const box = element("input", null), label = element("label", null, box, ` ${kind.title}`), mark = element("span", "");
  box.type = "checkbox";
  box.checked = true;
  mark.className = "mark";
  mark.style.background = `var(${kind.colour})`;
  label.append(mark);
  box.addEventListener("change", () => { box.checked ? state.kinds.add(kind.name) : state.kinds.delete(kind.name); draw(); });
  $("kinds").append(label);
});
$("find").addEventListener("change", (event) => {
  const i = nodes.findIndex((node) => node.label === event.target.value);
  if (i >= 0) choose(i);
});
nodes.forEach((node) => $("names").append(Object.assign(element("option", ""), { value: node.label })));
chart.on("click", (item) => { if (item.dataType === "node") choose(item.data.members[0]); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });
window.addEventListener("resize", () => chart.resize());
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
window.viewer = { state, svgText, draw, choose };
draw();
