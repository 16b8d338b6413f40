// The page of one head: what explanations say, what tasks show, examples, program, what it writes to, what is alike.

pages.head = async ([model, place]) => {
  const data = await core(model);
  const [layer, head] = place.split(".").map(Number);
  const name = `L${layer}.H${head}`;
  if (!headNames(data).includes(name)) throw new Error(`${model} has no head ${name}: it has ${data.layers} layers of ${data.heads} heads`);
  const details = (await load(model, `heads-${layer}`))[name] || {};
  const box = el("div");
  const draw = () => box.replaceChildren(...headParts(model, data, name, details, draw));
  draw();
  return { title: `${name} of ${model}`, nodes: [headTitle(model, data, name), box] };
};

function headTitle(model, data, name) {
  const [layer, head] = headPlace(name), names = headNames(data), at = names.indexOf(name);
  const near = (step, words) => {
    const other = names[at + step];
    return other ? el("a", { class: "step", href: headAddress(model, other), rel: step < 0 ? "prev" : "next", title: `${other} (${words})` }, step < 0 ? `← ${other}` : `${other} →`) : el("span", { class: "step off" });
  };
  return el("div", { class: "title" }, el("h1", {}, name, el("small", {}, ` head ${head} of layer ${layer}, ${model}`)), el("span", { class: "steps" }, near(-1, "k"), near(1, "j")));
}

function headParts(model, data, name, details, draw) {
  const { source, explainer, found } = wordsOf(data);
  const words = found.get(name), flags = flagsOf(data, source, explainer).get(name) || [];
  const tasks = Object.entries(data.tasks).filter(([, t]) => t.heads[name]);
  const roles = new Map();
  for (const [task, t] of tasks) for (const role of (t.heads[name].roles || "").split(", ").filter(Boolean)) roles.set(role, [...(roles.get(role) || []), task]);
  const classes = colouring(measuresOf(data)[0], headNames(data));
  return [
    el("div", { class: "controls" }, wordChoices(data, draw)),
    el("p", { class: "badges" }, badge(`in words: ${words?.class ?? "not explained"}`, classes.colour(words?.class ?? "not explained"), CLASS_WORDS[words?.class ?? "not explained"]),
      [...roles].map(([role, own]) => badge(`measured: ${role}`, null, `in ${own.join(", ")}`)),
      tasks.filter(([, t]) => t.heads[name].circuits).map(([task, t]) => link(address([model, "circuit", task]), badge(`circuit: ${task}`, null, `kept by: ${t.heads[name].circuits}`)))),
    flags.length ? el("div", { class: "warning", role: "note" }, el("b", {}, "Words and causes disagree here: "), flags.map(disagreementText).join("; "), ". ", link(address([model, "agreement"]), "What this means")) : null,
    el("h2", {}, "What it does, in words"), ...wordsParts(data, name, details),
    tasks.length ? [el("h2", {}, "What it does, measured"), measuredParts(model, data, name, tasks)] : [],
    el("h2", {}, "Where it looks"), examplesPart(data, details, source),
    el("h2", {}, "Its program"), programParts(details[source]?.programs?.[explainer]),
    writtenParts(model, data, name), clusterParts(model, data, name, source, words, found),
  ].flat(2).filter(Boolean);
}

function wordsParts(data, name, details) {
  const rows = data.words.filter((entry) => entry.head === name);
  if (!rows.length) return [el("p", {}, "No explainer explained this head.")];
  return rows.map((entry) => {
    const scored = details[entry.source]?.scores?.[entry.explainer] || {};
    return el("article", { class: "words" },
      el("p", { class: "said" }, entry.text || "Not explained."),
      el("p", { class: "note" }, `explainer ${entry.explainer}, text ${entry.source}`),
      el("p", {}, "IoU ", el("b", {}, interval(entry.iou)), ` (1: the words predict its attention exactly). `, advantageText(entry), lossText(entry)),
      fold("all scores, beside those of explanations that should fail", scoreTable(scored)),
      judgeText(entry, data.judges?.[entry.source]), judgeTable(details[entry.source]?.judge?.[entry.explainer]));
  });
}

function advantageText(entry) {
  if (missing(entry.advantage[0])) return "";
  const verdict = entry.beats ? "It beats every control. " : "It does not beat every control. ";
  return `${verdict}Without BOS it is ${interval(entry.advantage)} above the closest one (${CONTROLS[entry.control] || entry.control}). `;
}

const lossText = (entry) => (missing(entry.loss) ? "" : `When the head attends as the words say, ${percent(entry.loss)} of what its ablation costs comes back.`);

function scoreTable(scored) {
  const metrics = Object.keys(METRICS).filter((metric) => metric in scored);
  if (!metrics.length) return el("p", { class: "note" }, "No scores.");
  const controls = Object.keys(CONTROLS).filter((c) => metrics.some((metric) => c in scored[metric]));
  const cell = (entry) => (entry === undefined ? "–" : typeof entry === "string" ? el("span", { title: entry, class: "soft" }, "unscored") : interval(entry));
  return table([{ name: "score", cell: (metric) => METRICS[metric] }, ...controls.map((c) => ({ name: CONTROLS[c], cell: (metric) => cell(scored[metric][c]) }))], metrics, { caption: "scores on test documents" });
}

function measuredParts(model, data, name, tasks) {
  const limit = data.thresholds.attention, own = data.shows[name] || {};
  const random = Object.entries(BEHAVIOURS).filter(([key]) => key in own).map(([key, label]) => ({ label, entry: [own[key]], colour: own[key] >= limit ? WORDS_COLOUR : NOTHING, note: own[key] >= limit ? "labelled" : "" }));
  const rows = tasks.map(([task, t]) => ({ task, ...t.heads[name] }));
  return el("div", { class: "columns" },
    el("div", {}, el("h3", {}, "Score lost without this head alone"), bars(rows.map((r) => ({ label: r.task, href: address([model, "circuit", r.task]), entry: r.drop, colour: r.drop[3] < 0.05 ? WORDS_COLOUR : NOTHING })), { digits: 0, unit: " %" }),
      el("p", { class: "note" }, "Its output is replaced by its mean; percent of the task's score, with intervals over prompts; grey cannot be told from 0.")),
    el("div", {}, el("h3", {}, "Restored by patching it"), bars(rows.map((r) => ({ label: r.task, entry: r.effect, colour: r.effect[3] < 0.05 ? WORDS_COLOUR : NOTHING }))),
      el("p", { class: "note" }, "Its output from the clean prompt is put into the corrupted one; 1 restores everything; grey cannot be told from 0.")),
    random.length ? el("div", {}, el("h3", {}, "Attention on repeated random tokens"), bars(random, { to: 1 }), el("p", { class: "note" }, `From ${fixed(limit, 1)} on the head gets the label.`)) : null,
    el("div", { class: "whole" }, table([
      { name: "task", cell: (r) => link(address([model, "circuit", r.task]), r.task) },
      { name: "measured roles", cell: (r) => r.roles || "none" },
      { name: "in circuits of", cell: (r) => (r.circuits || "none").replaceAll("_", " ") },
      { name: "writes itself", title: "share of the difference between right and wrong answer that it writes straight into the output", cell: (r) => percent(r.attribution, 1) },
      { name: "OV copies", title: "share of the task's words that are among the five tokens it promotes most when it attends to them", cell: (r) => percent(r.copies) },
      { name: "OV promotes next", title: "the same for the next member of the sequence", cell: (r) => percent(r.promotes_next) },
      { name: "QK matches", title: "probability that a word of the task matches another one better than an ordinary word; 0.5 is chance", cell: (r) => fixed(r.matches) },
    ], rows, { caption: "roles, circuits, OV and QK scores in every task" })));
}

function examplesPart(data, details, source) {
  const own = details[source] || {};
  const box = el("div"), kinds = [["top", "strongest"], ["random", "drawn at random"]].filter(([kind]) => own[kind]?.length);
  if (!kinds.length) return el("p", {}, "No examples were kept.");
  const show = (kind) => {
    box.replaceChildren(...own[kind].map(headExample));
    tabs.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.kind === kind)));
  };
  const tabs = el("div", { class: "tabs", role: "group", "aria-label": "kind of examples" }, kinds.map(([kind, words]) => el("button", { type: "button", "data-kind": kind, onclick: () => show(kind) }, words)));
  show(kinds[0][0]);
  return el("div", {}, headLegend(), tabs, box);
}

function programParts(program) {
  if (!program) return el("p", { class: "note" }, "This explanation is text alone: it has no program that can be run.");
  if (!program.length) return el("p", {}, "No parts: all attention rests on BOS.");
  const rows = program.map((part) => {
    const { relations, ...fields } = part.fields;
    const said = Object.entries(fields).map(([key, value]) => `${key.replaceAll("_", " ")}: ${value}`).join("; ");
    return el("li", {}, el("b", {}, `${percent(part.share)} ${part.form === "scores" ? "learned tables" : part.form.replaceAll("_", " ")}`), said ? ` (${said})` : "",
      relations?.length ? el("div", {}, el("p", { class: "note" }, "What draws attention most, in nats (about 0.7 doubles the odds):"), bars(relations.map(([label, nats]) => ({ label, entry: [nats], colour: nats >= 0 ? WORDS_COLOUR : CONTROL_COLOUR })), { digits: 1 })) : null);
  });
  return el("div", {}, el("p", { class: "note" }, "The explanation as something that runs: shares of its attention, the rest goes to BOS."), el("ul", { class: "plain" }, rows));
}

function writtenParts(model, data, name) {
  const own = data.written[name];
  if (!own) return null;
  const items = own.map(([dictionary, unit, times]) => {
    const [source, other] = dictionary.split("/");
    return el("li", {}, link(latentAddress(model, source, other, unit), unit), ` ${fixed(times, 1)} times chance`);
  });
  return [el("h2", {}, "Latents that it writes to"), el("p", { class: "note" }, "Latents that read most of what the head can write, by weights alone; 1 is what a random direction reads."), el("ul", { class: "plain wrap" }, items)];
}

function clusterParts(model, data, name, source, words, found) {
  const cluster = (data.clusters[source] || []).find((c) => c.units.some((unit) => unit.split(" ")[0] === name));
  if (!cluster) return null;
  const others = [...new Set(cluster.units.map((unit) => unit.split(" ")[0]))].filter((unit) => unit !== name);
  return [el("h2", {}, "Heads with like explanations"), el("p", { class: "note" }, `cluster ${cluster.id}: ${cluster.label}`), el("ul", { class: "plain wrap" }, others.map((other) => el("li", {}, headLink(model, other), ` ${found.get(other)?.class ?? ""}`)))];
}
