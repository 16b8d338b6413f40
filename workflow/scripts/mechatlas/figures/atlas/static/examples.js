// Text with attention drawn over it: from the query to each key that it attends to.

const SVG = "http://www.w3.org/2000/svg";

// A token; the space before a word stays outside of its mark.
function tokenNode(text, attributes) {
  const bare = text.replace(/^ +/, "") || text;
  const space = text.slice(0, text.length - bare.length);
  return attributes ? [space, el("span", attributes, bare)] : [text];
}

function headExample(example) {
  const keys = new Map(example.keys), marks = new Map(), parts = [];
  let end = 0;
  for (const [start, tokens] of example.pieces) {
    if (start > end) parts.push(el("span", { class: "gap" }, " … "));
    tokens.forEach((text, i) => {
      const at = start + i, weight = keys.get(at), isQuery = at === example.query;
      if (weight === undefined && !isQuery) return parts.push(text);
      const note = [isQuery && "the query: the token that looks", weight !== undefined && `attention ${fixed(weight)}`].filter(Boolean).join("; ");
      const [space, node] = tokenNode(text, { class: `${isQuery ? "query " : ""}${weight !== undefined ? "key" : ""}`, title: note, style: weight !== undefined ? { "--a": String(weight) } : {} });
      marks.set(at, node);
      parts.push(space, node);
    });
    end = start + tokens.length;
  }
  if (end < example.length) parts.push(el("span", { class: "gap" }, " …"));
  const text = el("p", { class: "text" }, parts);
  const lines = document.createElementNS(SVG, "svg");
  lines.setAttribute("class", "arcs");
  lines.setAttribute("aria-hidden", "true");
  const box = el("div", { class: "example" }, text, lines, el("small", {}, `document ${example.doc} (${example.split})`));
  const draw = () => drawArcs(box, lines, marks.get(example.query), example, marks);
  new ResizeObserver(draw).observe(box);
  return box;
}

function drawArcs(box, lines, query, example, marks) {
  const frame = box.getBoundingClientRect();
  lines.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
  const top = (node) => {
    const own = node.getClientRects()[0] || node.getBoundingClientRect();
    return [own.left + own.width / 2 - frame.left, own.top - frame.top + 2];
  };
  const [x, y] = top(query);
  lines.replaceChildren(...example.keys.filter(([at]) => at !== example.query).map(([at, weight]) => {
    const [kx, ky] = top(marks.get(at));
    const lift = Math.min(26, 10 + Math.abs(kx - x) / 12);
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", `M${x},${y} C${x},${y - lift} ${kx},${ky - lift} ${kx},${ky}`);
    path.setAttribute("stroke-width", String(0.8 + 2.6 * weight));
    path.setAttribute("opacity", String(0.25 + 0.7 * weight));
    return path;
  }));
}

const headLegend = () =>
  el("p", { class: "note" }, "The ", el("span", { class: "query" }, "framed"), " token looks back at ", el("span", { class: "key", style: { "--a": "0.25" } }, "shaded"), " and ", el("span", { class: "key", style: { "--a": "1" } }, "darkly shaded"), " tokens; lines are as thick as its attention. BOS is the mark before the first token.");

function latentExample(example, most) {
  const parts = example.tokens.flatMap((text, i) => {
    const share = Math.min(1, (example.values[i] || 0) / (most || 1)), isEvent = i === example.at;
    if (share <= 0 && !isEvent) return [text];
    return tokenNode(text, { class: `${isEvent ? "query " : ""}${share > 0 ? "key" : ""}`, title: `activation ${fixed(example.values[i])}`, style: { "--a": String(share) } });
  });
  return el("div", { class: "example" },
    el("p", { class: "text" }, example.cut[0] ? el("span", { class: "gap" }, "… ") : null, parts, example.cut[1] ? el("span", { class: "gap" }, " …") : null),
    el("small", {}, `${example.what}: activation ${fixed(example.values[example.at])}; document ${example.doc} (${example.split})`));
}
