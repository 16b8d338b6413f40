"""The circuits of one model as figures of a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechatlas.figures.circuits import (
    attention,
    drawing,
    edges,
    lens,
    members,
    nodes,
    patching,
    shared,
)
from mechatlas.figures.circuits.captions import caption
from mechatlas.figures.circuits.page import METRIC_WORDS, looking_heads, prompts
from mechatlas.figures.circuits.results import CircuitResults, TaskResults
from mechatlas.figures.circuits.words import scored_by
from mechatlas.figures.paper.files import Drawn, drawn_at
from mechatlas.figures.paper.fit import SMALLEST, fit
from mechatlas.figures.paper.published import Published, agreement, mark
from mechatlas.figures.style import COLUMN, PAGE, at_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKED = "Diamonds: published values."
EDGES = (160, 80, 40, 24)  # a drawing shows the most of these with letters one can read
READABLE = 0.62  # of the natural size of a drawing
NAMES = 5.2  # points, of the names of positions beside a pattern
OV_QUANTITIES = {target: f"OV {target} percent" for target in ("copy", "next", "ordinal")}


def circuit_figures(results: CircuitResults, table: pd.DataFrame | None = None) -> Iterator[Drawn]:
    """Draw everything about the circuits of a model.

    Parameters
    ----------
    results : CircuitResults
    table : data frame, optional
        circuits/published.parquet.
    """
    published = Published(table)
    for task in results.tasks.values():
        for part in (
            patching_figures, node_figures, edge_figures, attention_figures, lens_figures, member_figures,
        ):  # fmt: skip
            yield from part(task, published)
    yield from shared_figures(results, published)


def patching_figures(task: TaskResults, published: Published) -> Iterator[Drawn]:
    """Draw the effect of patching each head: as a map, and the largest ones."""
    said = prompts(task)
    heads = patching.select(task.effects, point="z")
    metric = METRIC_WORDS.get(str(heads["metric"].iloc[0]), "metric") if len(heads) else "metric"
    label = f"share of the {metric} restored"
    roles = published_roles(heads["component"], task.task, published)
    yield Drawn(
        f"{task.task}_patching-map",
        drawn_at(COLUMN, patching.effect_map, heads, label),
        heads.join(roles, on="component"),
        caption("effect_map", metric=metric, **said),
    )
    top = heads.loc[heads["effect"].abs().sort_values(ascending=False, kind="stable").index[:15]]
    yield Drawn(
        f"{task.task}_patching-top",
        drawn_at(COLUMN, patching.top_effects, heads, label),
        top.join(roles, on="component"),
        caption("top_effects", **said),
    )


def published_roles(components: pd.Series, task: str, published: Published) -> pd.DataFrame:
    """Return the published roles of components as a column ``published_roles``; no column where none is published."""
    rows = published.table
    rows = rows[(rows["task"] == task) & rows["quantity"].str.startswith("role: ")]
    rows = rows[rows["published"] == 1]
    if rows.empty:
        return pd.DataFrame(index=pd.Index(components))
    names = rows["quantity"].str.removeprefix("role: ").groupby(rows["item"]).agg(", ".join)
    return names.rename("published_roles").to_frame()


def node_figures(task: TaskResults, published: Published) -> Iterator[Drawn]:
    """Draw the ablation of each node, the circuit found by it, and what it is compared with."""
    said, facts, name = prompts(task), task.circuit, task.task
    effects = task.table("nodes/effects")
    marked = {k: 100 - v for k, v in published.values(name, "percent left without it").items()}
    data = pd.concat(
        [
            published.beside(
                rows.assign(percent_left=100 - rows["drop"]),
                name,
                "percent left without it" + {"circuit": ", circuit"}.get(base, ""),
            )
            for base, rows in effects.groupby("base", sort=False)
        ]
    )
    yield Drawn(
        f"{name}_node-ablation",
        drawn_at(COLUMN, _with_marks, nodes.knock_out_bars, effects, values=marked),
        data,
        _marked(caption("knock_outs", **said), marked),
    )
    stability = task.table("nodes/stability")
    samples = facts.get("stability", {}).get("samples", "random")
    yield Drawn(
        f"{name}_circuit",
        drawn_at(COLUMN, nodes.inclusion_map, stability),
        published.beside(stability, name, "in circuit"),
        caption("inclusion", samples=samples, **said),
    )
    threshold = facts.get("settings", {}).get("threshold")
    curve = task.table("nodes/curve")
    yield Drawn(
        f"{name}_pruning",
        drawn_at(
            COLUMN, nodes.pruning_curve, curve, None if threshold is None else 100 - threshold
        ),
        curve,
        caption("pruning", **said),
    )
    held, random = facts["faithfulness"]["held_out"], task.table("nodes/random")
    yield Drawn(
        f"{name}_random-circuits",
        drawn_at(PAGE, nodes.random_circuits, random, held),
        pd.concat([pd.DataFrame([{"profile": "the circuit", **held}]), random]),
        caption("random", **said),
    )


def edge_figures(task: TaskResults, published: Published) -> Iterator[Drawn]:
    """Draw the faithfulness of edges by their number, and the edge circuit as a graph."""
    said, name = prompts(task), task.task
    curve = task.table("edges/curve")
    yield Drawn(
        f"{name}_edge-curve",
        drawn_at(COLUMN, edges.faithfulness_curves, curve),
        curve,
        caption("curve", **said),
    )
    table = task.edge_table()
    for inputs in (True, False):
        figure, shown = edge_graph(table, inputs=inputs)
        which = (
            f"all {shown} edges"
            if shown == len(table)
            else f"{shown} strongest of {len(table)} edges"
        )
        text = caption("graph_inputs", which=which, scored=scored_by(task), **said)
        yield Drawn(
            f"{name}_edge-graph" if inputs else f"{name}_edge-graph-heads",
            figure,
            drawing.strongest(table, shown),
            text if inputs else f"{text} {caption('graph_heads')}",
        )


def edge_graph(table: pd.DataFrame, *, inputs: bool) -> tuple[Figure, int]:
    """Draw as many of the strongest edges as a page shows in letters that can be read; return how many."""
    for most in EDGES:
        natural = drawing.circuit_graph(table, inputs=inputs, most=most)
        if PAGE / natural.get_size_inches()[0] >= READABLE or most == EDGES[-1]:
            break
    return at_page(drawing.circuit_graph, table, inputs=inputs, most=most), min(most, len(table))


def at_page(function: Callable[..., Figure], *args: Any, **kwargs: Any) -> Figure:
    """Draw what keeps its proportions at a page's width, with letters that shrink as its boxes do."""
    natural = function(*args, **kwargs).get_size_inches()
    scale = min(1.0, PAGE / natural[0])
    with at_width(min(PAGE, natural[0])):
        figure = function(*args, **kwargs)
    figure.set_size_inches(scale * natural)
    return fit(figure, largest=max(SMALLEST, 7.0 * scale))


def square(function: Callable[..., Figure], *args: Any) -> Figure:
    """Draw a square map in a column, with names that fit its rows."""
    with at_width(COLUMN):
        figure = function(*args)
    figure.set_size_inches(COLUMN, 0.86 * COLUMN)
    return fit(figure, largest=NAMES)


def attention_figures(task: TaskResults, published: Published) -> Iterator[Drawn]:
    """Draw attention between roles, and the mean patterns of the heads that matter."""
    name, table, patterns = task.task, task.table("lens/attention"), task.table("lens/patterns")
    rows = table[(table["query"] != "repeated") & (table["query"] != table["key"])]
    rows = pd.concat(
        [
            published.beside(part, name, f"attention {query} to {key}")
            for (query, key), part in rows.groupby(["query", "key"], sort=False)
        ]
        or [rows]
    )
    yield Drawn(
        f"{name}_attention",
        drawn_at(COLUMN, attention.role_attention_bars, table),
        rows.sort_values("attention", ascending=False, kind="stable"),
        caption("role_attention", **prompts(task)),
    )
    count = int(patterns["prompts"].max()) if len(patterns) else 0
    for head in looking_heads(task):
        framed = attention.salient_roles(table, head)
        yield Drawn(
            f"{name}_pattern_{head}",
            square(attention.mean_pattern, patterns, head, framed),
            patterns[patterns["component"] == head],
            caption("pattern", head=head, prompts=count),
        )


def lens_figures(task: TaskResults, published: Published) -> Iterator[Drawn]:
    """Draw the logit lens, and the transitions between members of a sequence."""
    name, said = task.task, prompts(task)
    table, transitions = task.table("lens/logit_lens"), task.table("lens/transitions")
    data = table[(table["norm"] == "final") & (table["point"] != "resid_mid")]
    for panel, what in (("probability", "Probability"), ("rank", "Rank")):
        columns = ["layer", "token", "prompts", panel, f"{panel}_low", f"{panel}_high"]
        yield Drawn(
            f"{name}_lens-{panel}",
            drawn_at(COLUMN, lens.lens_curves, table, panel),
            data[columns],
            caption("lens", what=what, **said),
        )
    if transitions.empty:
        return
    quantity = "logit lens: earlier member becomes answer, percent"
    marked = {k.removeprefix("L"): v / 100 for k, v in published.values(name, quantity).items()}
    data = transitions.assign(component=[f"L{layer}" for layer in transitions["layer"]])
    yield Drawn(
        f"{name}_lens-transitions",
        drawn_at(
            COLUMN, _with_marks, lens.transition_bars, transitions, values=marked, across=False
        ),
        published.beside(data, name, quantity),
        _marked(caption("transitions", **said), marked),
    )


def member_figures(task: TaskResults, published: Published) -> Iterator[Drawn]:
    """Draw what heads do with the members of a sequence, or the words at the roles: OV scores and matrices."""
    name, ov, matrices = task.task, task.table("lens/ov"), task.table("lens/matrices")
    data = ov.assign(percent=100 * ov["share"])
    promoted = data["sign"] == 1
    parts = [
        published.beside(part, name, OV_QUANTITIES.get(target, ""))
        for target, part in data[promoted].groupby("target", sort=False)
    ]
    marked = {}
    for target in ("next", "copy"):
        marked |= {k: v / 100 for k, v in published.values(name, OV_QUANTITIES[target]).items()}
    yield Drawn(
        f"{name}_ov",
        drawn_at(COLUMN, _with_marks, members.ov_bars, ov, values=marked),
        pd.concat([*parts, data[~promoted]]),
        _marked(caption("ov", of=int(ov["of"].max()) if len(ov) else 0), marked),
    )
    heads = members.best_heads(ov)
    if len(matrices) and heads:
        yield Drawn(
            f"{name}_ov-matrices",
            at_page(members.member_matrices, matrices, heads, "ov"),
            matrices[matrices["component"].isin(heads)],
            caption("ov_matrix"),
        )


def shared_figures(results: CircuitResults, published: Published) -> Iterator[Drawn]:
    """Draw the circuits of all tasks together, each on the prompts of the others, and removed before generation."""
    tables = {name: task.edge_table() for name, task in results.tasks.items()}
    held = {name: task.nodes for name, task in results.tasks.items()}
    everywhere = set.intersection(*map(set, held.values())) if held else set()
    rows = [(task, node) for task, names in held.items() for node in names]
    yield Drawn(
        "overlay",
        at_page(drawing.overlay_graph, held, tables),
        pd.DataFrame(rows, columns=["task", "component"]),
        caption("overlay", everywhere=", ".join(sorted(everywhere)) or "none"),
    )
    overlap, cross = results.table("overlap"), results.table("cross_task")
    generation = results.table("generation")
    yield Drawn(
        "overlap", drawn_at(COLUMN, shared.overlap_map, overlap), overlap, caption("overlap")
    )
    counts = "; ".join(f"{name}: {task.count('held_out')}" for name, task in results.tasks.items())
    yield Drawn(
        "cross-task",
        drawn_at(COLUMN, shared.cross_task_map, cross),
        _cross_beside(cross, published),
        caption("cross_task", counts=f"prompts: {counts}"),
    )
    most = {
        key: int(generation[key].max()) if len(generation) else 0 for key in ("prompts", "count")
    }
    yield Drawn(
        "generation",
        drawn_at(PAGE, shared.generation_bars, generation, results.table("generation_random")),
        generation,
        caption("generation", **most),
    )
    table = next(iter(results.tasks.values())).table("lens/attention")
    repeated = table[table["query"] == "repeated"]
    yield Drawn(
        "repeated-tokens",
        drawn_at(COLUMN, attention.repeated_token_bars, table),
        repeated,
        caption("repeated", sequences=int(repeated["prompts"].max())),
    )
    if published:
        numbers = published.table
        count = int((numbers["quantity"].str.contains("percent") & numbers["ours"].notna()).sum())
        yield Drawn(
            "published",
            drawn_at(PAGE, agreement, numbers),
            numbers,
            f"Percentages here against {count} published ones ({numbers['source'].iloc[0]}), in percent of the "
            "unit that each quantity names; dashed: alike. Prompts are others than the published ones.",
        )


def _cross_beside(cross: pd.DataFrame, published: Published) -> pd.DataFrame:
    parts = [
        published.beside(part, data, "circuit percent on this task", "circuit")
        for data, part in cross.groupby("data", sort=False)
    ]
    return pd.concat(parts) if parts else cross


def _with_marks(
    function: Callable[..., Figure],
    table: pd.DataFrame,
    *,
    values: dict[str, float],
    across: bool = True,
) -> Figure:
    """Draw bars with published values beside them."""
    figure = function(table)
    known = {k: v for k, v in values.items() if np.isfinite(v)}
    mark(figure.axes[0], known, across=across)
    return figure


def _marked(text: str, values: dict[str, float]) -> str:
    return f"{text} {MARKED}" if values else text
