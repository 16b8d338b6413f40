"""Many prompts of a task at once: scores of their graphs, the mean graph, and what the models write on.

Everything has a number of prompts and an interval over prompts; what features do to the text is compared with as many
random features of the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechatlas.circuits.graphs.attribute import Settings, attribute
from mechatlas.circuits.graphs.average import average_edges
from mechatlas.circuits.graphs.graph import FEATURE, AttributionGraph
from mechatlas.circuits.graphs.influence import influence, mean_path_length, scores
from mechatlas.circuits.graphs.interventions import Intervention, intervention_hooks
from mechatlas.circuits.graphs.run import LocalRun, run_prompt
from mechatlas.circuits.graphs.targets import logit_difference
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.dictionaries.clt_replacement import generation_hooks, replacement_hooks
from mechatlas.io import UserError, progress, rng_for
from mechatlas.models.sampling import sample
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.models.transformer import Transformer
from mechatlas.stats.bootstrap import document_weights, interval
from mechatlas.stats.shares import share_interval
from mechatlas.tasks.pairs import PairBatch
from mechatlas.tasks.prompt_files import read_prompts

#: Columns of the table of scores; the measures are those of a prompt, or their mean where ``prompt`` is -1.
SCORE_COLUMNS = ("prompt", "metric", "value", "low", "high", "prompts")
VARIANTS = ("model", "replacement", "ablated", "random ablated")
#: Measures that are 0 or 1, whose means are shares of prompts.
SHARES = ("correct", "correct_replacement")


@dataclass(frozen=True)
class PromptSet:
    """What is known of a set of prompts.

    Attributes
    ----------
    scores : DataFrame
        `SCORE_COLUMNS`: for each prompt, and as a mean with its interval, the four scores of `influence.scores`,
        ``mean_path_length``, ``active_features``, ``logit_difference`` of the model and
        ``logit_difference_replacement``, ``correct`` and ``correct_replacement`` (1 if it is above 0).
    edges : DataFrame
        See `average.average_edges`.
    features : DataFrame
        ``layer``, ``feature``, ``influence`` (share of that of all features, mean over prompts, all positions),
        ``low``, ``high``, ``prompts`` in which it is active, ``ablated``.
    generation : DataFrame
        ``prompt``, ``variant`` of `VARIANTS`, ``text`` (prompt), ``continuation``, ``answer_first`` (whether it begins
        with the answer), ``same`` (share of its tokens that are those of the model at the same place).
    """

    scores: pd.DataFrame
    edges: pd.DataFrame
    features: pd.DataFrame
    generation: pd.DataFrame


def make_prompt_set(
    model: Transformer,
    clt: CrossLayerTranscoder,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    prompts: int,
    split: str,
    max_features: int | None,
    kept_mass: float,
    edges: int,
    ablated: int,
    new_tokens: int,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> PromptSet:
    """Trace the first ``prompts`` clean prompts of a split of a task's file, each to its logit difference.

    Parameters
    ----------
    max_features, kept_mass
        See `attribute.Settings`.
    edges : int
        How many mean edges are kept.
    ablated : int
        So many features, those with the largest mean influence, are set to 0 while the model writes on.
    new_tokens : int
        Tokens of a continuation.

    Raises
    ------
    UserError
        If the file is missing or has too few prompts in the split.
    """
    batch = read_prompts(path, split=split, tokenizer=tokenizer.hash)
    if prompts > len(batch):
        raise UserError(
            f"{path} has {len(batch)} prompts in the split {split}, but {prompts} are asked for; lower that number, or "
            "raise prompts or held_out of the task"
        )
    rows = range(prompts)
    settings = Settings(max_features=max_features, kept_mass=kept_mass)
    graphs, measures = [], []
    for row in progress(rows, desc="prompts", unit="prompts"):
        run = run_prompt(model, clt, torch.from_numpy(batch.clean[row]), bos=int(batch.bos))
        target = logit_difference(run, int(batch.answers[row]), int(batch.wrong[row]))
        graphs.append(attribute(run, [target], settings))
        measures.append(_measures(run, graphs[-1], batch, row))
    options = {"replicates": bootstrap, "seed": seed}
    features = feature_influence(graphs, confidence=confidence, ablated=ablated, **options)
    return PromptSet(
        score_table(measures, bootstrap=bootstrap, confidence=confidence, seed=seed),
        average_edges(graphs, [slots_of(batch, row) for row in rows], most=edges, **options),
        features,
        continuations(model, clt, tokenizer, batch, prompts, features, new_tokens, seed),
    )


def prompt_scores(
    model: Transformer, clt: CrossLayerTranscoder, batch: PairBatch, prompts: int
) -> list[dict[str, float]]:
    """Return the measures of the first prompts of a batch (see `PromptSet.scores`)."""
    found = []
    for row in progress(range(prompts), desc="prompts", unit="prompts"):
        run = run_prompt(model, clt, torch.from_numpy(batch.clean[row]), bos=int(batch.bos))
        target = logit_difference(run, int(batch.answers[row]), int(batch.wrong[row]))
        found.append(_measures(run, attribute(run, [target]), batch, row))
    return found


def _measures(
    run: LocalRun, graph: AttributionGraph, batch: PairBatch, row: int
) -> dict[str, float]:
    answer, wrong = int(batch.answers[row]), int(batch.wrong[row])
    own = run.logits()
    hooks = replacement_hooks(run.clt, positions=slice(run.bos, None))
    with torch.inference_mode():
        other = run.model.forward(run.tokens[None], hooks)[0, -1]
    found = {
        **scores(graph),
        "mean_path_length": mean_path_length(graph),
        "active_features": float(graph.facts["active_features"]),
    }
    for name, logits in (("", own), ("_replacement", other)):
        difference = float(logits[answer] - logits[wrong])
        found |= {f"logit_difference{name}": difference, f"correct{name}": float(difference > 0)}
    return found


def score_table(
    measures: Sequence[Mapping[str, float]], *, bootstrap: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Return the measures of all prompts and their means with intervals over prompts (see `SCORE_COLUMNS`).

    Intervals of shares are Wilson's: a bootstrap of 12 prompts that are all right would have no width.
    """
    count = len(measures)
    weights = document_weights(count, bootstrap, rng_for(seed, "prompt scores")) / count
    rows: list[tuple[Any, ...]] = []
    for name in measures[0]:
        values = np.array([one[name] for one in measures])
        if count < 2:
            low, high = np.nan, np.nan
        elif name in SHARES:
            low, high = (float(end) for end in share_interval(values.sum(), count, confidence))
        else:
            low, high = interval(weights @ values, confidence)
        rows.append((-1, name, values.mean(), low, high, count))
        rows += [(i, name, value, np.nan, np.nan, 1) for i, value in enumerate(values.tolist())]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def slots_of(batch: PairBatch, row: int) -> list[str]:
    """Return what each position of a prompt is called: its role, or its number where it has none."""
    names = [str(position) for position in range(batch.clean.shape[1])]
    for role in sorted(batch.roles):
        position = int(batch.roles[role][row])
        if position >= 0:
            names[position] = role if names[position].isdigit() else f"{names[position]}+{role}"
    return names


def feature_influence(
    graphs: Sequence[AttributionGraph],
    *,
    replicates: int,
    confidence: float,
    ablated: int,
    seed: int,
) -> pd.DataFrame:
    """Return the mean share of influence of every feature of some graphs (see `PromptSet.features`)."""
    parts = []
    for number, graph in enumerate(graphs):
        score = influence(graph.edges, graph.target_weights, graph.discarded_abs)
        mine = graph.kind == FEATURE
        frame = pd.DataFrame({"layer": graph.layer[mine], "feature": graph.feature[mine]})
        frame["share"] = score[mine] / max(float(score[mine].sum()), 1e-30)
        parts.append(frame.groupby(["layer", "feature"])["share"].sum().rename(number))
    shares = pd.concat(parts, axis=1)
    values = shares.fillna(0.0).to_numpy().T
    weights = document_weights(len(graphs), replicates, rng_for(seed, "feature influence"))[1:]
    tail = (1 - confidence) / 2
    low, high = np.full((2, values.shape[1]), np.nan)
    if len(graphs) > 1:
        low, high = np.quantile(weights @ values / len(graphs), [tail, 1 - tail], axis=0)
    table = shares.index.to_frame(index=False).assign(
        influence=values.mean(0), low=low, high=high, prompts=shares.notna().sum(axis=1).to_numpy()
    )
    order = ["influence", "layer", "feature"]
    table = table.sort_values(order, ascending=[False, True, True], ignore_index=True)
    return table.assign(ablated=np.arange(len(table)) < ablated)


def continuations(
    model: Transformer,
    clt: CrossLayerTranscoder,
    tokenizer: Tokenizer,
    batch: PairBatch,
    prompts: int,
    features: pd.DataFrame,
    new_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """Let the model, the replacement model and the model without features write on, greedily (see `PromptSet`)."""
    bos = int(batch.bos)
    given = [batch.clean[row].tolist() for row in range(prompts)]
    chosen = features[features["ablated"]]
    hooks = {
        "model": None,
        "replacement": generation_hooks(clt, first=bos),
        "ablated": intervention_hooks(clt, _without(chosen, bos)),
        "random ablated": intervention_hooks(clt, _without(_random_like(features, seed), bos)),
    }
    written = {
        name: sample(model, given, new_tokens, temperature=0, hooks=hook)
        for name, hook in hooks.items()
    }
    rows = []
    for row in range(prompts):
        text = tokenizer.decode(given[row][bos:])
        own = written["model"][row]
        for name in VARIANTS:
            tokens = written[name][row]
            rows.append(
                {
                    **{"prompt": row, "variant": name, "text": text},
                    "continuation": tokenizer.decode(tokens),
                    "answer_first": tokens[0] == int(batch.answers[row]),
                    "same": float(np.mean([a == b for a, b in zip(tokens, own, strict=True)])),
                }
            )
    return pd.DataFrame(rows)


def _without(features: pd.DataFrame, bos: int) -> list[Intervention]:
    return [
        Intervention(int(row.layer), int(row.feature), slice(bos, None), 0.0)
        for row in features.itertuples()
    ]


def _random_like(features: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw as many features of each layer as are ablated, from the others that are active in as many prompts.

    A feature that is active in one prompt of many could do nothing to the others. Where too few are active in as many
    prompts as the least common ablated one of the layer, the most common others have to do.
    """
    rng, parts = rng_for(seed, "random features"), [features.head(0)]
    others = features[~features["ablated"]]
    for layer, chosen in features[features["ablated"]].groupby("layer"):
        pool = others[others["layer"] == layer]
        enough = pool["prompts"].nlargest(len(chosen)).min()
        pool = pool[pool["prompts"] >= min(chosen["prompts"].min(), enough)]
        picked = rng.permutation(len(pool))[: len(chosen)]
        parts.append(pool.iloc[np.sort(picked)])
    return pd.concat(parts)
