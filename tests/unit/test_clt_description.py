"""What is said about a transcoder's features, against plain sums and interventions; its figures and its page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from clt_makers import make_clt
from edge_models import make_model
from planted_dictionary import write_chunk

from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.dictionaries import clt_description as describe
from mechatlas.dictionaries.importance import importance
from mechatlas.figures import transcoder_page
from mechatlas.figures import transcoders as draw
from mechatlas.figures.index import TranscoderEntry, index_page
from mechatlas.io import write_json

WINDOWS, LENGTH, LAYERS = 10, 9, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a model, a transcoder, what it reads [W, T, d] of each layer, and the shards of that."""
    model = make_model(dtype=torch.float32)
    clt = make_clt(d=model.config.d_model, dtype=torch.float32)
    tokens = torch.randint(1, 40, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    read: list[torch.Tensor] = []
    model.forward(tokens, {"resid_mid": lambda x, layer: read.append(x)}, logits=False)
    arrays = {("resid_mid", i): x.flatten(0, 1).numpy() for i, x in enumerate(read)}
    chunk = write_chunk(tmp_path_factory.mktemp("chunk") / "0000", arrays, window_len=LENGTH)
    return model, clt, tokens, read, chunk


def chosen_features():
    return [torch.tensor([3, 1, 7]), torch.tensor([0, 2]), torch.tensor([5, 4, 8])]


def test_importance_orders_features_of_each_layer():
    table = pd.DataFrame(
        {
            **{"layer": [0, 0, 0, 1, 1], "feature": [0, 1, 2, 0, 1]},
            **{"density": [0.5, 0.1, 0.5, 0, 1], "mean_active": [1, 8, 1, 0, 1]},
            "decoder_norm": [2.0, 1.0, 2.0, 9.0, 1.0],
        }
    )
    assert importance(table).tolist() == pytest.approx([1, 0.8, 1, 0, 1])
    assert [x.tolist() for x in describe.most_important(table, 2)] == [[0, 2], [1, 0]]


def test_moments_are_those_of_all_tokens_but_bos(world):
    _, clt, _, read, chunk = world
    chosen, windows = chosen_features(), np.array([2, 3, 4, 5, 6, 7, 8, 9])
    moments = describe.feature_moments(clt, [chunk], windows, chosen)
    parts = [
        clt.encode(x[2:, 1:].flatten(0, 1), i)[:, index].double()
        for i, (x, index) in enumerate(zip(read, chosen, strict=True))
    ]
    a = torch.cat(parts, 1).numpy()
    assert moments.tokens == len(a) == 8 * (LENGTH - 1)
    assert np.allclose(moments.first, a.mean(0), rtol=1e-5)
    assert np.allclose(moments.second, a.T @ a / len(a), rtol=1e-5)
    table = describe.correlation_table(moments, chosen, 2)
    assert len(table) == 36
    wanted = np.corrcoef(a.T)
    row = table.query("layer == 0 and feature == 1 and other_layer == 2 and other_feature == 5")
    assert row["correlation"].item() == pytest.approx(wanted[1, 5], abs=1e-5)
    same = table.query("layer == other_layer and feature == other_feature")["correlation"]
    assert np.allclose(same, 1)


@pytest.mark.parametrize("decoders", ["cross", "per_layer", "tied"])
def test_virtual_weights_are_what_a_unit_of_a_feature_adds_past_attention(decoders):
    """Without attention a change of the residual stays as it is, so the later pre-activation moves by the weight."""
    model = make_model()
    for layer in model.weights.layers:
        layer.w_o.zero_()
    clt = make_clt(d=model.config.d_model, decoders=decoders)
    run = run_prompt(model, clt, torch.tensor([0, 7, 3, 22]))
    rows, columns = torch.tensor([2, 5]), torch.tensor([1, 4, 6])
    for source, target in ((0, 1), (0, 2), (1, 2)):
        found = describe.virtual_weights(clt, model, source, target, rows, columns)
        for place, feature in enumerate(columns):
            x = run.read[target].clone()
            for layer in clt.targets(source):
                if layer < target:
                    x += clt.decoder_rows(source, layer, feature[None])
            moved = clt.pre_activations(x - run.read[target], target) - clt.encoder_bias[target]
            torch.testing.assert_close(found[:, place], moved[0, rows])


def test_the_strongest_weights_and_their_expected_effects_are_kept(world, monkeypatch):
    model, clt, _, _, chunk = world
    monkeypatch.setattr(describe, "PAIRS", 4)
    chosen = chosen_features()
    moments = describe.feature_moments(clt, [chunk], np.arange(WINDOWS), chosen)
    table, summary = describe.weight_table(clt, model, chosen, moments)
    assert 4 <= len(table) <= 8 and summary["pairs"].tolist() == [6, 9, 6]
    assert table["expected"].abs().is_monotonic_decreasing
    everything = []
    for source in range(LAYERS):
        for target in range(source + 1, LAYERS):
            weights = describe.virtual_weights(
                clt, model, source, target, chosen[target], chosen[source]
            )
            everything.append(weights.abs().flatten())
    top = torch.cat(everything).topk(4).values
    assert np.allclose(np.sort(table["weight"].abs())[::-1][:4], top, rtol=1e-5)
    row = table.iloc[0]
    t = chosen[int(row["target_layer"])].tolist().index(int(row["target_feature"]))
    s = chosen[int(row["layer"])].tolist().index(int(row["feature"]))
    starts = np.cumsum([0, *map(len, chosen)])
    t, s = t + starts[int(row["target_layer"])], s + starts[int(row["layer"])]
    wanted = row["weight"] * moments.second[t, s] / moments.first[t]
    assert row["expected"] == pytest.approx(wanted)


def test_texts_are_listed_and_mapped(world):
    model, clt, tokens, read, _ = world
    groups = {"a": [tokens[0].numpy()], "b": list(tokens[1:8].numpy())}
    listed, maps = describe.text_tables(model, clt, groups, 1, 0)
    z = clt.encode(read[1][0], 1)
    z[:1] = 0
    best = int(z.sum(0).argmax())
    row = listed.query("group == 'a' and layer == 1 and rank == 0").sort_values("position")
    assert set(row["feature"]) == {best} and row["token"].tolist() == tokens[0].tolist()
    assert np.allclose(row["activation"], z[:, best], atol=1e-6)
    assert len(maps) == 8 * LAYERS * 2 and set(maps["method"]) == {"pca", "tsne"}
    again = describe.text_tables(model, clt, groups, 1, 0)[1]
    assert maps.equals(again)


def test_principal_components_keep_the_distances_that_two_dimensions_can():
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 30))
    found = describe.flat_maps(plane, 0)["pca"]
    for points in (plane, found):
        points -= points.mean(0)
    wanted = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    assert np.allclose(np.linalg.norm(found[:, None] - found[None], axis=-1), wanted)
    assert set(describe.flat_maps(plane[:3], 0)) == {"pca"}


# --- figures and page -------------------------------------------------------------------------------


def test_figures_show_the_tables(world):
    model, clt, tokens, _, chunk = world
    listed, maps = describe.text_tables(
        model, clt, {"a": list(tokens[:4].numpy()), "b": list(tokens[4:].numpy())}, 1, 0
    )
    rows, words = listed[listed["group"] == "a"], ["$x", "\n"] + ["w"] * (LENGTH - 2)
    assert len(draw.feature_lines(rows, words).axes) == LAYERS
    lines = draw.feature_lines(rows, words).axes[1].lines
    first = rows.query("layer == 1 and rank == 0").sort_values("position")["activation"]
    assert np.allclose(lines[0].get_ydata(), first)
    image = draw.feature_heatmap(rows, words).axes[0].images[0].get_array()
    assert image.shape == (rows.groupby(["layer", "rank"]).ngroups, LENGTH)
    assert image.max() == 1 and image.min() >= 0
    panels = draw.text_map(maps, "pca").axes
    assert len(panels[0].lines) == 2 and len(panels[0].lines[1].get_xdata()) == 6
    moments = describe.feature_moments(clt, [chunk], np.arange(WINDOWS), chosen_features())
    table = describe.correlation_table(moments, chosen_features(), 2)
    assert draw.correlation_map(table).axes[0].images[0].get_array().shape == (6, 6)
    _, summary = describe.weight_table(clt, model, chosen_features(), moments)
    grid = draw.layer_weights(summary).axes[0].images[0].get_array()
    assert grid[1, 0] == pytest.approx(summary["mean_weight"][0])


def test_graphs_are_linked_from_where_the_page_lies(tmp_path):
    scores = dict.fromkeys(transcoder_page.SCORES, 0.5)
    summary = {"prompt": "<b>", "kept_nodes": 3, "nodes": 9, "scores": scores}
    path = tmp_path / "results/m/s/transcoders/t/graphs/g.summary.json"
    path.parent.mkdir(parents=True)
    write_json(path, summary | {"largest_gap": 1e-6}, {})
    page = tmp_path / "results/report/m/s/transcoders/t.html"
    _, ((link, prompt, nodes, *_),) = transcoder_page.graph_rows([str(path)], str(page))
    assert nodes == "3 of 9"
    assert "href='../../../../m/s/transcoders/t/graphs/g.html'" in link.text and prompt == "<b>"


def test_the_index_links_transcoders_where_there_are_any():
    entry = TranscoderEntry("m", "<s>", "t", "m/s/transcoders/a b.html")
    page = index_page([], {}, transcoders=[entry])
    assert "href='m/s/transcoders/a%20b.html'" in page and "&lt;s&gt;" in page
    assert "<h2>Transcoders" not in index_page([], {})
