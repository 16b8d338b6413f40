"""What is made of graphs: forecast, supernodes, averages over prompts, the public JSON, the viewer page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from clt_makers import make_clt
from edge_models import make_model
from test_graph_influence import hand_graph

from mechatlas.circuits.graphs.attribute import Settings, attribute
from mechatlas.circuits.graphs.average import average_edges
from mechatlas.circuits.graphs.forecast import forecast
from mechatlas.circuits.graphs.graph import (
    ERROR,
    FEATURE,
    LOGIT,
    SHARED,
    TOKEN,
    node_name,
)
from mechatlas.circuits.graphs.influence import prune, scores
from mechatlas.circuits.graphs.public_json import cantor, from_public, to_public, uncantor
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.graphs.supernodes import (
    cluster_features,
    named_supernodes,
    supernode_edges,
)
from mechatlas.figures.graph_viewer import viewer_page
from mechatlas.io import UserError, write_json

TOKENS = torch.tensor([0, 7, 3, 22, 7, 39, 1])
HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
HOSTILE += ["\"&'`", "\u202e", "a", "b", "${x}"]


@pytest.fixture(scope="module")
def made():
    model = make_model()
    run = run_prompt(model, make_clt(d=model.config.d_model), TOKENS)
    return run, attribute(run)


# --- forecast ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_forecast_counts_what_the_graph_then_has(kind):
    model = make_model(kind)
    run = run_prompt(model, make_clt(d=model.config.d_model), TOKENS)
    graph = attribute(run)
    found = forecast(run, targets=int((graph.kind == LOGIT).sum()))
    assert found.features == (graph.kind == FEATURE).sum()
    assert found.rows == graph.has_row.sum()
    assert graph.edges.nnz <= found.edges < 1.5 * graph.edges.nnz
    assert found.seconds > 0 and found.memory_mb > found.file_mb > 0
    capped = forecast(run, settings=Settings(max_features=5))
    assert capped.rows == 15 and capped.edges < found.edges


# --- supernodes -------------------------------------------------------------------------------------


def test_features_with_the_same_edges_are_grouped():
    kinds = [FEATURE, FEATURE, FEATURE, TOKEN, TOKEN, LOGIT]
    edges = {(5, 0): 2, (5, 1): 1.8, (0, 3): 1, (1, 3): 1.1, (5, 2): 1, (2, 4): -3}
    graph = hand_graph(kinds, edges)
    graph.position[:3] = 1
    pruned = prune(graph, node_threshold=1, edge_threshold=1)
    (group,) = cluster_features(graph, pruned).values()
    assert group == [0, 1]
    assert cluster_features(graph, pruned, layer_span=0)  # all are of one layer
    graph.layer[1] = 5
    assert not cluster_features(graph, pruned)
    with pytest.raises(UserError, match="distance"):
        cluster_features(graph, pruned, distance=0)


def test_supernodes_by_hand_and_their_edges():
    graph = hand_graph([FEATURE, FEATURE, TOKEN, LOGIT], {(3, 0): 2, (3, 1): -1, (0, 2): 1, (1, 0): 4})  # fmt: skip
    names = [node_name(graph, node) for node in range(4)]
    groups = named_supernodes(graph, {"both": names[:2], "out": names[3:]})
    assert groups == {"both": [0, 1], "out": [3]}
    total = supernode_edges(graph.edges, [*groups.values(), [2]])
    assert total.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    with pytest.raises(UserError, match="no node 'L9/F9@9'"):
        named_supernodes(graph, {"x": ["L9/F9@9"]})
    with pytest.raises(UserError, match="in the supernodes 'a' and 'b'"):
        named_supernodes(graph, {"a": names[:1], "b": names[:1]})


# --- averages ---------------------------------------------------------------------------------------


def test_average_of_edges_with_intervals():
    graphs = []
    for i, weight in enumerate([1.0, 3.0, 2.0, 0.0]):
        graph = hand_graph([FEATURE, TOKEN, LOGIT], {(2, 0): weight, (0, 1): 1.0})
        graph.position[:] = [i % 3, 0, 2]  # the feature fires at other positions of the same role
        graphs.append(graph)
    slots = [["start", "start", "end"], ["a", "start", "end"], ["a", "b", "start"], ["start", "b", "c"]]  # fmt: skip
    table = average_edges(graphs, slots, seed=0, relative=False).set_index(["source", "target"])
    row = table.loc[("L0/F0@start", "target 0")]
    assert row["mean"] == pytest.approx(1.5) and (row["prompts"], row["of_prompts"]) == (3, 4)
    assert 0 <= row["low"] < 1.5 < row["high"] <= 3
    same = average_edges(graphs, slots, seed=0, relative=False)
    assert same.equals(average_edges(graphs, slots, seed=0, relative=False))
    assert not same.equals(average_edges(graphs, slots, seed=1, relative=False))


def test_the_interval_is_that_of_an_explicit_resampling(made):
    run, graph = made
    others = [attribute(run_prompt(run.model, run.clt, TOKENS.roll(i))) for i in (1, 2)]
    graphs = [graph, *others]
    slots = [list(range(7))] * 3
    table = average_edges(graphs, slots, seed=3, replicates=400)
    assert len(table) == 1000
    from mechatlas.circuits.graphs.average import slot_name
    from mechatlas.io import rng_for

    first = table.iloc[0]
    values = []
    for one in graphs:
        names = [slot_name(one, node, slots[0]) for node in range(len(one))]
        total = 0.0
        for t in (i for i, name in enumerate(names) if name == first["target"]):
            row = one.edges[[t]].toarray()[0]
            hits = [row[s] for s, name in enumerate(names) if name == first["source"]]
            total += sum(hits) / np.abs(row).sum()
        values.append(total)
    assert first["mean"] == pytest.approx(np.mean(values))
    counts = rng_for(3, "average_edges").multinomial(3, [1 / 3] * 3, size=400)
    means = (counts * values).sum(1) / 3
    assert (first["low"], first["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    alone = average_edges(graphs[:1], slots[:1], seed=0)
    assert alone["low"].isna().all()
    with pytest.raises(UserError, match="slots do not fit"):
        average_edges([graph], [[1, 2]], seed=0)


# --- public JSON ------------------------------------------------------------------------------------


def test_cantor_numbers_are_unique_and_reversible():
    pairs = [(layer, feature) for layer in range(30) for feature in range(0, 4000, 37)]
    numbers = [cantor(*pair) for pair in pairs]
    assert len(set(numbers)) == len(pairs)
    assert [uncantor(number) for number in numbers] == pairs
    assert cantor(0, 4) == 14 and cantor(3, 10**6) == uncantor_inverse(3, 10**6)


def uncantor_inverse(layer, feature):
    return sum(range(layer + feature + 1)) + feature


def test_public_json_has_the_schema_and_comes_back(made, tmp_path):
    _, graph = made
    pruned = prune(graph, node_threshold=0.9)
    texts = [f"t{i}" for i in range(7)]
    groups = cluster_features(graph, pruned)
    value = to_public(graph, pruned, texts, slug="demo", supernodes=groups, node_threshold=0.9)
    assert value["metadata"]["schema_version"] == 1
    assert set(value) == {"metadata", "qParams", "nodes", "links"}
    ids = [node["node_id"] for node in value["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {node["feature_type"] for node in value["nodes"]} <= {
        *("cross layer transcoder", "mlp reconstruction error", "embedding", "logit"),
    }
    known = set(ids)
    assert all({link["source"], link["target"]} <= known for link in value["links"])
    for group in value["qParams"]["supernodes"]:
        assert set(group[1:]) <= known
    write_json(tmp_path / "g.json", value, {})
    back = from_public(tmp_path / "g.json")
    kept = np.flatnonzero(pruned.nodes & graph.of_kind(*SHARED))
    for column in ("kind", "layer", "position", "feature"):
        assert np.array_equal(getattr(back, column), getattr(graph, column)[kept])
    assert np.array_equal(back.edges.toarray(), pruned.edges[kept][:, kept].toarray())
    again = to_public(back, prune(back, node_threshold=1, edge_threshold=1), texts, slug="demo")
    assert again["links"] == value["links"]


def test_extra_nodes_come_back_too(made):
    _, graph = made
    pruned = prune(graph, node_threshold=1, edge_threshold=1)
    value = to_public(graph, pruned, ["x"] * 7, slug="s", extra=True)
    back = from_public(value)
    kept = np.flatnonzero(pruned.nodes)
    for column in ("kind", "layer", "position"):
        assert np.array_equal(getattr(back, column), getattr(graph, column)[kept])
    assert abs(back.edges - pruned.edges[kept][:, kept]).max() == 0
    found, wanted = scores(back), scores(graph)
    assert found["completeness"] == pytest.approx(wanted["completeness"], rel=1e-6)


def test_an_error_and_a_feature_of_layer_0_have_different_ids():
    graph = hand_graph([FEATURE, ERROR, TOKEN, LOGIT], {(3, 0): 1, (3, 1): 1, (0, 2): 1})
    graph.layer[:2], graph.position[:2], graph.feature[:2] = [0, 4], 9, [4, -1]
    value = to_public(graph, prune(graph, node_threshold=1), ["x"] * 10, slug="s")
    assert [node["node_id"] for node in value["nodes"]][:2] == ["0_4_9", "error_4_9"]
    assert np.array_equal(from_public(value).feature[:2], [4, -1])


def test_a_graph_of_another_program_is_read():
    """As circuit-tracer writes it, with its ids for errors."""
    common = {"run_idx": 0, "reverse_ctx_idx": 0, "clerp": "", "influence": 0.1, "token_prob": 0.0}

    def node(name, number, layer, position, what, **more):
        keys = ("node_id", "feature", "layer", "ctx_idx", "feature_type")
        return common | dict(zip(keys, (name, number, layer, position, what), strict=True)) | more

    links = [("1_7_1", "3_9_1", -1.5), ("E_55_0", "1_7_1", 1.0)]
    value = {
        "metadata": {"slug": "x", "prompt_tokens": ["a", "b"]},
        "nodes": [
            node("1_7_1", 43, "1", 1, "cross layer transcoder", activation=2.5),
            node("0_1_1", -1, "1", 1, "mlp reconstruction error"),
            node("E_55_0", 55, "E", 0, "embedding"),
            node("3_9_1", 9, "3", 1, "logit", token_prob=0.6),
        ],
        "links": [dict(zip(("source", "target", "weight"), link, strict=True)) for link in links],
    }
    graph = from_public(value)
    assert graph.kind.tolist() == [FEATURE, ERROR, TOKEN, LOGIT]
    assert graph.layer.tolist() == [1, 1, -1, 2] and graph.feature.tolist() == [7, -1, 55, 9]
    assert graph.value.tolist() == [2.5, 0, 0, 0.6] and graph.edges[3, 0] == -1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("links"), "no graph of the public schema"),
        (lambda v: v["nodes"][0].update(feature_type="odd"), "'odd'"),
        (lambda v: v["nodes"].append(v["nodes"][0]), "occur twice"),
        (lambda v: v["links"].append({"source": "q", "target": "q", "weight": 1}), "no node q"),
        (lambda v: v["links"][0].update(weight="x"), "no graph of the public schema"),
    ],
)
def test_broken_graphs_are_one_clear_line(change, message):
    graph = hand_graph([FEATURE, TOKEN, LOGIT], {(2, 0): 1, (0, 1): 1})
    value = to_public(graph, prune(graph), ["a"] * 3, slug="s")
    change(value)
    with pytest.raises(UserError, match=message) as error:
        from_public(value)
    assert "\n" not in str(error.value)


# --- viewer -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(made):
    _, graph = made
    pruned = prune(graph, node_threshold=0.9)
    feature = int(np.flatnonzero(pruned.nodes & (graph.kind == FEATURE))[0])
    example = {"tokens": HOSTILE, "values": [0, 1, 2, 0, 0, 0, 0.5]}
    details = {feature: {"examples": [example], "up": [[HOSTILE[0], 1.5]], "down": [], "note": HOSTILE[1]}}  # fmt: skip
    labels = {feature: HOSTILE[0]}
    vocabulary = dict.fromkeys(range(40), HOSTILE[1])
    return viewer_page(
        graph, pruned, HOSTILE, title=HOSTILE[0], slug="demo", details=details, labels=labels,
        vocabulary=vocabulary, supernodes=cluster_features(graph, pruned), facts=[HOSTILE[1]],
    )  # fmt: skip


def test_page_holds_everything_and_hostile_texts_are_data(page):
    ours = page.split("<script>")
    assert len(ours) == 3  # the library and our script
    assert "<img" not in ours[0] + ours[2]
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", page)
    embedded = re.search(r'<script type="application/json" id="graph-data">(.*?)</script>', page)
    data = json.loads(embedded[1])
    assert data["tokens"][0] == HOSTILE[0]
    assert data["tokens"][3] == "[U+202E]"
    assert len(data["nodes"]) > 20 and len(data["links"]) > 20
    assert {name for name in data["details"]} <= {node["id"] for node in data["nodes"]}


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_page_runs_in_a_browser(page, tmp_path):
    """The script runs to its end, hostile texts stay text, filters, selection and both exports work."""
    probe = """<script>
    const v = window.viewer, out = {};
    out.title = document.querySelector("h1").textContent;
    out.images = document.querySelectorAll("img").length;
    out.count = document.getElementById("count").textContent;
    v.choose(0); out.panel = document.getElementById("panel").textContent.length;
    v.state.pinned.add(0); v.state.share = 0.3; v.choose(null);
    out.fewer = document.getElementById("count").textContent;
    v.state.grouped = true; v.draw();
    out.svg = v.svgText().slice(0, 4);
    out.png = chart.getDataURL({ type: "png" }).slice(0, 15);
    document.documentElement.innerHTML = "";
    document.documentElement.append(document.createTextNode("RES" + "ULT" + JSON.stringify(out) + "END"));
    </script>"""
    path = tmp_path / "page.html"
    path.write_text(page[: page.rindex("</body>")] + probe, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command = [CHROMIUM, *flags, "--dump-dom", f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"RESULT(.*)END", done.stdout)
    assert found, done.stderr[-2000:]
    out = json.loads(html.unescape(found[1]))
    assert out["title"] == HOSTILE[0] and out["images"] == 0
    assert re.match(r"\d+ of \d+ nodes", out["count"]) and out["fewer"] != out["count"]
    assert out["panel"] > 100
    assert (out["svg"], out["png"]) == ("<svg", "data:image/png;")
