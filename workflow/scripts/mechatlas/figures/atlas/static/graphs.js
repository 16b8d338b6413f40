// Attribution graphs: which there are; each is a page of its own, drawn where it was made.

pages.graphs = async ([model]) => {
  const data = await core(model);
  return {
    title: `attribution graphs of ${model}`,
    nodes: [
      el("h1", {}, "Attribution graphs", el("small", {}, ` of ${model}`)),
      el("p", {}, "A graph traces one prompt: which features of the transcoder, tokens and errors add up to the answer's logit. Each opens on a page of its own."),
      data.graphs.length ? table([
        { name: "graph", key: (g) => g.graph, cell: (g) => el("a", { href: g.href, class: "graph" }, g.graph) },
        { name: "prompt", wide: true, cell: (g) => g.prompt },
        { name: "nodes", key: (g) => g.nodes, cell: (g) => String(g.nodes) }, { name: "edges", key: (g) => g.edges, cell: (g) => String(g.edges) },
        { name: "replacement", key: (g) => g.replacement, cell: (g) => fixed(g.replacement), title: "share of the influence on the logits that comes through features and tokens, not errors" },
        { name: "completeness", key: (g) => g.completeness, cell: (g) => fixed(g.completeness), title: "mean share of the input of nodes that does not come from errors" },
        { name: "transcoder", cell: (g) => `${g.transcoder} on ${g.source}` },
      ], data.graphs, { caption: "attribution graphs" }) : el("p", {}, "None was made for this model; graphs are listed under graphs: in the configuration."),
    ],
  };
};
