// The map of a model: a cell for each head, coloured by anything that is known; brushing, sorting, a list of what is chosen.

pages.map = async ([model], settings) => {
  const data = await core(model);
  const names = headNames(data);
  const state = { by: settings.by || "class", sort: settings.sort || "place", low: null, high: null, off: new Set(), brushed: new Set((settings.heads || "").split(",").filter((n) => names.includes(n))) };
  const box = el("div", { id: "map-box" });
  const draw = () => box.replaceChildren(...mapParts(model, data, names, state, draw));
  draw();
  return { title: model, nodes: [el("h1", {}, `What the heads of ${model} do`), box] };
};

// Numbers that say how far the words can be trusted, and what there is besides.
function lead(model, data) {
  const { source, explainer, found } = wordsOf(data);
  const words = [...found.values()], beat = words.filter((w) => w.beats !== null);
  const ious = words.map((w) => w.iou[0]).filter((x) => !missing(x)).sort((a, b) => a - b);
  const test = data.agreement.find((a) => a.source === source && a.explainer === explainer);
  const flags = flagsOf(data, source, explainer).size;
  const circuits = Object.entries(data.tasks).map(([task, t]) => el("li", {}, link(address([model, "circuit", task]), task), `: ${t.circuit.nodes.filter((n) => n.includes(".H")).length} of ${data.layers * data.heads} heads and ${t.circuit.nodes.filter((n) => n.includes("mlp")).length} of ${data.layers} MLPs keep ${interval(t.circuit.held_out, 0, " %")} of the score on held-out prompts`));
  return el("section", { class: "lead" },
    el("div", { class: "cards" },
      card(fixed(ious[Math.floor(ious.length / 2)]), "median IoU", "overlap of predicted and true attention, on text that was not used to explain"),
      card(beat.length ? `${beat.filter((w) => w.beats).length} of ${beat.length}` : "–", "explanations beat every control", "explanations that should fail: another head's, a shuffled one, the mean pattern"),
      test?.kappa ? card(interval([test.kappa.value, test.kappa.low, test.kappa.high]), "agreement of words and measurements", `Cohen's kappa; ${fixed(test.kappa.permuted)} with explanations swapped within layers`) : null,
      card(link(address([model, "agreement"]), String(flags)), flags === 1 ? "head where words and causes disagree" : "heads where words and causes disagree", "what to look at next")),
    circuits.length ? el("div", {}, el("h2", {}, "Circuits: what carries a task"), el("ul", { class: "plain" }, circuits)) : null);
}

const card = (value, name, note) => el("div", { class: "card" }, el("b", {}, value), el("span", {}, name), el("small", {}, note));

function mapParts(model, data, names, state, draw) {
  const measures = measuresOf(data);
  const measure = measures.find((m) => m.id === state.by) || measures[0];
  const colours = colouring(measure, names);
  const passes = (name) => {
    const value = measure.value(name);
    if (state.brushed.size && !state.brushed.has(name)) return false;
    if (measure.kind === "class") return !state.off.has(value);
    if (missing(value)) return state.low === null && state.high === null;
    return (state.low === null || value >= state.low) && (state.high === null || value <= state.high);
  };
  const grid = el("div", { id: "map", role: "grid", "aria-label": `heads of ${model}, coloured by: ${measure.label}` });
  const list = el("div", { id: "chosen" });
  const cells = fillGrid(grid, model, data, names, measure, colours, state);
  const filter = () => {
    for (const [name, cell] of cells) cell.classList.toggle("out", !passes(name));
    list.replaceChildren(...chosenList(model, data, names.filter(passes), measure, state, clear));
  };
  const clear = () => (Object.assign(state, { low: null, high: null, off: new Set(), brushed: new Set() }), keep({ heads: null }), draw());
  brush(grid, cells, (picked) => ((state.brushed = picked), keep({ heads: [...picked].join(",") }), filter()));
  filter();
  const sorts = [["place", "by place"], ["layer", "by value, within layers"], ["value", "by value, over all"]].map(([id, label]) => ({ id, label }));
  return [
    el("p", {}, `${data.layers} layers of ${data.heads} attention heads. Each head looks back from a token at earlier ones; its colour says at which, or whatever you choose.`),
    el("div", { class: "controls" },
      choice("colour", measures, measure.id, (value) => (Object.assign(state, { by: value, low: null, high: null, off: new Set() }), keep({ by: value }), draw())),
      choice("order", sorts, state.sort, (value) => ((state.sort = value), keep({ sort: value }), draw())),
      wordChoices(data, draw)),
    el("p", { class: "note" }, measure.help),
    legend(measure, colours, state, filter),
    el("div", { class: "scroll" }, grid),
    el("p", { class: "note" }, state.sort === "value" ? "From large to small. " : "Rows are layers, the first at the bottom; columns are heads. ", "Click a head to open it; drag over heads to list them below; arrow keys and Enter work too."),
    lead(model, data),
    list,
  ];
}

function fillGrid(grid, model, data, names, measure, colours, state) {
  const cells = new Map();
  const large = data.heads > 16 || data.layers * data.heads > 200;
  const cell = (name) => {
    const value = measure.value(name), colour = colours.colour(value) || null, said = shown(measure, value);
    const node = el("a", { class: "cell", role: "gridcell", href: headAddress(model, name), "data-head": name, tabindex: "-1", title: `${name}: ${said}${CLASS_WORDS[said] ? `; ${CLASS_WORDS[said]}` : ""}`, draggable: "false", style: colour ? { background: colour, color: inkOn(colour) } : {} },
      el("b", {}, name), large ? el("span", { class: "hidden" }, said) : el("span", {}, said));
    cells.set(name, node);
    return node;
  };
  const order = (list) => [...list].sort((a, b) => {
    const [x, y] = [a, b].map(measure.value);
    return missing(x) - missing(y) || (typeof x === "string" ? x.localeCompare(y) : y - x);
  });
  grid.style.setProperty("--columns", String(data.heads));
  grid.classList.toggle("small", large);
  grid.classList.toggle("kinds", measure.kind === "class");
  if (state.sort === "value") {
    const sorted = order(names);
    for (let i = 0; i < sorted.length; i += data.heads) grid.append(el("div", { role: "row", class: "row" }, sorted.slice(i, i + data.heads).map(cell)));
  } else {
    for (let layer = data.layers - 1; layer >= 0; layer--) {
      const own = names.filter((n) => headPlace(n)[0] === layer);
      grid.append(el("div", { role: "row", class: "row" }, el("span", { class: "layer", role: "rowheader" }, large ? null : el("span", {}, "layer "), String(layer)), (state.sort === "layer" ? order(own) : own).map(cell)));
    }
  }
  (cells.get("L0.H0") || [...cells.values()][0]).tabIndex = 0;
  return cells;
}

function legend(measure, colours, state, filter) {
  if (measure.kind === "class") {
    return el("div", { class: "legend", role: "group", "aria-label": "legend: click to hide or show" }, colours.order.map((value) =>
      el("button", { type: "button", class: "entry", title: CLASS_WORDS[value], "aria-pressed": String(!state.off.has(value)), onclick: (event) => {
        state.off.has(value) ? state.off.delete(value) : state.off.add(value);
        event.currentTarget.setAttribute("aria-pressed", String(!state.off.has(value)));
        filter();
      } }, el("i", { class: "swatch", style: { background: colours.colour(value) } }), `${value} (${colours.counts.get(value)})`)));
  }
  const { low, high } = colours, step = (high - low) / 200;
  const stops = Array.from({ length: 11 }, (_, i) => between(colours.colours, i / 10)).join(",");
  const said = el("output", {}, "all");
  const ends = ["low", "high"].map((end) => el("input", { type: "range", min: low, max: high, step, value: state[end] ?? (end === "low" ? low : high), "aria-label": `${end === "low" ? "lowest" : "highest"} value shown`, "data-end": end, oninput: (event) => {
    const value = Number(event.target.value);
    state[end] = (end === "low" ? value <= low + step / 2 : value >= high - step / 2) ? null : value;
    said.textContent = state.low === null && state.high === null ? "all" : `${shown(measure, state.low ?? low)} to ${shown(measure, state.high ?? high)}`;
    filter();
  } }));
  return el("div", { class: "legend scale", role: "group", "aria-label": "legend: drag the ends to filter" },
    el("span", {}, shown(measure, low)),
    el("span", { class: "ramp" }, el("i", { style: { background: `linear-gradient(90deg, ${stops})` } }), ends),
    el("span", {}, shown(measure, high)), el("small", {}, "shown: ", said));
}

// Dragging with a mouse or pen picks the cells of a rectangle; a finger scrolls.
function brush(grid, cells, done) {
  let start = null, moved = false, area = null;
  grid.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button) return;
    [start, moved] = [[event.clientX, event.clientY], false];
  });
  grid.addEventListener("dragstart", (event) => event.preventDefault());
  const move = (event) => {
    if (!grid.isConnected) return stop();
    if (!start || (!moved && Math.hypot(event.clientX - start[0], event.clientY - start[1]) < 6)) return;
    moved = true;
    area = area || grid.appendChild(el("i", { class: "brush" }));
    const frame = grid.getBoundingClientRect();
    const [left, right] = [start[0], event.clientX].sort((a, b) => a - b), [top, bottom] = [start[1], event.clientY].sort((a, b) => a - b);
    Object.assign(area.style, { left: `${left - frame.left}px`, top: `${top - frame.top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
    const picked = new Set();
    for (const [name, cell] of cells) {
      const own = cell.getBoundingClientRect();
      if (own.right > left && own.left < right && own.bottom > top && own.top < bottom) picked.add(name);
    }
    done(picked);
  };
  const stop = () => {
    start = null;
    area?.remove();
    area = null;
    if (!grid.isConnected) ["pointermove", "pointerup"].forEach((type, i) => window.removeEventListener(type, [move, stop][i]));
  };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", stop);
  grid.addEventListener("click", (event) => moved && (event.preventDefault(), (moved = false)), true);
}

function chosenList(model, data, names, measure, state, clear) {
  const { source, explainer, found } = wordsOf(data);
  const flags = flagsOf(data, source, explainer);
  const every = names.length === data.layers * data.heads;
  const rows = names.map((head) => ({ head, words: found.get(head), value: measure.value(head), worst: worstTask(data, head), flag: flags.get(head) }));
  return [
    el("h2", {}, every ? "All heads" : `${names.length} of ${data.layers * data.heads} heads`, !every && el("button", { type: "button", id: "clear", onclick: clear }, "show all")),
    table([
      { name: "head", key: (r) => r.head, cell: (r) => headLink(model, r.head) },
      { name: "in words", wide: true, cell: (r) => r.words?.text || "not explained" },
      measure.id === "class" ? null : { name: measure.label, key: (r) => r.value, down: true, cell: (r) => shown(measure, r.value) },
      measure.id === "iou" ? null : { name: "IoU", key: (r) => r.words?.iou[0], down: true, cell: (r) => interval(r.words?.iou) },
      Object.keys(data.tasks).length ? { name: "most needed by", key: (r) => Math.abs(r.worst?.[1]?.[0] ?? 0), down: true, title: "task that loses most without this head, in percent of its score", cell: (r) => (r.worst ? `${r.worst[0]}: ${fixed(r.worst[1][0], 0)} %` : "–") } : null,
      { name: "flag", wide: true, key: (r) => r.flag?.[0].kind ?? "", down: true, cell: (r) => (r.flag ? r.flag.map((f) => `${f.kind}: ${f.what}`).join("; ") : "") },
    ].filter(Boolean), rows, { caption: "heads that are shown in the map", limit: 40 }),
  ];
}

function worstTask(data, head) {
  const found = Object.entries(data.tasks).map(([task, t]) => [task, t.heads[head]?.drop]).filter(([, drop]) => drop && !missing(drop[0]));
  return found.sort((a, b) => Math.abs(b[1][0]) - Math.abs(a[1][0]))[0];
}
