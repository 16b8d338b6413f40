// Tables, charts and small parts that several pages share.

// Columns: {name, key (of a row, for sorting), cell (row -> child), wide, title}. Clicking a head sorts.
function table(columns, rows, { caption, sort = null, down = false, limit = 200 } = {}) {
  const body = el("tbody");
  const more = el("button", { type: "button", class: "more" });
  let order = { column: sort, down }, count = limit;
  const heads = columns.map((column, i) => {
    const head = el("th", { scope: "col", class: column.wide ? "wide" : null, title: column.title });
    if (!column.key) head.append(column.name);
    else head.append(el("button", { type: "button", onclick: () => ((order = { column: i, down: order.column === i ? !order.down : !!column.down }), fill()) }, column.name));
    return head;
  });
  const compare = (a, b) => {
    const [x, y] = [a, b].map(columns[order.column].key);
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const sign = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return order.down ? -sign : sign;
  };
  function fill() {
    heads.forEach((head, i) => (order.column === i ? head.setAttribute("aria-sort", order.down ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    const sorted = order.column === null ? rows : [...rows].sort(compare);
    body.replaceChildren(...sorted.slice(0, count).map((row) => el("tr", { "data-row": row.head || row.unit || null }, columns.map((c) => el("td", { class: c.wide ? "wide" : null }, c.cell(row))))));
    more.hidden = count >= sorted.length;
    more.textContent = `show ${Math.min(limit, sorted.length - count)} more of ${sorted.length}`;
  }
  more.addEventListener("click", () => ((count += limit), fill()));
  fill();
  return el("div", {}, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "table" }, el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, el("tr", {}, heads)), body)), more);
}

const badge = (words, colour = null, title = null) =>
  el("span", { class: "badge", title, style: colour ? { background: colour, color: inkOn(colour), "border-color": colour } : {} }, words);

const fold = (summary, ...children) => el("details", {}, el("summary", {}, summary), ...children);

function choice(label, options, value, change) {
  const groups = new Map();
  for (const option of options) groups.set(option.group || "", [...(groups.get(option.group || "") || []), option]);
  const list = [...groups].map(([group, own]) => {
    const items = own.map((o) => el("option", { value: o.id, selected: o.id === value }, o.label));
    return group ? el("optgroup", { label: group }, items) : items;
  });
  return el("label", { class: "choice" }, el("span", {}, label), el("select", { onchange: (event) => change(event.target.value) }, list));
}

// The choosers of source and explainer, where there is something to choose.
function wordChoices(data, again) {
  const { source, explainer } = wordsOf(data);
  const options = (list) => list.map((id) => ({ id, label: id }));
  return [
    data.sources.length > 1 && choice("text", options(data.sources), source, (value) => ((chosen.source = value), keep({ source: value }), again())),
    data.explainers.length > 1 && choice("explainer", options(data.explainers), explainer, (value) => ((chosen.explainer = value), keep({ explainer: value }), again())),
  ];
}

// Values as bars with their intervals on one scale; rows of {label, entry, colour, href, note}.
function bars(rows, { from = null, to = null, digits = 2, unit = "" } = {}) {
  const ends = rows.flatMap((row) => row.entry.slice(0, 3)).filter((x) => !missing(x));
  const low = Math.min(from ?? 0, ...ends), high = Math.max(to ?? 0, ...ends), span = high - low || 1;
  const place = (x) => `${(100 * (x - low)) / span}%`;
  return el("div", { class: "bars" }, rows.map((row) => {
    const [value, a, b] = row.entry;
    const start = Math.min(value, 0), size = Math.abs(value);
    return el("div", { class: "bar" },
      el("span", { class: "bar-label" }, row.href ? link(row.href, row.label) : row.label),
      el("span", { class: "bar-track" },
        !missing(value) && el("i", { class: "bar-fill", style: { left: place(start), width: `${(100 * size) / span}%`, background: row.colour || WORDS_COLOUR } }),
        !missing(a) && el("i", { class: "bar-line", style: { left: place(a), width: `${(100 * (b - a)) / span}%` } }),
        el("i", { class: "bar-zero", style: { left: place(0) } })),
      el("span", { class: "bar-value" }, interval(row.entry, digits, unit), row.note ? el("small", {}, ` ${row.note}`) : null));
  }));
}

// --- charts (Apache ECharts, loaded when the first chart is drawn) ---------------------------------------------------

const charts = new Set();
let library = null;

// An element that becomes a chart; ``option`` is a function, as colours change with light and dark.
function chart(option, { height = 320, label = "chart", click = null, renderer = "svg" } = {}) {
  const box = el("div", { class: "chart", role: "img", "aria-label": label, style: { height: `${height}px` } });
  library = library || script("echarts/echarts.min.js");
  library.then(() => requestAnimationFrame(() => {
    if (!box.isConnected) return;
    const drawn = window.echarts.init(box, null, { renderer });
    const entry = { box, drawn, draw: () => drawn.setOption({ ...common(), ...option(drawn) }, true) };
    entry.draw();
    if (click) drawn.on("click", click);
    charts.add(entry);
    new ResizeObserver(() => box.isConnected && drawn.resize()).observe(box);
    box.dataset.drawn = "yes";
  }), (error) => box.append(error.message));
  return box;
}

function common() {
  return {
    animation: false,
    textStyle: { color: variable("--ink"), fontFamily: getComputedStyle(document.body).fontFamily },
    // Plain text: a tooltip of markup would take tokens for elements.
    tooltip: { renderMode: "richText", confine: true, backgroundColor: variable("--panel"), borderColor: variable("--line"), textStyle: { color: variable("--ink") } },
  };
}

const axis = (name, more = {}) => ({
  name, nameLocation: "middle", nameGap: 30, nameTextStyle: { color: variable("--ink") },
  axisLabel: { color: variable("--soft") }, axisLine: { lineStyle: { color: variable("--soft") } }, splitLine: { lineStyle: { color: variable("--line") } }, ...more,
});

function dropCharts() {
  for (const entry of charts) if (!entry.box.isConnected) entry.drawn.dispose(), charts.delete(entry);
}

const redrawCharts = () => charts.forEach((entry) => entry.draw());
