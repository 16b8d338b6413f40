// Does what explanations say agree with what measurements show?

pages.agreement = async ([model]) => {
  const data = await core(model);
  const box = el("div");
  const draw = () => box.replaceChildren(...agreementParts(model, data, draw));
  draw();
  return { title: `${model}: words and causes`, nodes: [el("h1", {}, "Do words and causes agree?"), box] };
};

function agreementParts(model, data, draw) {
  const { source, explainer, found } = wordsOf(data);
  const test = data.agreement.find((a) => a.source === source && a.explainer === explainer);
  if (!test?.kappa) return [el("p", {}, "No task was measured for this model, so that there is nothing to compare words with.")];
  const rows = data.disagreements.filter((d) => d.source === source && d.explainer === explainer);
  return [
    el("div", { class: "controls" }, wordChoices(data, draw)),
    el("p", {}, `An explanation may name a behaviour: previous token, duplicate token or induction. Whether a head has it is measured on repeated random tokens, which no explanation has seen. ${test.heads} heads have an explanation.`),
    el("div", { class: "cards" },
      card(interval([test.kappa.value, test.kappa.low, test.kappa.high]), "Cohen's kappa", "1: words name a behaviour where it is measured and nowhere else; 0: as chance would have it"),
      card(fixed(test.kappa.permuted), "with explanations swapped within layers", `p ${chance(test.kappa.p)}: do words tell heads of a layer apart?`),
      card(fixed(test.kappa.permuted_anywhere), "with explanations swapped over all heads", `p ${chance(test.kappa.p_anywhere)}: do words tell anything?`)),
    el("h2", {}, "By behaviour"),
    table([
      { name: "behaviour", cell: ([key]) => BEHAVIOURS[key] },
      { name: "named", cell: ([, b]) => String(b.named), title: `heads whose words give it at least ${percent(data.thresholds.attention)} of their attention` },
      { name: "measured", cell: ([, b]) => String(b.shown), title: `heads with at least ${fixed(data.thresholds.attention, 1)} of their attention there on repeated random tokens` },
      { name: "both", cell: ([, b]) => String(b.both) },
      { name: "kappa", cell: ([, b]) => interval([b.value, b.low, b.high]) },
      { name: "swapped within layers (p)", cell: ([, b]) => against(b.permuted, b.p) },
      { name: "swapped over all (p)", cell: ([, b]) => against(b.permuted_anywhere, b.p_anywhere) },
    ], Object.entries(test.behaviours), { caption: "agreement by behaviour; a dash where nothing is named or nothing measured" }),
    el("h2", {}, "Do tasks need the heads whose words name what they need?"),
    el("p", { class: "note" }, "Percent of the task's score that is lost without a head: mean of the heads that name the behaviour minus mean of the others. An interval needs more than a few named heads."),
    table([
      { name: "behaviour", cell: (c) => BEHAVIOURS[c.behaviour] }, { name: "task", cell: (c) => link(address([model, "circuit", c.task]), c.task) },
      { name: "heads that name it", cell: (c) => String(c.named) },
      { name: "difference", cell: (c) => interval([c.value, c.low, c.high], 1, " %") },
      { name: "swapped within layers (p)", cell: (c) => against(c.permuted, c.p, 1) },
      { name: "swapped over all (p)", cell: (c) => against(c.permuted_anywhere, c.p_anywhere, 1) },
    ], test.causes, { caption: "effect of heads by what their words name" }),
    el("h2", {}, "Words beside measurements"), wordsChart(model, data, found),
    el("h2", {}, `Where they disagree: ${rows.length}`),
    rows.length ? table([
      { name: "head", key: (d) => d.component, cell: (d) => headLink(model, d.component) },
      { name: "what", key: (d) => d.kind, cell: (d) => `${d.kind}: ${d.what}` },
      { name: "in a sentence", wide: true, cell: disagreementText },
      { name: "its words", wide: true, cell: (d) => found.get(d.component)?.text || "" },
      { name: "weight", key: (d) => d.weight, down: true, cell: (d) => fixed(d.weight), title: "how far apart they are, 0 to 1" },
    ], rows, { caption: "heads where words and causes disagree, most striking first" }) : el("p", {}, "Nowhere, at these thresholds."),
  ];
}

// Measured attention of each behaviour: one row of points for heads that name it, one for those that do not.
function wordsChart(model, data, found) {
  const limit = data.thresholds.attention, rows = [], points = [[], []];
  for (const [key, label] of Object.entries(BEHAVIOURS)) {
    if (!Object.values(data.shows).some((own) => key in own)) continue;
    const spread = [0, 0];
    for (const said of [0, 1]) rows.push(`${label}: ${said ? "named" : "not named"}`);
    for (const [name, own] of Object.entries(data.shows)) {
      const entry = found.get(name);
      if (!entry?.text) continue;
      const named = data.says[name]?.[`${entry.source}/${entry.explainer}`]?.includes(key) ? 1 : 0;
      const row = rows.length - 2 + named, measured = own[key] >= limit ? 1 : 0;
      points[named === measured ? 0 : 1].push({ name, value: [own[key], row + 0.3 * Math.sin(2.4 * spread[named]++)] });
    }
  }
  const series = ["agree", "disagree"].map((name, i) => ({ name, type: "scatter", data: points[i], symbol: i ? "diamond" : "circle", symbolSize: i ? 11 : 8, itemStyle: { color: i ? "#d55e00" : WORDS_COLOUR, opacity: 0.8 } }));
  series[0].markLine = { silent: true, symbol: "none", data: [{ xAxis: limit }], lineStyle: { color: variable("--soft"), type: "dashed" }, label: { formatter: `label from ${fixed(limit, 1)}`, color: variable("--soft") } };
  return chart((drawn) => ({
    grid: { left: drawn.getWidth() < 600 ? 14 : 200, right: 30, top: 40, bottom: 50 }, legend: { top: 0, textStyle: { color: variable("--ink") } },
    tooltip: { ...common().tooltip, formatter: (p) => `${p.data.name}: measured ${fixed(p.value[0])}` },
    xAxis: axis("measured attention on repeated random tokens", { min: 0, max: 1, axisLine: { onZero: false, lineStyle: { color: variable("--soft") } } }),
    yAxis: { type: "value", min: -0.6, max: rows.length - 0.4, interval: 1, axisLabel: { show: false }, axisTick: { show: false }, splitLine: { show: false }, axisLine: { show: false } },
    graphic: [],
    series: [...series, { type: "scatter", silent: true, symbolSize: 0.01, data: rows.map((label, i) => ({ value: [0, i], name: label })), label: { show: true, position: drawn.getWidth() < 600 ? [4, -20] : "left", formatter: "{b}", color: variable("--ink") }, tooltip: { show: false } }],
  }), { height: 70 + 46 * rows.length, label: "measured attention of heads by whether their words name the behaviour", click: (event) => event.data?.name?.match(/^L\d+\.H\d+$/) && go(model, "head", headPlace(event.data.name).join(".")) });
}
