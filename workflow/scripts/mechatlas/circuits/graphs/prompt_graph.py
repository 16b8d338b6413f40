"""The graph of one prompt of a task with everything that ships with it, from files to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechatlas.circuits.graphs.attribute import Settings, attribute
from mechatlas.circuits.graphs.consistency import agreement, consistency_table
from mechatlas.circuits.graphs.forecast import Forecast, forecast
from mechatlas.circuits.graphs.graph import FEATURE, LOGIT, AttributionGraph
from mechatlas.circuits.graphs.influence import Pruned, mean_path_length, prune, scores
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.graphs.supernodes import Supernodes, cluster_features
from mechatlas.circuits.graphs.targets import logit_difference, salient_logits
from mechatlas.corpus.windows import read_windows
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.io import UserError, read_jsonl, read_table
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.models.transformer import Transformer
from mechatlas.tasks.prompt_files import read_prompts

AROUND = 8  # tokens of an example before and after the strongest one
TOP = 6  # promoted and suppressed tokens of a feature
TARGETS = ("difference", "logits")


@dataclass(frozen=True)
class PromptGraph:
    """A graph, its pruned part, supernodes, scores, consistency with interventions and the texts of its tokens."""

    graph: AttributionGraph
    pruned: Pruned
    supernodes: Supernodes
    forecast: Forecast
    scores: dict[str, float]
    consistency: pd.DataFrame
    agreement: pd.DataFrame
    texts: list[str]
    vocabulary: dict[int, str]
    text: str

    def summary(self) -> dict[str, Any]:
        """Return what there is to say in numbers, as JSON values."""
        graph, rows = self.graph, self.graph.has_row
        largest = np.abs(graph.total[rows]).max()
        clean = self.agreement.astype(object).where(self.agreement.notna(), None)
        forecast = asdict(self.forecast)
        del forecast["seconds"]  # measured here and now; results are the same on every run
        return {
            "prompt": self.text,
            "tokens": len(self.texts),
            "active_features": int(graph.facts["active_features"]),
            "traced_features": int((graph.kind == FEATURE).sum()),
            "nodes": len(graph),
            "edges": int(graph.edges.nnz),
            "kept_nodes": int(self.pruned.nodes.sum()),
            "kept_edges": int(self.pruned.edges.nnz),
            "largest_gap": float(np.nanmax(np.abs(graph.gaps())) / largest),
            "discarded_share": float(graph.discarded_abs.sum() / max(1e-30, _mass(graph))),
            "scores": {k: None if np.isnan(v) else v for k, v in self.scores.items()},
            "agreement": clean.to_dict("records"),
            "mean_path_length": mean_path_length(graph),
            "forecast": forecast,
        }


def make_prompt_graph(
    model: Transformer,
    clt: CrossLayerTranscoder,
    tokenizer: Tokenizer,
    prompts: str | Path,
    *,
    prompt: int,
    targets: str,
    max_logits: int,
    logit_mass: float,
    max_features: int | None,
    kept_mass: float,
    node_threshold: float,
    edge_threshold: float,
    supernode_distance: float,
    consistency_edges: int,
    consistency_nodes: int,
) -> PromptGraph:
    """Make the graph of the clean prompt number ``prompt`` of a file of prompts.

    Parameters
    ----------
    targets : str
        ``difference``: the answer's logit less the wrong one's; ``logits``: the likely next tokens.
    max_logits, logit_mass
        See `salient_logits`.
    max_features, kept_mass
        See `attribute.Settings`.
    node_threshold, edge_threshold
        See `prune`.
    supernode_distance
        See `cluster_features`.
    consistency_edges, consistency_nodes
        See `consistency_table`.

    Raises
    ------
    UserError
        If the file has no such prompt, or a setting is out of range.
    """
    batch = read_prompts(prompts, tokenizer=tokenizer.hash)
    if not 0 <= prompt < len(batch):
        raise UserError(
            f"{prompts} has prompts 0 to {len(batch) - 1}, but number {prompt} is asked for"
        )
    if targets not in TARGETS:
        raise UserError(f"targets is {targets!r}; it must be one of {', '.join(TARGETS)}")
    tokens = torch.from_numpy(batch.clean[prompt])
    run = run_prompt(model, clt, tokens, bos=int(batch.bos))
    answer, wrong = int(batch.answers[prompt]), int(batch.wrong[prompt])
    answers = tokenizer.strings([answer, wrong])
    label = f"logit {answers[0]!r} - logit {answers[1]!r}"
    wanted = (
        [logit_difference(run, answer, wrong, label)]
        if targets == "difference"
        else salient_logits(run, most=max_logits, mass=logit_mass)
    )
    settings = Settings(max_features=max_features, kept_mass=kept_mass)
    estimate = forecast(run, len(wanted), settings)
    graph = attribute(run, wanted, settings)
    pruned = prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)
    table = consistency_table(
        run, graph, wanted, pruned, edges=consistency_edges, nodes=consistency_nodes
    )
    shown = sorted(set(graph.feature[graph.kind == LOGIT].tolist()) - {-1})
    return PromptGraph(
        graph,
        pruned,
        cluster_features(graph, pruned, distance=supernode_distance),
        estimate,
        scores(graph),
        table,
        agreement(table),
        tokenizer.strings(batch.clean[prompt]),
        dict(zip(shown, tokenizer.strings(shown), strict=True)),
        tokenizer.decode(batch.clean[prompt][int(batch.bos) :].tolist()),
    )


def feature_details(
    made: PromptGraph,
    model: Transformer,
    clt: CrossLayerTranscoder,
    tokenizer: Tokenizer,
    *,
    features: str | Path,
    examples: str | Path,
    windows: str | Path,
) -> dict[int, dict[str, Any]]:
    """Return for every kept feature node what its tables say: examples, promoted and suppressed tokens, frequency.

    Raises
    ------
    UserError
        If a table is missing or damaged.
    """
    graph = made.graph
    nodes = np.flatnonzero(made.pruned.nodes & (graph.kind == FEATURE)).tolist()
    wanted = {(int(graph.layer[n]), int(graph.feature[n])) for n in nodes}
    known = {(row.layer, row.feature): row for row in read_table(features).itertuples()}
    rows = read_table(examples)
    of_feature = rows.groupby(["layer", "feature"]).indices
    tokens = read_windows(windows).tokens
    found = {}
    for layer, feature in sorted(wanted):
        row = known[layer, feature]
        up, down = promoted(model, clt, tokenizer, layer, feature)
        own = rows.iloc[of_feature.get((layer, feature), [])]
        found[layer, feature] = {
            "note": f"active on {100 * row.density:.2g} % of test tokens, at most {row.max:.3g}",
            "up": up,
            "down": down,
            "examples": [_excerpt(tokenizer, tokens, one) for one in own.itertuples()],
        }
    return {n: found[int(graph.layer[n]), int(graph.feature[n])] for n in nodes}


def explained_nodes(graph: AttributionGraph, explanations: Sequence[str | Path]) -> dict[int, str]:
    """Return the explanations of a graph's features by node, where there are any; the first of each feature counts.

    Parameters
    ----------
    graph : AttributionGraph
    explanations : sequence of paths
        explanations.jsonl of dictionaries whose latents are the features of the graph's transcoder.
    """
    known: dict[tuple[int, int], str] = {}
    for path in explanations:
        for record in read_jsonl(path):
            if record["text"]:
                known.setdefault((record["layer"], record["latent"]), record["text"])
    nodes = np.flatnonzero(graph.kind == FEATURE).tolist()
    keys = {n: (int(graph.layer[n]), int(graph.feature[n])) for n in nodes}
    return {n: known[key] for n, key in keys.items() if key in known}


@torch.inference_mode()
def promoted(
    model: Transformer, clt: CrossLayerTranscoder, tokenizer: Tokenizer, layer: int, feature: int
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the tokens whose logits the sum of all that a feature writes raises and lowers most, with the amounts.

    Amounts are those for an activation of 1 and a final norm of scale 1 (a logit lens on the decoder).
    """
    index = torch.tensor([feature], device=clt.device)
    rows = [clt.decoder_rows(layer, target, index)[0] for target in clt.targets(layer)]
    direction = torch.stack(rows).sum(0)
    if model.config.architecture == "gpt2":
        direction = direction - direction.mean()
    logits = model.unembed(direction * model.weights.final_norm)
    logits = logits - logits.mean()
    parts = []
    for largest in (True, False):
        top = logits.topk(min(TOP, len(logits)), largest=largest)
        values = [round(value, 4) for value in top.values.tolist()]
        parts.append(list(zip(tokenizer.strings(top.indices.tolist()), values, strict=True)))
    return parts[0], parts[1]


def _excerpt(tokenizer: Tokenizer, tokens: np.ndarray, row: Any) -> dict[str, Any]:
    """Return the tokens around the strongest one of a window; only that one's activation is known."""
    first = max(0, row.position - AROUND)
    part = tokens[row.window, first : row.position + AROUND + 1]
    values = [0.0] * len(part)
    values[row.position - first] = round(float(row.activation), 4)
    return {"tokens": tokenizer.strings(part), "values": values}


def _mass(graph: AttributionGraph) -> float:
    return float(np.abs(graph.edges.data).sum() + graph.discarded_abs.sum())


def fact_lines(made: PromptGraph, about: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines below the heading of the page."""
    score, rows = made.scores, made.agreement
    numbers = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in score.items())
    checks = "; ".join(
        f"{row.rows} {row.kind}s {row.measured}: correlation {row.correlation:.2f}, slope {row.slope:.2f}"
        for row in rows.itertuples()
    )
    return [
        f"{about['model']}, transcoder {about['transcoder']} trained on {about['source']}. Prompt: {made.text}",
        f"Scores: {numbers}.",
        f"Predicted against measured when a feature is set to 0: {checks}.",
    ]
