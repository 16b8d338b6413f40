"""The parts of a circuits page: figures with their captions, and tables."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from mechatlas.figures import html
from mechatlas.figures.circuits import (
    attention,
    drawing,
    edges,
    lens,
    members,
    nodes,
    patching,
    shared,
    words,
)
from mechatlas.figures.circuits.captions import caption
from mechatlas.figures.circuits.results import CircuitResults, TaskResults
from mechatlas.figures.html import Html

METRIC_WORDS = {
    "logit_difference": "logit difference",
    "probability_difference": "probability difference",
    "kl": "KL divergence",
    "rank": "rank of the answer",
}
HEADS_DRAWN = 2  # mean patterns a task


def each_task(results: CircuitResults, part: Callable[[TaskResults], Html]) -> Html:
    """Return one part of the page for every task, each under its name."""
    return html.sections({name: part(task) for name, task in results.tasks.items()})


def join(*parts: Html) -> Html:
    """Return parts one below the other."""
    return Html("".join(part.text for part in parts))


def row(*figures: Html) -> Html:
    """Return figures beside each other, as many as fit."""
    return Html(f"<div class='mx-row'>{join(*figures).text}</div>")


def table_or(rows: words.Rows, nothing: str) -> Html:
    """Return a table, or a sentence if it has no rows."""
    return html.table(*rows) if rows[1] else Html(f"<p>{html.escape(nothing)}</p>")


def heading(text: str) -> Html:
    """Return a small heading."""
    return Html(f"<h5>{html.escape(text)}</h5>")


def prompts(task: TaskResults) -> dict[str, str]:
    """Return how many prompts circuits were found and tested on, in words."""
    return {
        "found": f"{task.count('discovery')} discovery prompts",
        "tested": f"{task.count('held_out')} held-out prompts",
    }


def patching_part(task: TaskResults) -> Html:
    """Return the figures of activation patching: map, strongest heads, layers, two directions."""
    table, said = task.effects, prompts(task)
    heads = patching.select(table, point="z")
    noise = patching.select(table, point="z", direction="noise")
    metric = METRIC_WORDS.get(str(table["metric"].iloc[0]), "metric") if len(table) else "metric"
    label = f"share of the {metric} restored"
    layers = (patching.select(table, point=point) for point in ("attn_out", "mlp_out"))
    return row(
        html.figure(
            patching.effect_map(heads, label), caption("effect_map", metric=metric, **said)
        ),
        html.figure(patching.top_effects(heads, label), caption("top_effects", **said)),
        html.figure(patching.attention_and_mlp_bars(*layers, label), caption("layer_bars", **said)),
        html.figure(
            patching.denoising_against_noising(heads, noise), caption("directions", **said)
        ),
    )


def roles_part(task: TaskResults) -> Html:
    """Return the table of measured roles."""
    return html.table(*words.role_rows(task.roles), wide=["looks from the end at"], sortable=True)


def direct_part(task: TaskResults) -> Html:
    """Return the map of direct logit attribution."""
    table = task.table("lens/direct")
    heads = table[table["kind"] == "head"]
    others = "; ".join(
        f"{row.component} {html.with_interval(row.share, row.share_low, row.share_high)}"
        for row in table[table["kind"] != "head"].itertuples()
    )
    drawing_ = patching.effect_map(heads, "share of the logit difference", "share")
    return html.figure(
        drawing_,
        caption("direct", others=others, **prompts(task)),
        alt="Direct logit attribution of every head",
    )


def nodes_part(task: TaskResults) -> Html:
    """Return the figures and tables of the node circuit."""
    said, facts = prompts(task), task.circuit
    threshold = facts.get("settings", {}).get("threshold")
    samples = facts.get("stability", {}).get("samples", "random")
    kept = None if threshold is None else 100 - threshold
    held = facts["faithfulness"]["held_out"]
    inside = ", ".join(task.nodes) or "nothing"
    return join(
        Html(f"<p>In the circuit: {html.escape(inside)}.</p>"),
        row(
            html.figure(
                nodes.knock_out_bars(task.table("nodes/effects")), caption("knock_outs", **said)
            ),
            html.figure(
                nodes.pruning_curve(task.table("nodes/curve"), kept), caption("pruning", **said)
            ),
            html.figure(
                nodes.inclusion_map(task.table("nodes/stability")),
                caption("inclusion", samples=samples, **said),
            ),
            html.figure(
                nodes.random_circuits(task.table("nodes/random"), held), caption("random", **said)
            ),
        ),
        html.table(*words.control_rows(task)),
        heading("Least needed nodes"),
        html.table(*words.minimal_rows(task.table("nodes/minimality")), wide=["after removal of"]),
    )


def edges_part(task: TaskResults) -> Html:
    """Return the curves and tables of the edge methods."""
    return join(
        html.figure(
            edges.faithfulness_curves(task.table("edges/curve")), caption("curve", **prompts(task))
        ),
        html.table(*words.area_rows(task.edge_circuit)),
        heading("Do estimates agree with exact effects?"),
        html.table(*words.agreement_rows(task)),
        heading("Strongest edges of the circuit"),
        html.table(*words.edge_effect_rows(task)),
        heading("Paths, patched exactly"),
        table_or(words.path_rows(task.table("edges/paths")), "No path was patched."),
    )


def drawing_part(task: TaskResults) -> Html:
    """Return the drawings of the edge circuit, with and without query, key and value inputs."""
    table = task.edge_table()
    shown = min(len(table), drawing.MOST_EDGES)
    which = f"{shown} strongest of {len(table)} edges"
    which = f"all {shown} edges" if shown == len(table) else which
    return row(
        html.figure(
            drawing.circuit_graph(table, inputs=True),
            caption("graph_inputs", which=which, scored=words.scored_by(task), **prompts(task)),
        ),
        html.figure(drawing.circuit_graph(table, inputs=False), caption("graph_heads")),
    )


def overlay_part(results: CircuitResults) -> Html:
    """Return the node circuits of all tasks over each other."""
    tables = {name: task.edge_table() for name, task in results.tasks.items()}
    held = {name: task.nodes for name, task in results.tasks.items()}
    everywhere = [
        n for n in next(iter(held.values()), []) if all(n in own for own in held.values())
    ]
    return html.figure(
        drawing.overlay_graph(held, tables),
        caption("overlay", everywhere=", ".join(everywhere) or "none"),
        alt="Overlay of the circuits of all tasks",
    )


def shared_part(results: CircuitResults) -> Html:
    """Return what tasks share: overlap, each circuit on each task, removal before generation."""
    overlap, generation = results.table("overlap"), results.table("generation")
    counts = "; ".join(f"{name}: {t.count('held_out')}" for name, t in results.tasks.items())
    most = {
        name: int(generation[name].max()) if len(generation) else 0 for name in ("prompts", "count")
    }
    return join(
        row(
            html.figure(shared.overlap_map(overlap), caption("overlap")),
            html.figure(
                shared.cross_task_map(results.table("cross_task")),
                caption("cross_task", counts=f"prompts: {counts}"),
            ),
        ),
        html.table(*words.overlap_rows(overlap), wide=["shared heads", "shared MLPs"]),
        html.figure(
            shared.generation_bars(generation, results.table("generation_random")),
            caption("generation", **most),
        ),
    )


def logit_lens_part(task: TaskResults) -> Html:
    """Return the logit-lens curves, and the test of the next member where there is a sequence."""
    table, transitions = task.table("lens/logit_lens"), task.table("lens/transitions")
    said = prompts(task)
    drawn = [
        html.figure(lens.lens_curves(table, name), caption("lens", what=what, **said))
        for name, what in (("probability", "Probability"), ("rank", "Rank"))
    ]
    if transitions.empty:
        return row(*drawn)
    drawn.append(html.figure(lens.transition_bars(transitions), caption("transitions", **said)))
    return join(row(*drawn), html.table(*words.transition_rows(transitions)))


def attention_part(task: TaskResults) -> Html:
    """Return attention from role to role, and mean patterns of the heads that matter and look hardest from the end."""
    table, patterns = task.table("lens/attention"), task.table("lens/patterns")
    count = int(patterns["prompts"].max()) if len(patterns) else 0
    bars = attention.role_attention_bars(table)
    drawn = [
        html.figure(
            attention.mean_pattern(patterns, head, attention.salient_roles(table, head)),
            caption("pattern", head=head, prompts=count),
        )
        for head in looking_heads(task)
    ]
    return row(html.figure(bars, caption("role_attention", **prompts(task))), *drawn)


def looking_heads(task: TaskResults, count: int = HEADS_DRAWN) -> list[str]:
    """Return the heads with a large patching effect that attend most from the end to another role."""
    effects = patching.select(task.effects, point="z").set_index("component")["effect"].abs()
    strong = set(effects.sort_values(ascending=False, kind="stable").index[: 4 * count])
    table = task.table("lens/attention")
    rows = table[(table["query"] == "end") & (table["key"] != "end")]
    rows = rows.sort_values("attention", ascending=False, kind="stable")
    return [name for name in rows["component"].drop_duplicates() if name in strong][:count]


def repeated_part(results: CircuitResults) -> Html:
    """Return attention on repeated random tokens, which is a matter of the model and not of a task."""
    table = next(iter(results.tasks.values())).table("lens/attention")
    sequences = int(table.loc[table["query"] == "repeated", "prompts"].max())
    return html.figure(
        attention.repeated_token_bars(table), caption("repeated", sequences=sequences)
    )


def members_part(task: TaskResults) -> Html:
    """Return OV and QK scores, with member-by-member matrices where there is a sequence."""
    ov, matrices = task.table("lens/ov"), task.table("lens/matrices")
    sought = task.table("lens/qk_members")
    parts = [
        html.figure(members.ov_bars(ov), caption("ov", of=int(ov["of"].max()) if len(ov) else 0))
    ]
    if len(matrices):
        close = sought.sort_values("similar", ascending=False, kind="stable")["component"].head(3)
        for name, heads in (("ov", members.best_heads(ov)), ("qk", list(close))):
            drawn = members.member_matrices(matrices, heads, name)
            parts.append(html.figure(drawn, caption(f"{name}_matrix")))
    return join(
        row(*parts),
        heading("Among the words alone: what heads promote"),
        html.table(*words.ov_member_rows(task.table("lens/ov_members"))),
        heading("Among the words alone: what heads look for"),
        html.table(*words.qk_member_rows(sought)),
        heading("Between roles: what heads look for"),
        table_or(words.qk_rows(task.table("lens/qk")), "No pair of roles can be told from chance."),
    )


def published_part(published: pd.DataFrame | None) -> Html:
    """Return our numbers beside published ones; nothing where there are none.

    Parameters
    ----------
    published : data frame, optional
        circuits/published.parquet.
    """
    if published is None or published.empty:
        return Html("")
    return join(
        Html("<h2>Beside published numbers</h2>"),
        Html(
            "<p>Published numbers are of other prompts and sometimes of another procedure, so small differences say "
            "nothing.</p>"
        ),
        html.table(*words.published_rows(published), wide=["source"], sortable=True),
    )
