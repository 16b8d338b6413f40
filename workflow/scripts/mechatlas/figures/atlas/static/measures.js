// What the map can be coloured by, and what numbers mean in a sentence.

const BEHAVIOURS = { previous_token: "previous token", duplicate_token: "duplicate token", induction: "induction" };
const METRICS = {
  iou: "IoU",
  iou_without_sink: "IoU without BOS",
  js_distance: "Jensen-Shannon distance",
  correlation: "correlation",
  correlation_without_sink: "correlation without BOS",
  top1_accuracy: "top-1 key",
  top1_accuracy_without_sink: "top-1 key without BOS",
  average_precision: "average precision",
  auc_negative_same_query: "AUC, same query",
  auc_negative_same_key: "AUC, same key",
  auc_negative_same_distance: "AUC, same distance",
  loss_recovered: "loss recovered",
  correlation_top_and_random: "correlation, top and random",
  variance_explained: "variance explained",
  auc: "AUC, all tokens",
  auc_negative_similar: "AUC, like direction",
  auc_negative_coactive: "AUC, co-active",
  precision: "precision",
  recall: "recall",
  steering_auc: "steering AUC",
};
const CONTROLS = {
  none: "explanation",
  swapped: "another unit's explanation",
  shuffled: "fitted on shuffled rows",
  mean_pattern: "mean pattern of the head",
  random_weights: "model with random weights",
  random_direction: "random direction",
  lookup: "look-up of tokens",
};
const CLASS_HELP =
  "What the explanation says mostly. Mixed: nothing has a quarter of the attention. Rests on BOS: looks at the first token of the text, which means that it does nothing.";
// What the classes of heads mean, for readers who meet them for the first time.
const CLASS_WORDS = {
  "previous token": "looks at the token just before",
  induction: "looks at what followed an earlier occurrence of the present token, so that a sequence can be repeated",
  "duplicate token": "looks at earlier copies of the present token",
  delimiter: "looks at full stops, commas, line breaks and the like",
  itself: "looks at the present token",
  "near tokens": "looks at tokens a few places back",
  start: "looks at the first token of the line or sentence",
  bracket: "looks at an open bracket or quotation mark",
  "same class": "looks at earlier tokens of the same kind, such as numbers at numbers",
  "rests on BOS": "looks at the mark before the first token, which does next to nothing",
  mixed: "looks at several things, none of which has a quarter of its attention",
  "not explained": "no explanation of this head",
};
const DISAGREEMENTS = {
  "shown, not named": (d) =>
    `measured as ${d.what}: attention ${fixed(d.measured)} on repeated random tokens, but its words give that ${percent(d.said)}`,
  "named, not shown": (d) =>
    `its words say ${d.what} (${percent(d.said)}), but on repeated random tokens its attention there is ${fixed(d.measured)}`,
  "says idle, is needed": (d) => `its words say that it does nothing, but ${d.what} loses ${fixed(d.measured, 0)} % of its score without it`,
  "needed, words fail": (d) =>
    `${d.what} changes by ${fixed(-d.measured, 0)} % without it, and its explanation predicts its attention no better than a control (advantage ${fixed(d.said)})`,
  "named and shown, not needed": (d) =>
    `words and measurement say ${d.what}, but no task that needs it loses more than ${fixed(Math.abs(d.measured), 1)} % without this head alone: others may stand in`,
};

const disagreementText = (item) => (DISAGREEMENTS[item.kind] || (() => item.kind))(item);

// The words about a model's heads from the source and explainer that are chosen, by head.
function wordsOf(data) {
  const source = data.sources.includes(chosen.source) ? chosen.source : data.sources[0];
  const explainer = data.explainers.includes(chosen.explainer) ? chosen.explainer : data.explainers[0];
  const found = new Map();
  for (const entry of data.words) if (entry.source === source && entry.explainer === explainer) found.set(entry.head, entry);
  return { source, explainer, found };
}

function headNames(data) {
  const names = [];
  for (let layer = 0; layer < data.layers; layer++) for (let head = 0; head < data.heads; head++) names.push(`L${layer}.H${head}`);
  return names;
}

function flagsOf(data, source, explainer) {
  const flags = new Map();
  for (const item of data.disagreements) {
    if (item.source !== source || item.explainer !== explainer) continue;
    flags.set(item.component, [...(flags.get(item.component) || []), item]);
  }
  return flags;
}

// All measures of a model: id, group, label, help, kind (class, sequential, diverging), digits, and value of a head.
function measuresOf(data) {
  const { source, explainer, found } = wordsOf(data);
  const flags = flagsOf(data, source, explainer);
  const word = (name) => found.get(name);
  const list = [
    { id: "class", group: "words", label: "what it does, in words", kind: "class", help: CLASS_HELP, value: (n) => word(n)?.class ?? "not explained" },
    { id: "iou", group: "words", label: "how well words predict it (IoU)", kind: "sequential", from: 0, to: 1, digits: 2, help: "Overlap of predicted and true attention on documents that the explanation was not fitted on; 1 is perfect.", value: (n) => word(n)?.iou[0] },
    { id: "advantage", group: "words", label: "advantage over the closest control", kind: "diverging", digits: 2, help: "IoU without BOS of the explanation minus that of the best explanation that should fail.", value: (n) => word(n)?.advantage[0] },
    { id: "loss", group: "words", label: "loss recovered when it runs on its words", kind: "sequential", from: 0, to: 1, digits: 2, help: "1: the model predicts as well with the head's attention replaced by what the words predict; 0: as badly as with its mean pattern.", value: (n) => word(n)?.loss },
    { id: "cluster", group: "words", label: "cluster of like explanations", kind: "class", help: "Explanations whose sentences are alike (HDBSCAN on sentence embeddings).", value: (n) => (missing(word(n)?.cluster) ? "none" : `cluster ${word(n).cluster}`) },
    { id: "flag", group: "words and causes", label: "where words and measurements disagree", kind: "class", help: "Heads that a researcher wants to look at next; see the page on agreement.", value: (n) => flags.get(n)?.[0].kind ?? "no disagreement" },
  ];
  for (const mark of data.judges?.[source] || []) {
    list.push({ id: `judge.${mark.name}`, group: "words, by a judge", label: `judge: ${mark.label}`, kind: "sequential", from: 0, to: 1, digits: 2, help: judgeHelp(mark), value: (n) => word(n)?.judge?.[mark.name]?.[0] });
  }
  for (const [key, words] of Object.entries(BEHAVIOURS)) {
    if (!Object.values(data.shows).some((entry) => key in entry)) continue;
    list.push({ id: key, group: "measured on random tokens", label: `${words}: attention`, kind: "sequential", from: 0, to: 1, digits: 2, help: `Mean attention of a ${words} head's kind on random tokens that are repeated; measured, no explanation is used.`, value: (n) => data.shows[n]?.[key] });
  }
  for (const [name, task] of Object.entries(data.tasks)) {
    const group = `task ${name}`, of = (n) => task.heads[n] || {};
    list.push(
      { id: `${name}.drop`, group, label: `${name}: score lost without the head`, kind: "diverging", digits: 0, unit: " %", help: "Percent of the task's score that is lost when this head alone is replaced by its mean; below zero: the model does better without it.", value: (n) => of(n).drop?.[0] },
      { id: `${name}.effect`, group, label: `${name}: restored by patching`, kind: "diverging", digits: 2, help: "Share of the score that comes back when this head's output is put from a clean prompt into a corrupted one.", value: (n) => of(n).effect?.[0] },
      { id: `${name}.attribution`, group, label: `${name}: written by the head itself`, kind: "diverging", digits: 2, help: "Share of the difference between right and wrong answer that the head writes straight into the output.", value: (n) => of(n).attribution },
      { id: `${name}.roles`, group, label: `${name}: measured role`, kind: "class", help: "Labels from measurements above stated thresholds; the first one is shown.", value: (n) => of(n).roles?.split(", ")[0] || "none" },
      { id: `${name}.circuits`, group, label: `${name}: in the circuit`, kind: "class", help: "Which ways of finding a circuit kept this head.", value: (n) => (of(n).circuits ? of(n).circuits.replaceAll("_", " ") : "none") },
    );
  }
  return list;
}

// The colours of a measure: a function of a value, and what a legend needs.
function colouring(measure, names) {
  const values = names.map(measure.value);
  if (measure.kind === "class") {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    const empty = ["mixed", "none", "not explained", "no disagreement"];
    const order = [...counts.keys()].sort((a, b) => empty.includes(a) - empty.includes(b) || counts.get(b) - counts.get(a) || (a < b ? -1 : 1));
    const of = new Map(order.map((value, i) => [value, empty.includes(value) ? NOTHING : KNOWN_COLOURS[value] || CLASS_COLOURS[i % CLASS_COLOURS.length]]));
    return { counts, order, colour: (value) => of.get(value) };
  }
  const known = values.filter((value) => !missing(value));
  let low = Math.min(...known, measure.from ?? Infinity), high = Math.max(...known, measure.to ?? -Infinity);
  if (!known.length) [low, high] = [0, 1];
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  if (measure.kind === "diverging") [low, high] = [-most, most];
  else if (low >= high) high = low + 1;
  const colours = measure.kind === "diverging" ? RED_BLUE : VIRIDIS;
  return { low, high, colours, colour: (value) => (missing(value) ? null : between(colours, (value - low) / (high - low))) };
}

function shown(measure, value) {
  if (missing(value)) return "–";
  return measure.kind === "class" ? value : `${fixed(value, measure.digits)}${measure.unit || ""}`;
}
