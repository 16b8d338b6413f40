"""Captured events against brute force over full patterns, and the exactness of merging chunks."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mechatlas.capture.draws import random_pairs, uniform_of
from mechatlas.capture.events import Batch, quantile_candidates
from mechatlas.capture.merge import draw_quantiles, merge_events, merge_statistics
from mechatlas.capture.patterns import read_activations, read_patterns
from mechatlas.capture.reservoirs import Reservoir, new_events
from mechatlas.capture.sweep import CaptureSettings, capture_chunk
from mechatlas.corpus.windows import SPLITS, Windows, read_windows, write_windows
from mechatlas.io import UserError
from mechatlas.models.config import ModelConfig
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import random_weights

N, T, LAYERS, HEADS = 61, 14, 2, 4
SHAPES = {
    "gpt2": ModelConfig("gpt2", LAYERS, HEADS, HEADS, 16, 4, 32, T, 50, 1e-5, "gelu_new", True),
    "llama": ModelConfig(
        "llama", LAYERS, HEADS, 2, 16, 4, 32, T, 50, 1e-5, "silu", False, False, False, False
    ),
}
SETTINGS = CaptureSettings(
    max_per_document=2, candidates=20, sample=40, random_events=30, batch_windows=4, seed=3,
    pattern_dtype="float32", activations=("resid_mid", "v", "embed"),
)  # fmt: skip
MERGE = {"topk": 12, "max_per_document": 2, "quantiles": 4, "events_per_quantile": 5, "seed": 3}


def make_model(kind="gpt2"):
    from dataclasses import replace

    config = replace(SHAPES[kind], initializer_range=0.7)
    return Transformer(config, random_weights(config, 0, "cpu", torch.float32), "test")


def make_windows(path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, (N, T)).astype(np.int32)
    tokens[:, 0] = 0
    documents = rng.integers(0, 25, N)
    splits = (documents % 3).astype(np.int8)
    docs = np.array([f"d{i}" for i in documents], dtype=object)
    windows = Windows(tokens, docs, splits, np.zeros(N, np.int32), rng.random(N) < 0.3)
    write_windows(path, windows)
    return windows


def capture(folder, chunks=1, model=None, settings=SETTINGS, windows="w.parquet"):
    edges = np.linspace(0, N, chunks + 1).astype(int)
    paths = [folder / f"{chunks}" / f"{i:04d}" for i in range(chunks)]
    for path, first, stop in zip(paths, edges[:-1], edges[1:], strict=True):
        capture_chunk(
            model or make_model(), folder / windows, path, first=first, stop=stop, settings=settings
        )
    return paths


@pytest.fixture(scope="module", params=list(SHAPES))
def run(request, tmp_path_factory):
    """One capture in a single chunk, its merged events, and the full patterns and write norms."""
    folder = tmp_path_factory.mktemp("capture")
    windows = make_windows(folder / "w.parquet")
    model = make_model(request.param)
    chunks = capture(folder, 1, model)
    merge_events(chunks, folder / "w.parquet", folder / "events.parquet", **MERGE)
    patterns, norms = [], []
    for layer in range(LAYERS):
        seen = {}
        hooks = {
            point: lambda x, i, p=point, seen=seen: seen.__setitem__((p, i), x)
            for point in ("pattern", "v")
        }
        model.forward(torch.from_numpy(windows.tokens.astype(np.int64)), hooks)
        v = seen["v", layer].repeat_interleave(HEADS // model.config.n_kv_heads, dim=2)
        written = torch.einsum("bthe,hed->bhtd", v, model.output_weights(layer)).norm(dim=-1)
        patterns.append(seen["pattern", layer].numpy())
        norms.append((seen["pattern", layer] * written[:, :, None]).numpy())
    events = pd.read_parquet(folder / "events.parquet")
    return {"folder": folder, "windows": windows, "model": model, "chunks": chunks, "events": events,
            "patterns": np.stack(patterns), "norms": np.stack(norms)}  # fmt: skip


def test_values_of_all_events(run):
    e = run["events"]
    at = tuple(e[c].to_numpy() for c in ("layer", "window", "head", "query", "key"))
    np.testing.assert_allclose(e["attention"], run["patterns"][at], atol=2e-6)
    np.testing.assert_allclose(e["write_norm"], run["norms"][at], rtol=1e-4, atol=1e-6)
    assert (e["key"] <= e["query"]).all()
    assert (e["doc"] == run["windows"].docs[e["window"]]).all()
    assert (e["split"] == np.array(SPLITS)[run["windows"].splits[e["window"]]]).all()


def test_top_events_equal_brute_force(run):
    e, windows = run["events"], run["windows"]
    for layer in range(LAYERS):
        for head in range(HEADS):
            for split in range(3):
                taken, expected = {}, []
                strength = run["norms"][layer][:, head].copy()
                strength[:, :, 0] = 0
                strength[windows.splits != split] = 0
                for flat in np.argsort(-strength, axis=None, kind="stable"):
                    window, query, key = np.unravel_index(flat, strength.shape)
                    doc = windows.docs[window]
                    if taken.get(doc, 0) < MERGE["max_per_document"]:
                        taken[doc] = taken.get(doc, 0) + 1
                        expected.append((window, query, key))
                    if len(expected) == MERGE["topk"]:
                        break
                mine = e[
                    (e["layer"] == layer) & (e["head"] == head) & (e["split"] == SPLITS[split])
                ]
                mine = mine[mine["role"] == "top"]
                assert (
                    list(zip(mine["window"], mine["query"], mine["key"], strict=True)) == expected
                )


def test_first_batches_leave_out_only_what_their_own_sample_does():
    """The sample drawn from the candidates of a batch is that from all its entries, of which they are few."""
    rng, size, length = np.random.default_rng(0), 9, 12
    splits = np.arange(size) % 2
    own = np.arange(size) != 4
    queries = np.sort(rng.integers(1, length, (size, 2)), 1)
    uniforms = rng.random((size, 2, length))
    batch = Batch(
        np.arange(size), splits, own, torch.from_numpy(queries), torch.from_numpy(uniforms),
        np.zeros((0, 3), np.int64),
    )  # fmt: skip
    norms = torch.from_numpy(rng.random((size, HEADS, length, length)).astype(np.float32)).tril()
    few, every = (
        quantile_candidates(norms, norms, batch, np.zeros((2, HEADS)), count)
        for count in (5, 10**9)
    )
    rows = norms.numpy()[np.arange(size)[:, None], :, queries][own]
    assert len(every) == np.count_nonzero(rows) and len(few) == 2 * HEADS * 5
    for split in range(2):
        for head in range(HEADS):
            mine = [e[(e["head"] == head) & (splits[e["window"]] == split)] for e in (few, every)]
            best = np.sort(mine[1]["priority"])[-5:]
            assert np.array_equal(np.sort(mine[0]["priority"]), best)


def test_negatives_match_their_anchors(run):
    e = run["events"]
    place = ["layer", "head", "window"]
    top = e[e["role"] == "top"][[*place, "query", "key", "write_norm"]]
    negatives = e[e["role"].str.startswith("negative_")]
    joined = negatives.merge(
        top, left_on=[*place, "anchor_query", "anchor_key"], right_on=[*place, "query", "key"],
        suffixes=("", "_top"),
    )  # fmt: skip
    assert len(joined) == len(negatives) > 100
    assert (joined["write_norm"] < 0.1 * joined["write_norm_top"]).all() and (
        joined["key"] > 0
    ).all()
    kind = joined["role"].str.removeprefix("negative_")
    same = joined[["query", "key"]].to_numpy() == joined[["query_top", "key_top"]].to_numpy()
    gap = (joined["query"] - joined["key"]) == (joined["query_top"] - joined["key_top"])
    assert (same[kind == "same_query"] == [True, False]).all()
    assert (same[kind == "same_key"] == [False, True]).all()
    assert (gap & ~same.any(1))[kind == "same_distance"].all()
    # One is missing only where the window holds no admissible one.
    for name in ("same_query", "same_key", "same_distance"):
        held = set(
            map(tuple, joined[kind == name][[*place, "anchor_query", "anchor_key"]].to_numpy())
        )
        for layer, head, window, query, key, norm in top.to_numpy().tolist():
            layer, head, window, query, key = map(int, (layer, head, window, query, key))
            s = run["norms"][layer, window, head]
            others = {
                "same_query": [s[query, k] for k in range(1, query + 1) if k != key],
                "same_key": [s[q, key] for q in range(key, T) if q != query],
                "same_distance": [
                    s[q, q - query + key] for q in range(query - key + 1, T) if q != query
                ],
            }[name]
            assert ((layer, head, window, query, key) in held) == any(
                o < 0.1 * norm for o in others
            )


def test_random_events_are_the_same_uniform_pairs_for_all_heads(run):
    e = run["events"][run["events"]["role"] == "random"]
    groups = e.groupby(["layer", "head", "split"])
    assert (groups.size() == 30).all() and len(groups) == LAYERS * HEADS * 3
    sets = groups.apply(lambda g: frozenset(zip(g["window"], g["query"], g["key"], strict=True)))
    assert sets.groupby("split").nunique().eq(1).all() and all(len(s) == 30 for s in sets)
    counts = np.bincount(run["windows"].splits) * T * (T + 1) // 2
    np.testing.assert_allclose(groups["weight"].sum().loc[0, 0].loc[list(SPLITS)], counts)


def test_quantiles_are_strata_of_write_norm(run):
    e = run["events"][run["events"]["role"] == "quantile"]
    assert (e["key"] > 0).all() and (e["weight"] >= 1).all()
    for _, group in e.groupby(["layer", "head", "split"]):
        ranges = group.groupby("quantile")["write_norm"].agg(["min", "max", "size"])
        assert (ranges["max"].to_numpy()[:-1] <= ranges["min"].to_numpy()[1:]).all()
        assert ranges["size"].max() <= 5 and ranges["size"].sum() >= 15
        assert not group.duplicated(["window", "query", "key"]).any()


@pytest.mark.parametrize("chunks", [3, 7])
def test_any_number_of_chunks_gives_the_same_file(run, chunks, tmp_path):
    parts = capture(run["folder"], chunks, run["model"])
    merge_events(parts[::-1], run["folder"] / "w.parquet", tmp_path / "events.parquet", **MERGE)
    whole = (run["folder"] / "events.parquet").read_bytes()
    assert (tmp_path / "events.parquet").read_bytes() == whole
    merge_statistics(run["chunks"], tmp_path / "one.parquet")
    merge_statistics(parts, tmp_path / "many.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    sample = np.flatnonzero(run["windows"].pattern_sample)[::-1]
    for layer in range(LAYERS):
        a = read_patterns(run["chunks"], layer, sample)
        assert np.array_equal(a, read_patterns(parts, layer, sample))
        np.testing.assert_allclose(a, run["patterns"][layer][sample], atol=2e-6)
    a = read_activations(run["chunks"], "resid_mid", 1, [5, 60, 0])
    assert a.shape == (3, T, 16)
    assert np.array_equal(a, read_activations(parts, "resid_mid", 1, [5, 60, 0]))


def test_statistics(run, tmp_path):
    merge_statistics(run["chunks"], tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert len(table) == LAYERS * HEADS * 3
    for row in table.itertuples():
        chosen = run["windows"].splits == SPLITS.index(row.split)
        pattern = run["patterns"][row.layer][chosen, row.head][:, 1:]
        assert row.rows == pattern.shape[0] * (T - 1)
        assert abs(row.attention_bos - pattern[:, :, 0].mean()) < 1e-5
        diagonal = np.stack([pattern[:, q - 1, q] for q in range(1, T)])
        assert abs(row.attention_self - diagonal.mean()) < 1e-5


def test_total_write_norm_is_that_of_every_pair_without_bos(run, tmp_path):
    merge_statistics(run["chunks"], tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet").set_index(["layer", "head", "split"])
    for layer in range(LAYERS):
        # Independently of the sweep: what a head writes for a key is v_k W_O.
        norms = run["norms"][layer][:, :, 1:, 1:]
        for head in range(HEADS):
            for code, split in enumerate(SPLITS):
                expected = norms[run["windows"].splits == code, head].sum(dtype=np.float64)
                found = table.loc[(layer, head, split), "write_norm"]
                assert found == pytest.approx(expected, rel=1e-5)


def test_activation_shards(run):
    model, windows = run["model"], run["windows"]
    seen = {}
    hooks = {p: lambda x, i, p=p: seen.__setitem__((p, i), x) for p in ("v", "embed", "resid_mid")}
    model.forward(torch.from_numpy(windows.tokens[:4].astype(np.int64)), hooks)
    for point, layer in (("v", 1), ("embed", 0), ("resid_mid", 0)):
        stored = read_activations(run["chunks"], point, layer, range(4))
        np.testing.assert_allclose(stored, seen[point, layer].flatten(2).numpy(), atol=1e-5)


def test_float16_patterns_and_their_error(run, tmp_path):
    from dataclasses import replace

    settings = replace(SETTINGS, pattern_dtype="float16", activations=())
    path = tmp_path / "c"
    windows = run["folder"] / "w.parquet"
    capture_chunk(run["model"], windows, path, first=0, stop=20, settings=settings)
    index = json.loads((path / "index.json").read_text())
    sample = index["pattern_windows"]
    assert sample == np.flatnonzero(run["windows"].pattern_sample[:20]).tolist()
    error = np.abs(read_patterns([path], 0, sample) - run["patterns"][0][sample]).max()
    assert 0 < error <= index["pattern_rounding"] + 2e-6 <= 2.0**-12 + 4e-6


def test_an_empty_chunk_is_whole(run, tmp_path):
    windows = run["folder"] / "w.parquet"
    path = tmp_path / "c"
    capture_chunk(run["model"], windows, path, first=500, stop=600, settings=SETTINGS)
    merge_events([*run["chunks"], path], windows, tmp_path / "e.parquet", **MERGE)
    assert (tmp_path / "e.parquet").read_bytes() == (run["folder"] / "events.parquet").read_bytes()
    some = np.flatnonzero(run["windows"].pattern_sample)[:2]
    assert read_patterns([path, *run["chunks"]], 0, some).shape == (2, HEADS, T, T)


def test_wrong_chunks(run, tmp_path):
    windows, chunk = run["folder"] / "w.parquet", run["chunks"][0]
    out = tmp_path / "e.parquet"
    with pytest.raises(UserError, match=r"capture.topk: 21 is more than the 20"):
        merge_events([chunk], windows, out, **{**MERGE, "topk": 21})
    with pytest.raises(UserError, match="the chunks cover windows"):
        merge_events([chunk, chunk], windows, out, **MERGE)
    with pytest.raises(UserError, match="index.json does not exist"):
        merge_events([tmp_path / "none"], windows, out, **MERGE)
    outside = np.flatnonzero(~run["windows"].pattern_sample)[:1]
    with pytest.raises(UserError, match="are in none of 1 chunks"):
        read_patterns([chunk], 0, outside)
    assert not out.exists()
    broken = tmp_path / "broken"
    capture_chunk(run["model"], windows, broken, first=0, stop=N, settings=SETTINGS)
    shard = broken / "patterns.layer_0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged or truncated"):
        read_patterns([broken], 0, np.flatnonzero(run["windows"].pattern_sample))
    (broken / "events.layer_1.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"events\.layer_1\.parquet is damaged"):
        merge_events([broken], windows, out, **MERGE)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activations": ("resid_mid", "pattern")},
            "capture.activations: pattern cannot be stored",
        ),
        ({"batch_windows": 0}, "capture.batch_windows: 0 is too small"),
        ({"pattern_dtype": "int8"}, "capture.pattern_dtype: 'int8' is unknown"),
    ],
)
def test_wrong_settings_leave_nothing(run, changes, message, tmp_path):
    from dataclasses import replace

    with pytest.raises(UserError, match=message):
        capture(run["folder"], 1, run["model"], replace(SETTINGS, **changes))
    model = run["model"]
    small = Transformer(replace(model.config, n_ctx=T - 1), model.weights)
    with pytest.raises(UserError, match="longer than the model's context"):
        capture_chunk(
            small, run["folder"] / "w.parquet", tmp_path / "c", first=0, stop=4, settings=SETTINGS
        )
    assert not list(tmp_path.iterdir())


def test_reservoir_is_exact_under_merging():
    rng = np.random.default_rng(1)
    splits, documents = rng.integers(0, 3, 50), rng.integers(0, 9, 50)
    events = new_events(6000)
    events["head"], events["window"] = rng.integers(0, 2, 6000), rng.integers(0, 50, 6000)
    events["query"] = np.arange(6000)
    events["write_norm"] = rng.integers(0, 40, 6000)  # many ties

    def reservoir(*parts):
        store = Reservoir("write_norm", 30, splits, 2, documents=documents, per_document=4)
        store._limit = 500
        for part in parts:
            store.add(part)
        return store.select()

    whole = reservoir(events)
    pieces = [reservoir(piece) for piece in np.array_split(rng.permutation(events), 7)]
    assert 150 < len(whole) <= 6 * 30
    assert np.array_equal(reservoir(*pieces)[["head", "query"]], whole[["head", "query"]])


def test_quantile_weights_estimate_counts():
    """Total weights of the drawn events estimate how many pairs there are above any write norm."""
    rng = np.random.default_rng(2)
    length, population = 101, 20_000
    norms = rng.lognormal(0, 2, population).astype(np.float32)
    index = {"window_len": length, "query_rows": length - 1, "sample": 800}
    totals = []
    for seed in range(40):
        priority = norms / uniform_of(seed, np.arange(population))
        best = np.argsort(-priority)[:801]
        sample = new_events(801)
        sample["write_norm"], sample["priority"], sample["query"] = (
            norms[best],
            priority[best],
            best,
        )
        ((events, quantile, weight),) = draw_quantiles(
            sample, np.zeros(1, int), index, 10, 40, seed
        )
        assert 350 <= len(events) <= 400 and set(quantile) == set(range(10))
        totals.append([weight[events["write_norm"] > c].sum() for c in (0, 1, 10, 50)])
    expected = [(norms > c).sum() for c in (0, 1, 10, 50)]
    error = np.std(totals, axis=0) / np.sqrt(len(totals))
    assert (np.abs(np.mean(totals, axis=0) - expected) < 4 * error + 1).all()
    assert error[3] / expected[3] < 0.02


def test_random_pairs_are_uniform():
    splits = np.array([0] * 30 + [1] * 2)
    found = random_pairs(0, splits, 8, 400)
    assert len(found) == 400 + 72  # two windows hold no more than 2 * 36 pairs
    assert len(np.unique(found, axis=0)) == len(found) and (found[:, 2] <= found[:, 1]).all()
    many = np.concatenate([random_pairs(s, splits[:30], 8, 400) for s in range(30)])
    counts = np.zeros((8, 8))
    np.add.at(counts, (many[:, 1], many[:, 2]), 1)
    expected = len(many) / 36
    assert np.abs(counts[np.tril_indices(8)] - expected).max() < 6 * np.sqrt(expected)


def test_read_windows_slice(run):
    part = read_windows(run["folder"] / "w.parquet", 10, 30)[5:9]
    assert part.first == 15 and np.array_equal(part.tokens, run["windows"].tokens[15:19])
