"""Figures, tables and example texts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_heads import HOSTILE, TOKENS, head_events, write_results

from mechatlas.figures import heads as draw
from mechatlas.figures import html, results
from mechatlas.figures.examples import (
    Example,
    WindowTexts,
    example_html,
    example_text,
    examples_html,
    shown_pieces,
    top_examples,
)
from mechatlas.figures.style import svg
from mechatlas.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def found(paths: dict[str, str]) -> results.HeadResults:
    return results.read_results(
        *(paths[name] for name in ("explanations", "scores", "clusters", "curve"))
    )


@pytest.fixture(scope="module")
def drawings(found: results.HeadResults) -> dict:
    table = results.head_table(found)
    return {
        "map": lambda: draw.layer_head_map(table, "loss_recovered", "loss recovered"),
        "controls": lambda: draw.score_against_controls(found.scores, "iou", "IoU"),
        "distribution": lambda: draw.score_distribution(found.scores, "iou", "IoU"),
        "recovered": lambda: draw.interval_plot(found.scores, "loss_recovered", "loss recovered"),
        "nothing": lambda: draw.interval_plot(found.scores, "auc_negative_same_key", "AUC"),
        "curve": lambda: draw.replacement_curve(found.curve),
        "clusters": lambda: draw.clusters_overview(results.cluster_sizes(found, table), 3),
        "no clusters": lambda: draw.clusters_overview([], 0),
    }


NAMES = (
    "map",
    "controls",
    "distribution",
    "recovered",
    "nothing",
    "curve",
    "clusters",
    "no clusters",
)


@pytest.mark.parametrize("name", NAMES)
def test_svg_is_stable_and_refers_to_nothing(name: str, drawings: dict) -> None:
    first, second = svg(drawings[name]()), svg(drawings[name]())
    assert first == second
    ElementTree.fromstring(first)
    links = re.findall(r'(?:href|src)="([^"]*)"', first)
    assert (
        all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        and "<!DOCTYPE" not in first
        and "url(http" not in first
    )


def test_map_prints_values_and_hatches_what_is_missing(found: results.HeadResults) -> None:
    table = results.head_table(found)
    (axes, _) = draw.layer_head_map(table, "loss_recovered", "x").axes
    printed = [t.get_text() for t in axes.texts]
    missing = int(table["loss_recovered"].isna().sum())
    assert missing == 1 and len(axes.patches) == missing
    assert len(printed) == len(table) - missing
    assert f"{table['loss_recovered'].iloc[0]:.2f}" in printed


def test_map_of_a_large_model_prints_nothing() -> None:
    layers, heads = np.divmod(np.arange(24 * 32), 32)
    table = pd.DataFrame({"layer": layers, "head": heads, "iou": np.linspace(-3, 1, 24 * 32)})
    axes = draw.layer_head_map(table, "iou", "IoU").axes[0]
    assert not axes.texts and axes.images[0].norm.vmin == -1


def test_heads_are_ordered_by_score(found: results.HeadResults) -> None:
    axes = draw.score_against_controls(found.scores, "iou", "IoU").axes[0]
    own = found.scores.query("metric == 'iou' and control == 'none'").sort_values(
        "value", ascending=False
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == own["unit"].tolist()
    lines = {
        line.get_label(): line.get_ydata()[np.argsort(line.get_xdata())] for line in axes.lines
    }
    assert np.allclose(lines["explanation"], own["value"])
    swapped = found.scores.query("metric == 'iou' and control == 'swapped'").set_index("unit")[
        "value"
    ]
    assert np.allclose(lines["another head's explanation"], swapped[own["unit"]])


def test_curve_draws_every_order(found: results.HeadResults) -> None:
    axes = draw.replacement_curve(found.curve).axes[0]
    best = found.curve[found.curve["order"] == "best"].sort_values("share")
    assert np.allclose(axes.lines[0].get_ydata(), best["ratio"])
    assert axes.get_yscale() == "log" and len(axes.get_legend().texts) == 3


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b a='\"'>&", "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;"),
        ("a\nb\tc", "a↵b⇥c"),
        ("\x00\x1b[31m", "[U+0000][U+001B][31m"),
        ("\u202eevil\u200b\u2028", "[U+202E]evil[U+200B][U+2028]"),
        ("\ud800", "[U+D800]"),
        ("é 中 \ufffd", "é 中 \ufffd"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert html.escape(text) == shown


def test_numbers() -> None:
    assert html.number(-0.004) == "0.00" and html.number(-0.4) == "−0.40"
    assert html.number(float("nan")) == html.number(None) == html.MISSING and html.number(3) == "3"
    assert html.with_interval(0.5, 0.4, 0.6) == "0.50 [0.40, 0.60]"
    assert html.with_interval(0.5, np.nan, np.nan) == "0.50"
    assert html.with_interval(np.nan, 0.1, 0.2) == html.MISSING


def test_table_escapes_cells_and_heads() -> None:
    text = html.table([HOSTILE], [[HOSTILE], [html.Html("<i>x</i>")]]).text
    assert "<script" not in text and "<i>x</i>" in text
    with pytest.raises(ValueError, match="zip"):
        html.table(["a", "b"], [["1"]])


# --- examples -------------------------------------------------------------------------------------


def test_pieces_cover_and_do_not_overlap() -> None:
    pieces = shown_pieces(100, 60, [3, 20, 55])
    places = [at for piece in pieces for at in piece]
    assert len(places) == len(set(places)) and places == sorted(places)
    assert {3, 20, 55, 60, 63} <= set(places) and 40 not in places and places[0] == 0
    assert shown_pieces(5, 4, [1]) == [range(0, 5)]


def test_examples_are_the_strongest_of_different_test_documents() -> None:
    events = head_events([(0, 1)], np.random.default_rng(0))
    examples = top_examples(events, 0, 1, 3)
    top = events[(events["role"] == "top") & (events["split"] == "test")]
    best = top.sort_values("write_norm", ascending=False).iloc[0]
    assert (examples[0].window, examples[0].query) == (best["window"], best["query"])
    assert {e.split for e in examples} == {"test"} and len({e.doc for e in examples}) == 3
    assert examples[0].keys[best["key"]] == pytest.approx(best["attention"])
    assert top_examples(events, 5, 5, 3) == []


def test_example_marks_query_and_keys() -> None:
    strings = ["<bos>", " one", " two", " three"]
    example = Example(0, "d", "test", 3, {1: 0.75, 3: 0.2})
    text = example_html(strings, example).text
    assert " <span class='mx-key' style='--a:0.75' title='attention 0.75'>one</span>" in text
    assert (
        "<span class='mx-query' title='query'><span class='mx-key'" in text
        and "&lt;bos&gt; " in text
    )
    assert example_text(strings, example) == "<bos> [[one 0.75]] two >>[[three 0.20]]<<"


def test_hostile_tokens_are_escaped(paths: dict[str, str]) -> None:
    texts = WindowTexts(pd.read_parquet(paths["windows"]), load_tokenizer(paths["model"]))
    events = pd.read_parquet(paths["events"])
    text = "".join(examples_html(events, texts, 0, head, 5).text for head in range(4))
    assert "<script" not in text and "alert(&#x27;x&#x27;)" in text
    assert not set(text) & set("\u202e\u200b\x1b\n")
    for token in TOKENS:
        assert html.escape(token) in text


def test_without_events_there_is_a_note(paths: dict[str, str]) -> None:
    events = pd.read_parquet(paths["events"]).head(0)
    assert "No events" in examples_html(events, {}, 0, 0, 3).text


def test_library_of_figures_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, mechatlas.figures.notebook, mechatlas.figures.markdown, mechatlas.figures.index; "
    code += "assert not {'torch', 'sklearn', 'matplotlib', 'IPython'} & set(sys.modules)"
    folder = Path(html.__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(folder)})
