"""Figures, tables and the page of circuits, on made-up results with hostile text."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_circuits import GRAPH, HEADS, LAYERS, TASKS, write_circuits

from mechatlas.circuits.components import Graph
from mechatlas.figures import html
from mechatlas.figures.circuits import (
    attention,
    captions,
    drawing,
    edges,
    lens,
    members,
    nodes,
    page,
    patching,
    shared,
    words,
)
from mechatlas.figures.circuits.common import label_points
from mechatlas.figures.circuits.results import CircuitResults, read_circuits
from mechatlas.figures.index import CircuitEntry, index_page
from mechatlas.figures.notebook import execute_notebook, notebook_page
from mechatlas.figures.style import new_figure, svg

NOTEBOOK = Path(__file__).parents[2] / "workflow" / "notebooks" / "circuits.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("circuits")


@pytest.fixture(scope="module")
def parameters(folder: Path) -> dict[str, object]:
    return write_circuits(folder)


@pytest.fixture(scope="module")
def found(parameters: dict[str, object]) -> CircuitResults:
    return read_circuits("demo", TASKS, str(parameters["folder"]), str(parameters["shared"]))


def drawings(found: CircuitResults) -> dict:
    task = found.tasks["numerals"]
    heads = patching.select(task.effects, point="z")
    none = heads.head(0)
    return {
        "map": lambda: patching.effect_map(heads, "effect"),
        "top of nothing": lambda: patching.top_effects(none, "effect"),
        "layers": lambda: patching.attention_and_mlp_bars(none, none, "effect"),
        "directions": lambda: patching.denoising_against_noising(heads, heads),
        "inclusion": lambda: nodes.inclusion_map(task.table("nodes/stability")),
        "curve": lambda: edges.faithfulness_curves(task.table("edges/curve")),
        "graph": lambda: drawing.circuit_graph(task.edge_table(), inputs=True),
        "no graph": lambda: drawing.circuit_graph(task.edge_table().head(0), inputs=False),
        "pattern": lambda: attention.mean_pattern(task.table("lens/patterns"), "L1.H1", [("end", "m4")]),
        "matrices": lambda: members.member_matrices(task.table("lens/matrices"), ["L0.H0", "L1.H1"], "ov"),
        "no overlap": lambda: shared.overlap_map(found.table("overlap").head(0)),
        "no generation": lambda: shared.generation_bars(
            found.table("generation").head(0), found.table("generation_random")
        ),
    }  # fmt: skip


DRAWN = ("map", "directions", "inclusion", "curve", "graph", "pattern", "matrices")


@pytest.mark.parametrize("name", DRAWN)
def test_svg_is_stable_and_refers_to_nothing(name: str, found: CircuitResults) -> None:
    draw = drawings(found)[name]
    first, second = svg(draw()), svg(draw())
    assert first == second
    ElementTree.fromstring(first)
    links = re.findall(r'(?:href|src)="([^"]*)"', first)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_nothing_to_show_is_said(found: CircuitResults) -> None:
    for name, draw in drawings(found).items():
        if name not in DRAWN:
            assert "no " in draw().axes[0].texts[-1].get_text() or name == "no overlap"


# --- figures show what the tables say -------------------------------------------------------------


def test_map_is_centred_on_zero_and_hatches_what_is_missing(found: CircuitResults) -> None:
    heads = patching.select(found.tasks["ioi"].effects, point="z")
    heads.loc[2, "effect"] = np.nan
    axes = patching.effect_map(heads, "effect").axes[0]
    norm = axes.images[0].norm
    assert norm.vmin == -norm.vmax == -heads["effect"].abs().max()
    assert len(axes.patches) == 1 and len(axes.texts) == LAYERS * HEADS - 1
    grid = axes.images[0].get_array()
    assert grid[1, 2] == heads.query("layer == 1 and head == 2")["effect"].item()


def test_bars_are_ordered_and_pale_where_unsure(found: CircuitResults) -> None:
    heads = patching.select(found.tasks["ioi"].effects, point="z")
    heads["p_fdr"] = np.where(np.arange(len(heads)) % 2, 0.01, 0.5)
    axes = patching.top_effects(heads, "effect", 5).axes[0]
    order = heads.reindex(heads["effect"].abs().sort_values(ascending=False).index).head(5)
    assert [t.get_text() for t in axes.get_yticklabels()] == order["component"].tolist()
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axes.patches}
    for place, row in enumerate(order.itertuples()):
        assert bars[place].get_width() == pytest.approx(row.effect)
        assert bars[place].get_alpha() == (1.0 if row.p_fdr < 0.05 else 0.35)


def test_inclusion_frames_the_circuit(found: CircuitResults) -> None:
    table = found.tasks["ioi"].table("nodes/stability")
    axes = nodes.inclusion_map(table).axes[0]
    framed = {tuple(np.round(np.add(p.get_xy(), 0.46)).astype(int)) for p in axes.patches}
    inside = table[table["in_circuit"]]
    assert framed == {
        (HEADS if h < 0 else h, n) for n, h in zip(inside["layer"], inside["head"], strict=True)
    }


def test_curves_of_both_rankings_and_the_random_band(found: CircuitResults) -> None:
    curve = found.tasks["numerals"].table("edges/curve")
    curve.loc[curve["signed"], "faithfulness"] = 0.5
    figure = edges.faithfulness_curves(curve, signed=True)
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), 0.5)
    labels = [t.get_text() for t in figure.legends[0].texts]
    assert labels == ["EAP", "EAP-IG, inputs", "random edges, 95 % band"]


def test_lens_shows_answer_and_distractors_after_blocks_only(found: CircuitResults) -> None:
    table = found.tasks["numerals"].table("lens/logit_lens")
    axes = lens.lens_curves(table, "probability").axes[0]
    assert [line.get_label() for line in axes.lines] == ["answer", "wrong", "answer-2", "answer+1"]
    own = table.query("norm == 'final' and token == 'answer' and point != 'resid_mid'")
    assert np.allclose(axes.lines[0].get_ydata(), own["probability"])
    assert axes.lines[0].get_xdata().tolist() == [-1, 0, 1, 2]


def test_pattern_frames_the_cells_of_roles(found: CircuitResults) -> None:
    table = found.tasks["numerals"].table("lens/patterns")
    axes = attention.mean_pattern(
        table, "L1.H1", [("end", "m4"), ("m3", "end"), ("end", "x")]
    ).axes[0]
    assert [p.get_xy() for p in axes.patches] == [(2.5, 4.5)]  # key m4 at 3, query end at 5
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "<|bos|>",
        "m3",
        "↵",
        "m4",
        "…",
        "end",
    ]
    cell = table.query("component == 'L1.H1' and query == 5 and key == 3")["attention"].item()
    assert axes.images[0].get_array()[5, 3] == pytest.approx(cell)


def test_salient_roles_are_above_chance(found: CircuitResults) -> None:
    table = found.tasks["numerals"].table("lens/attention")
    table.loc[table["component"] == "L0.H0", "attention"] = 0.25
    assert attention.salient_roles(table, "L0.H0") == []
    table.loc[(table["component"] == "L0.H0") & (table["key"] == "m4"), "attention"] = 0.9
    assert attention.salient_roles(table, "L0.H0") == [("end", "m4")]


def test_member_matrices_are_centred_in_rows(found: CircuitResults) -> None:
    table = found.tasks["numerals"].table("lens/matrices")
    figure = members.member_matrices(table, ["L2.H1"], "qk")
    grid = figure.axes[0].images[0].get_array()
    own = table[table["component"] == "L2.H1"]["qk"].to_numpy().reshape(5, 5)
    assert np.allclose(grid, own - own.mean(1, keepdims=True))


def test_labels_never_meet() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 25))
    figure, axes = new_figure(4, 4)
    axes.plot(x, y, "o")
    label_points(axes, x, y, [f"L{i}.H{i}" for i in range(25)])
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in axes.texts]
    assert len(boxes) >= 8
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


# --- graphs ---------------------------------------------------------------------------------------


def test_names_of_edges_are_taken_apart() -> None:
    names = ["embed -> L0.H1.q", "L0.mlp -> L2.mlp", "L1.H3 -> logits", "L0.H0 -> L1.KV0.v"]
    table = drawing.edge_rows(names)
    assert table["node"].tolist() == ["L0.H1", "L2.mlp", "logits", "L1.KV0"]
    assert table["kind"].tolist() == ["q", "mlp", "logits", "v"] and table["score"].isna().all()
    effects = pd.DataFrame({"source": ["embed"], "destination": ["L0.H1.q"], "score": [-2.0]})
    assert drawing.edge_rows(names, effects)["score"][0] == -2


def every_edge(graph: Graph) -> pd.DataFrame:
    source, destination = np.nonzero(graph.edges)
    names = [graph.edge_name(s, d) for s, d in zip(source, destination, strict=True)]
    score = np.linspace(-1, 1, len(names))
    return drawing.edge_rows(names).assign(score=score)


@pytest.mark.parametrize("graph", [GRAPH, Graph(2, 4, 2)])
def test_nodes_of_a_graph_never_meet_and_edges_lead_upward(graph: Graph) -> None:
    table = every_edge(graph)
    names = [*table["source"], *table["node"]]
    layout = drawing._layout(names, zip(table["source"], table["node"], strict=True))
    places = np.array(list(layout.place.values()))
    apart = np.abs(places[:, None] - places[None])
    meet = (apart[..., 0] < drawing.BOX + 0.04) & (apart[..., 1] < drawing.TALL + 0.04)
    assert meet.sum() == len(places)  # each with itself
    assert (
        places[:, 0].min() > drawing.BOX / 2 and places[:, 0].max() < layout.width - drawing.BOX / 2
    )
    for source, node in zip(table["source"], table["node"], strict=True):
        assert layout.place[source][1] < layout.place[node][1]


def test_only_the_strongest_edges_are_drawn_as_wide_as_they_are(found: CircuitResults) -> None:
    table = every_edge(GRAPH)
    axes = drawing.circuit_graph(table, inputs=True, most=6).axes[0]
    drawn = [p for p in axes.patches if p.__class__.__name__ == "PathPatch"]
    assert len(drawn) == 6
    strong = drawing.strongest(table, 6)["score"].abs()
    assert sorted(p.get_linewidth() for p in drawn) == pytest.approx(
        sorted(0.5 + 3.5 * strong / strong.max())
    )
    assert sum(p.get_linestyle() == "--" for p in drawn) == 3  # those that harm
    both = drawing.circuit_graph(table, inputs=False, most=400).axes[0]
    pairs = set(zip(table["source"], table["node"], strict=True))
    assert sum(p.__class__.__name__ == "PathPatch" for p in both.patches) == len(pairs)


def test_overlay_stripes_nodes_by_task_and_frames_shared_ones() -> None:
    nodes_of = {"a": ["L0.H0", "L1.mlp"], "b": ["L0.H0", "L1.H2"]}
    edge = drawing.edge_rows(["L0.H0 -> L1.mlp", "embed -> L0.H0.q"]).assign(score=-1.0)
    axes = drawing.overlay_graph(nodes_of, {"a": edge}).axes[0]
    assert (
        sum(p.__class__.__name__ == "PathPatch" for p in axes.patches) == 1
    )  # embed is in no circuit
    frames = [p for p in axes.patches if not p.get_fill() and p.__class__.__name__ == "Rectangle"]
    assert sorted(p.get_linewidth() for p in frames) == [0.8, 0.8, 2.2]
    words_ = {t.get_text() for t in axes.texts}
    assert {"L0.H0", "L1.MLP", "L1.H2"} <= words_


# --- tables ---------------------------------------------------------------------------------------


def test_summary_has_denominators_intervals_and_controls(found: CircuitResults) -> None:
    columns, rows = words.summary_rows(found)
    assert [row[0] for row in rows] == list(TASKS) and len(columns) == len(rows[0])
    row = dict(zip(columns, rows[0], strict=True))
    assert row["prompts found on / tested on"] == "6 / 4" and row["heads"].endswith(" of 12")
    assert "84.0 [79.0, 88.0]" in rows[0] and "20.0, 55.0, 0.050 (20 circuits)" in rows[0]


def test_roles_are_listed_with_measurements_only(found: CircuitResults) -> None:
    table = found.tasks["numerals"].roles
    table = table.assign(effect=0.0, labels="")
    table.loc[3, "labels"] = "induction"
    table.loc[4, "effect"] = -0.2
    columns, rows = words.role_rows(table)
    assert [row[0] for row in rows] == ["L0.H3", "L1.H0"]
    assert rows[1][1] == "none" and rows[1][2] == "−0.20" and len(columns) == len(rows[0])
    assert words.role_rows(found.tasks["ioi"].roles)[1][0][-1] == "–"


def test_transitions_without_members_have_no_published_count(found: CircuitResults) -> None:
    table = found.tasks["numerals"].table("lens/transitions")
    columns, rows = words.transition_rows(table)
    assert (
        len(rows) == LAYERS and "[" in rows[0][columns.index("any earlier member, then the answer")]
    )
    assert words.transition_rows(table.drop(columns=["earlier", "earlier_share"]))[1][0][6] == "–"
    assert words.transition_rows(found.tasks["ioi"].table("lens/transitions"))[1] == []


def test_matches_that_are_chance_are_left_out(found: CircuitResults) -> None:
    table = found.tasks["numerals"].table("lens/qk")
    _, rows = words.qk_rows(table, 100)
    sure = table.query("content_p_fdr < 0.05 and query != key")
    assert len(rows) == len(sure) and {row[0] for row in rows} == set(sure["component"])


def test_scores_of_edges_say_of_how_many_prompts_they_are(found: CircuitResults) -> None:
    """Exact effects are measured on few prompts; the circuit was found on more."""
    task = replace(found.tasks["numerals"])
    effects = task.edge_effects.copy()
    effects.loc[effects["method"] == "exact", "pairs"] = 2
    task.__dict__["edge_effects"] = effects
    said = "exact effects, mean over 2 discovery prompts"
    assert said in words.edge_effect_rows(task)[0][1]
    assert said in page.drawing_part(task).text
    columns, rows = words.agreement_rows(task)
    assert columns[1] == "discovery prompts" and {row[1] for row in rows} == {"2"}


def test_no_p_value_is_zero(found: CircuitResults) -> None:
    paths = found.tasks["numerals"].table("edges/paths").assign(p_fdr=1e-7)
    assert {row[-1] for row in words.path_rows(paths)[1]} == {"< 0.001"}
    assert [html.probability(p) for p in (None, float("nan"), 0.00049, 0.0005, 0.25)] == [
        "–", "–", "< 0.001", "0.001", "0.250",
    ]  # fmt: skip


def test_captions_leave_nothing_open() -> None:
    for name, text in captions._TEXTS.items():
        wanted = set(re.findall(r"\{(\w+)\}", text))
        filled = captions.caption(name, **dict.fromkeys(wanted, "x"))
        assert "{" not in filled and "\n" not in filled and filled.endswith(".")


# --- the page -------------------------------------------------------------------------------------


def test_tasks_are_compared(found: CircuitResults) -> None:
    text = (
        page.overlay_part(found).text
        + page.shared_part(found).text
        + page.repeated_part(found).text
    )
    assert text.count("<figure") == 5
    published = pd.DataFrame(
        [
            ("ioi", "role", "L9.H9", "mover", "name mover", "same", "<b>"),
            ("ioi", "LD", "", 3.1, 3.56, -0.46, "x"),
        ],
        columns=["task", "quantity", "item", "ours", "published", "difference", "source"],
    )
    shown = page.published_part(published).text
    assert "&lt;b&gt;" in shown and "−0.46" in shown and page.published_part(None).text == ""


def test_index_links_the_page_of_circuits(found: CircuitResults) -> None:
    circuit = found.tasks["ioi"].circuit
    entry = CircuitEntry("m <b>", "ioi", "m/circuits.html", circuit)
    text = index_page([], {}, circuits=[entry])
    assert "<a href='m/circuits.html'>" in text and "<td>m &lt;b&gt;</td>" in text
    assert "84.0 [79.0, 88.0]" in text and "20.0, 55.0, 0.050" in text
    assert "<h2>Circuits" not in index_page([], {})
    circuit = {**circuit, "controls": {}}
    assert "–, –, –" in index_page([], {}, circuits=[CircuitEntry("m", "ioi", "x", circuit)])


def test_notebook_runs_and_its_page_refers_to_nothing(tmp_path: Path) -> None:
    files = write_circuits(tmp_path, ("numerals",))
    source = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") for cell in source["cells"])
    assert source["cells"][0]["metadata"]["tags"] == ["parameters"]
    executed = execute_notebook(NOTEBOOK, tmp_path / "log.ipynb", files)
    text = notebook_page(executed, "Circuits", {"a": 1})
    shown = re.sub(r"base64,[^']*", "", text)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert text.count("<script") == 1 and "http" not in shown and ">nan" not in shown
    assert text.count("<h2") == 8 and text.count("<figure") == text.count("<figcaption>") >= 20
