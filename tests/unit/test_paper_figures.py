"""Figures of a paper: nothing clipped at a journal's width, the same bytes, data and published numbers beside them."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_circuits import write_circuits
from fake_heads import write_results
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.ttLib import TTFont
from matplotlib.font_manager import findfont
from matplotlib.text import Text

from mechatlas.figures.circuits.results import CircuitResults, read_circuits
from mechatlas.figures.paper import dictionaries, scores, transcoders
from mechatlas.figures.paper.circuits import (
    circuit_figures,
    edge_figures,
    node_figures,
    patching_figures,
    shared_figures,
)
from mechatlas.figures.paper.files import Drawn, drawn_at, write_drawn
from mechatlas.figures.paper.fit import clipped, colliding, fit, most_columns
from mechatlas.figures.paper.heads import head_figures
from mechatlas.figures.paper.published import Published, mark
from mechatlas.figures.reference import HAYES_2026
from mechatlas.figures.results import read_results
from mechatlas.figures.style import COLUMN, PAGE, VARIANTS, new_figure, svg, write_pdf

SOURCE = "A paper 2023"


def published_table() -> pd.DataFrame:
    rows = [
        ("numerals", "percent left without it", "L0.H0", 70.0, 64.0),
        ("numerals", "percent left without it", "L1.mlp", 90.0, 95.0),
        ("numerals", "percent left without it, circuit", "L0.H0", 50.0, 30.0),
        ("numerals", "OV copy percent", "L1.H1", 20.0, 100.0),
        ("numerals", "in circuit", "L0.H0", 1.0, 1.0),
        ("numerals", "role: mover", "L2.H3", 0.0, 1.0),
        ("numerals", "logit lens: earlier member becomes answer, percent", "L1", 40.0, 33.0),
        ("numerals", "circuit percent on this task", "ioi", 12.0, 20.0),
    ]
    table = pd.DataFrame(rows, columns=["task", "quantity", "item", "ours", "published"])
    return table.assign(difference=table["ours"] - table["published"], source=SOURCE)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> CircuitResults:
    files = write_circuits(tmp_path_factory.mktemp("circuits"))
    return read_circuits(files["name"], files["tasks"], files["folder"], files["shared"])


@pytest.fixture(scope="module")
def circuits(found: CircuitResults) -> dict[str, Drawn]:
    return {drawn.name: drawn for drawn in circuit_figures(found, published_table())}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    paths = write_results(tmp_path_factory.mktemp("heads"), openai=True)
    results = read_results(*(paths[k] for k in ("explanations", "scores", "clusters", "curve")))
    return {drawn.name: drawn for drawn in head_figures(results)}


def check(drawn: Drawn) -> None:
    width = drawn.figure.get_size_inches()[0]
    assert width <= PAGE and (
        width in (COLUMN, PAGE) or "graph" in drawn.name or "over" in drawn.name
    )
    assert clipped(drawn.figure) == [], drawn.name
    assert colliding(drawn.figure) == [], drawn.name
    texts = [t for t in drawn.figure.findobj(Text) if t.get_text()]
    sizes = [text.get_fontsize() for text in texts]
    assert min(sizes) >= 4 and max(sizes) <= 7, drawn.name
    assert len(drawn.data) and drawn.caption.endswith(".") and "{" not in drawn.caption


def test_figures_of_circuits_fit_a_journal(circuits: dict[str, Drawn]) -> None:
    for drawn in circuits.values():
        check(drawn)
    wanted = {
        *("patching-map", "patching-top", "node-ablation", "circuit", "pruning", "random-circuits", "edge-curve"),
        *("edge-graph", "edge-graph-heads", "attention", "lens-probability", "lens-rank", "ov"),
    }  # fmt: skip
    for task in ("numerals", "ioi"):
        assert {f"{task}_{name}" for name in wanted} <= circuits.keys()
    assert {"numerals_lens-transitions", "numerals_ov-matrices"} <= circuits.keys()
    assert {"overlay", "overlap", "cross-task", "generation", "published"} <= circuits.keys()
    patterns = [name for name in circuits if "_pattern_" in name]
    assert len(patterns) == 4  # two heads a task


def test_figures_of_heads_fit_a_journal(heads: dict[str, Drawn]) -> None:
    for drawn in heads.values():
        check(drawn)
    assert {
        "heads_map_programs",
        "heads_histogram_iou_openai",
        "heads_layers_iou_programs",
    } <= heads.keys()
    numbers = heads["heads_published"].data
    assert (numbers["difference"] == numbers["ours"] - numbers["published"]).all()
    assert set(numbers["published"]) <= {HAYES_2026.mean_iou, HAYES_2026.ratio}


def test_published_numbers_stand_in_the_data(
    circuits: dict[str, Drawn], found: CircuitResults
) -> None:
    ablation = circuits["numerals_node-ablation"].data
    own = found.tasks["numerals"].table("nodes/effects").set_index(["base", "component"])["drop"]
    assert np.allclose(
        ablation.set_index(["base", "component"])["percent_left"].sort_index(),
        (100 - own).sort_index(),
    )
    full = ablation[ablation["base"] == "full"].set_index("component")
    assert (full.loc["L0.H0", "published"], full.loc["L0.H0", "difference"]) == (64, 6)
    assert full["published"].notna().sum() == 2
    inside = ablation[ablation["base"] == "circuit"].set_index("component")
    assert inside.loc["L0.H0", "published"] == 30
    roles = circuits["numerals_patching-map"].data.set_index("component")["published_roles"]
    assert roles["L2.H3"] == "mover" and roles.notna().sum() == 1
    cross = circuits["cross-task"].data.query("circuit == 'ioi' and data == 'numerals'")
    assert cross["published"].tolist() == [20]
    assert "published_roles" not in circuits["ioi_patching-map"].data


def test_published_values_are_marked_in_the_unit_of_the_figure(circuits: dict[str, Drawn]) -> None:
    def marks(name: str) -> list:
        axes = circuits[name].figure.axes[0]
        return [line for line in axes.lines if line.get_label() == "published"]

    (points,) = marks("numerals_node-ablation")
    axes = circuits["numerals_node-ablation"].figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    shown = {names[int(y)]: x for x, y in zip(*points.get_data(), strict=True)}
    known = {"L0.H0": 36, "L1.mlp": 5}
    assert shown == {name: known[name] for name in names if name in known} and shown
    (points,) = marks("numerals_lens-transitions")
    assert points.get_xdata().tolist() == [1] and points.get_ydata().tolist() == [0.33]
    assert marks("ioi_node-ablation") == []
    legend = circuits["numerals_node-ablation"].figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()][-1] == "published"


def test_nothing_published_leaves_data_as_they_are() -> None:
    data = pd.DataFrame({"component": ["L0.H0"], "x": [1]})
    nothing = Published()
    assert not nothing and nothing.beside(data, "ioi", "in circuit") is data
    _, axes = new_figure(3, 2)
    assert not mark(axes, {"L0.H0": 1.0}) and not axes.lines


def test_files_are_the_same_bytes_each_time(
    circuits: dict[str, Drawn], found: CircuitResults, tmp_path: Path
) -> None:
    """Those of figures that other tests have looked at, and of the same ones drawn anew."""
    chosen = ("numerals_patching-map", "numerals_edge-graph", "overlap", "numerals_node-ablation")
    again = {drawn.name: drawn for drawn in drawn_anew(found)}
    for place, drawn in (("a", circuits), ("b", again)):
        write_drawn(tmp_path / place, [drawn[name] for name in chosen], {"model": "m"})
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    endings = ("csv", "pdf", "png", "svg")
    assert [n for n in written if "captions" not in n] == sorted(
        f"{name}.{end}" for name in chosen for end in endings
    )
    for name in written:
        one, two = ((tmp_path / place / name).read_bytes() for place in "ab")
        assert one == two, name
    assert json.loads((tmp_path / "a" / "captions.json").read_text()).keys() == set(chosen)
    data = pd.read_csv(tmp_path / "a" / "numerals_node-ablation.csv")
    assert {"component", "drop", "low", "high", "published", "difference"} <= set(data)


def drawn_anew(found: CircuitResults) -> Iterator[Drawn]:
    """Draw some figures of one task, and those of all tasks together."""
    published = Published(published_table())
    for part in (patching_figures, node_figures, edge_figures):
        yield from part(found.tasks["numerals"], published)
    yield from shared_figures(found, published)


def test_letters_of_a_pdf_are_whole_outlines_and_nothing_else(tmp_path: Path) -> None:
    """Every letter that is drawn is in an embedded font with the outline that it has in the font's file."""
    figure, axes = new_figure(3, 2)
    axes.set_title("AVATAR, T. Qualit\u00e4t \u2212 1 fi")
    axes.set_axis_off()
    write_pdf(figure, tmp_path / "x.pdf")
    # Fonts are stored as streams of their own; a TrueType font begins with its version.
    content = (tmp_path / "x.pdf").read_bytes()
    parts = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    streams = [zlib.decompress(part) for part in parts]
    fonts = [TTFont(io.BytesIO(s)) for s in streams if s.startswith(b"\x00\x01\x00\x00")]
    whole = TTFont(findfont("DejaVu Sans"))
    found: dict[str, TTFont] = {}
    for own in fonts:
        assert not any(name in own for name in ("GSUB", "GPOS", "GDEF", "MATH"))
        found |= dict.fromkeys(own.getGlyphOrder(), own)
    # The last two letters may be one.
    letters = set(axes.get_title()[:-2]) - {" "}
    assert {whole.getBestCmap()[ord(letter)] for letter in letters} <= set(found)
    assert len(found) < 40

    def outline(font: TTFont, name: str) -> list:
        pen = DecomposingRecordingPen(font.getGlyphSet())
        font.getGlyphSet()[name].draw(pen)
        return [pen.value, font["hmtx"][name]]

    found.pop(".notdef")  # is empty, as nothing is drawn with it
    for name, own in found.items():
        assert outline(own, name) == outline(whole, name), name


def test_pdf_says_neither_when_nor_by_what(tmp_path: Path) -> None:
    figure, axes = new_figure(3, 2)
    axes.plot([0, 1], [0, 1])
    write_pdf(figure, tmp_path / "x.pdf")
    content = (tmp_path / "x.pdf").read_bytes()
    assert content.startswith(b"%PDF") and not re.search(rb"CreationDate|Producer|Creator", content)


def test_one_name_is_for_one_figure(tmp_path: Path) -> None:
    figure, axes = new_figure(3, 2)
    axes.plot([0, 1], [0, 1])
    one = Drawn("x", figure, pd.DataFrame({"a": [1]}), "A caption.")
    with pytest.raises(ValueError, match="two figures are named x"):
        write_drawn(tmp_path, [one, one], {})


def test_what_does_not_fit_is_seen_and_mended() -> None:
    def crowded():
        figure, axes = new_figure(8, 3)
        axes.plot(range(30), range(30), label="a line with rather a long name")
        axes.plot(range(30), range(30), label="another line with a long name")
        axes.set_xticks(range(30), [f"name {i}" for i in range(30)], fontsize=9)
        figure.legend(loc="outside upper left", ncols=2)
        return figure

    raw = crowded()
    raw.set_size_inches(2.0, 2.0)
    raw.draw_without_rendering()
    assert colliding(raw) and clipped(raw)
    mended = crowded()
    mended.set_size_inches(2.0, 2.0)
    mended = fit(mended)
    assert colliding(mended) == [] and clipped(mended) == []
    assert mended.axes[0].get_xticklabels()[1].get_text() != "name 1"


def test_columns_of_a_legend() -> None:
    assert most_columns([10, 10, 10, 10], 100, 2) == 4
    assert (
        most_columns([10, 40, 10, 40], 60, 2) == 1
    )  # the second column would start with a long one
    assert most_columns([40, 40, 10, 10], 60, 2) == 2
    assert most_columns([10], 1, 2) == 1


def test_figures_on_a_page_are_what_they_were() -> None:
    """The widths of a journal hold inside `at_width` only."""
    figure, _ = new_figure(8, 3)
    assert figure.get_size_inches().tolist() == [8, 3]
    assert "<svg" in svg(figure)


def test_histograms_count_all_units_and_trends_are_means() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({
        "layer": np.tile([0, 1], 20), "value": rng.uniform(-1.5, 1, 40), "control": ["none", "swapped"] * 20,
    })  # fmt: skip
    axes = drawn_at(COLUMN, scores.score_histogram, rows, "IoU", VARIANTS).axes[0]
    steps = [patch for patch in axes.patches if patch.__class__.__name__ == "StepPatch"]
    assert [int(patch.get_data().values.sum()) for patch in steps] == [20, 20]
    axes = drawn_at(COLUMN, scores.layer_trend, rows, "IoU", VARIANTS).axes[0]
    means = rows[rows["control"] == "swapped"].groupby("layer")["value"].mean()
    (line,) = [own for own in axes.lines if own.get_label() == VARIANTS["swapped"][2]]
    assert np.allclose(line.get_ydata(), means)


def public_graph() -> dict:
    """A small graph in the public schema."""

    def node(name: str, layer: str, position: int, kind: str) -> dict:
        return {
            "node_id": name,
            "layer": layer,
            "ctx_idx": position,
            "feature_type": kind,
            "clerp": "",
        }

    feature = "cross layer transcoder"
    return {
        "metadata": {"prompt_tokens": ["<b>", " a", "\n"]},
        "nodes": [
            node("E_0_0", "E", 0, "embedding"),
            node("0_7_1", "0", 1, feature),
            node("0_9_1", "0", 1, feature),
            node("error_1_2", "1", 2, "mlp reconstruction error"),
            node("3_5_2", "3", 2, "logit"),
        ],
        "links": [
            {"source": "E_0_0", "target": "0_7_1", "weight": 0.5},
            {"source": "0_7_1", "target": "3_5_2", "weight": -2.0},
            {"source": "error_1_2", "target": "3_5_2", "weight": 1.0},
        ],
    }


def test_graphs_are_drawn_upward_with_the_strongest_edges() -> None:
    nodes, links = transcoders.graph_tables(public_graph())
    assert links["weight"].tolist() == [-2.0, 1.0, 0.5]
    assert nodes.set_index("id")["row"].to_dict() == {
        "E_0_0": -1, "0_7_1": 0, "0_9_1": 0, "error_1_2": 1, "3_5_2": 2,
    }  # fmt: skip
    place = transcoders.node_places(nodes)
    assert len(set(place.values())) == len(nodes)
    assert all(place[s][1] < place[t][1] for s, t in links[["source", "target"]].to_numpy())
    consistency = pd.DataFrame(
        {"predicted": [1.0, -1.0], "measured_frozen": [1.0, -1.0], "measured_free": [0.5, 2.0]}
    )
    for drawn in transcoders.graph_figures("x", public_graph(), consistency):
        check(drawn)


def test_training_and_frontier_of_transcoders() -> None:
    steps = pd.DataFrame({"step": np.repeat(range(1, 40), 2), "layer": [0, 1] * 39}).assign(
        fvu=lambda t: 1 / t["step"], l0=16.0, dead_share=0.0
    )
    check(dictionaries.training_figure("clt", steps, "features"))
    rows = [
        (layer, metric, value, value - 0.01, value + 0.01)
        for layer in (-1, 0, 1)
        for metric, value in (("fvu", 0.1), ("l0", 12.0), ("dead_share", 0.0))
    ]
    table = pd.DataFrame(rows, columns=["layer", "metric", "value", "low", "high"])
    points = transcoders.frontier_points({"a": table, "b": table.assign(value=table["value"] / 2)})
    assert points[["dictionary", "layer"]].to_numpy().tolist() == [
        ["b", 0],
        ["a", 0],
        ["b", 1],
        ["a", 1],
    ]
    assert points["l0"].tolist() == [6, 12, 6, 12] and points["fvu_high"].iloc[1] == pytest.approx(
        0.11
    )
