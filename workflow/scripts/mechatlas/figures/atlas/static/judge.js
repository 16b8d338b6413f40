// What a judge, a language model that reads an explanation, makes of it; nothing where nobody judged.

// What a score says, and between what it stands; a mark is {name, label, chance, planted: [right text, wrong text]}.
function judgeHelp(mark) {
  const [ceiling, floor] = mark.planted;
  const known = missing(ceiling) ? "" : ` Units whose behaviour is known get ${fixed(ceiling)} with their own text${missing(floor) ? "" : ` and ${fixed(floor)} with another one's`}.`;
  return `A language model that reads the explanation answers questions about test documents.${missing(mark.chance) ? "" : ` Chance is ${fixed(mark.chance, 1)}.`}${known}`;
}

// Of each kind of question the score that comes first; the graded pairs have one for each kind of wrong pair.
const mainMarks = (marks) => (marks || []).filter((mark) => !mark.name.startsWith("pair_auc") && !mark.name.endsWith("random_only"));

function judgeText(entry, marks) {
  const own = mainMarks(marks).filter((mark) => !missing(entry.judge?.[mark.name]?.[0]));
  if (!own.length) return null;
  return el("p", {}, "A judge that reads these words: ", own.map((mark, i) => [i ? "; " : "", el("span", { title: judgeHelp(mark) }, `${mark.label} `, el("b", {}, interval(entry.judge[mark.name])))]), ".");
}

function judgeTable(rows) {
  if (!rows?.length) return null;
  const own = (r) => (typeof r.own === "string" ? el("span", { title: r.own, class: "soft" }, "unscored") : interval(r.own));
  const other = (r) => (missing(r.other) ? "–" : `${fixed(r.other)}${r.beats === null ? "" : r.beats ? ", beaten" : ", not beaten"}`);
  return fold("all scores by the judge, beside what costs nothing", table([
    { name: "score", cell: (r) => r.label },
    { name: "explanation", cell: own },
    { name: "another unit's text", title: "the same questions with another explanation; beaten if the difference is significant", cell: other },
    { name: "planted, right text", title: "units whose behaviour is known: what this judge reaches at best", cell: (r) => fixed(r.planted[0]) },
    { name: "planted, wrong text", title: "what it gives to wrong explanations", cell: (r) => fixed(r.planted[1]) },
    { name: "program, no judge", cell: (r) => fixed(r.program) },
    { name: "token look-up", cell: (r) => fixed(r.lookup) },
    { name: "no answer", title: "share of the questions", cell: (r) => percent(r.missing, 1) },
  ], rows, { caption: "scores by a judge on test documents" }));
}
