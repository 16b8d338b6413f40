"""Evaluation of a transcoder against plain sums, and the whole way from a model to an evaluated transcoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from clt_makers import make_clt
from edge_models import make_model
from planted_dictionary import write_chunk

from mechatlas.corpus.windows import Windows, write_windows
from mechatlas.dictionaries.clt_evaluation import EXAMPLES, evaluate_clt
from mechatlas.dictionaries.clt_formats import save_clt
from mechatlas.dictionaries.clt_replacement import replacement_hooks
from mechatlas.io import UserError, read_table

WINDOWS, LENGTH, LAYERS = 20, 9, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with windows, shards of a tiny model and a transcoder, and what `evaluate_clt` writes."""
    folder, model = tmp_path_factory.mktemp("clt"), make_model(dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(1, 40, (WINDOWS, LENGTH)).astype(np.int32)
    tokens[:, 0] = 0
    docs = np.array([f"d{i // 2}" for i in range(WINDOWS)], object)
    splits = np.where(np.arange(WINDOWS) < 6, 0, 2).astype(np.int8)
    windows = Windows(tokens, docs, splits, np.zeros(WINDOWS, np.int32), np.zeros(WINDOWS, bool))
    write_windows(folder / "windows.parquet", windows, source="s", tokenizer="t", bos=0, seed=0)
    kept: dict = {}
    with torch.inference_mode():
        hooks = {
            point: lambda x, layer, point=point: kept.update(
                {(point, layer): x.flatten(0, 1).numpy()}
            )
            for point in ("resid_mid", "mlp_out")
        }
        model.forward(torch.from_numpy(tokens.astype(np.int64)), hooks)
    chunk = write_chunk(folder / "0000", kept, window_len=LENGTH)
    clt = make_clt(d=model.config.d_model, dtype=torch.float32, skip=True)
    save_clt(folder / "clt.safetensors", clt, {})
    paths = {name: folder / f"{name}.parquet" for name in ("evaluation", "features", "examples")}
    settings = {"causal_windows": 8, "batch_windows": 3, "bootstrap": 200, "confidence": 0.95}
    files = folder / "clt.safetensors", model, folder / "windows.parquet", [chunk]
    evaluate_clt(*files, seed=0, **settings, **paths)
    tables = {name: read_table(path) for name, path in paths.items()}
    return folder, model, clt, tokens, kept, tables


def row(tables, layer, metric):
    table = tables["evaluation"].set_index(["layer", "metric"])
    return table.loc[(layer, metric)]


def held_out(kept, point, layer):
    x = torch.from_numpy(kept[point, layer]).view(WINDOWS, LENGTH, -1)[6:, 1:]
    return x.flatten(0, 1).double()


def test_reconstruction_and_sparsity_are_plain_ratios(world):
    _, _, clt, _, kept, tables = world
    wide = clt.to(dtype=torch.float64)
    inputs = [held_out(kept, "resid_mid", i) for i in range(LAYERS)]
    fvus, l0s = [], []
    for layer, yhat in enumerate(wide.reconstruct(inputs)):
        y = held_out(kept, "mlp_out", layer)
        fvus.append(float((y - yhat).square().sum() / (y - y.mean(0)).square().sum()))
        l0s.append(float((wide.encode(inputs[layer], layer) > 0).sum() / len(y)))
        found = row(tables, layer, "fvu")
        assert found["value"] == pytest.approx(fvus[-1], rel=1e-4)
        assert found["low"] < found["value"] < found["high"]
        assert (found["documents"], found["tokens"]) == (7, 14 * 8)
        assert row(tables, layer, "l0")["value"] == pytest.approx(l0s[-1])
    assert row(tables, -1, "fvu")["value"] == pytest.approx(np.mean(fvus), rel=1e-4)
    assert row(tables, -1, "l0")["value"] == pytest.approx(np.mean(l0s))


def test_features_and_examples_are_those_of_the_activations(world):
    _, _, clt, _, kept, tables = world
    features = tables["features"].set_index(["layer", "feature"])
    for layer in range(LAYERS):
        z = clt.encode(held_out(kept, "resid_mid", layer).float(), layer)
        own = features.loc[layer]
        assert np.allclose(own["density"], (z > 0).double().mean(0))
        assert np.allclose(own["max"], z.max(0).values, rtol=1e-5)
        assert np.allclose(own["decoder_norm"], clt.decoder_norms(layer), rtol=1e-5)
        assert row(tables, layer, "dead_share")["value"] == pytest.approx(
            float((z == 0).all(0).double().mean())
        )
        by_window = z.view(14, 8, -1)
        for feature in (0, 3, 7):
            found = tables["examples"].query("layer == @layer and feature == @feature")
            best, at = by_window[..., feature].max(1)
            order = best.argsort(descending=True, stable=True)[:EXAMPLES]
            order = order[best[order] > 0]
            assert np.allclose(found["activation"], best[order], rtol=1e-5)
            assert found["window"].tolist() == (order + 6).tolist()
            assert found["position"].tolist() == (at[order] + 1).tolist()


def test_the_replacement_model_is_measured_on_its_logits(world):
    _, model, clt, tokens, kept, tables = world
    batch = torch.from_numpy(tokens[6:14].astype(np.int64))

    def mean_of_train(x: torch.Tensor, layer: int) -> torch.Tensor:
        """MLP outputs of the first six windows, which are those of train documents, off BOS."""
        mean = kept["mlp_out", layer].reshape(WINDOWS, LENGTH, -1)[:6, 1:].mean((0, 1))
        return torch.cat([x[:, :1], torch.from_numpy(mean).expand_as(x[:, 1:])], 1)

    with torch.inference_mode():
        base, other = model.forward(batch), model.forward(batch, replacement_hooks(clt))
        mean = model.forward(batch, {"mlp_out": mean_of_train})[:, :-1].double()
    base, other, targets = base[:, :-1].double(), other[:, :-1].double(), batch[:, 1:].flatten()
    p, q = base.log_softmax(-1), other.log_softmax(-1)
    wanted = {
        "loss_model": F.cross_entropy(base.flatten(0, 1), targets),
        "loss_reconstruction": F.cross_entropy(other.flatten(0, 1), targets),
        "loss_mean": F.cross_entropy(mean.flatten(0, 1), targets),
        "kl": (p.exp() * (p - q)).sum(-1).mean(),
        "top1_agreement": (base.argmax(-1) == other.argmax(-1)).double().mean(),
        "logit_mse": (base - other).square().mean(),
    }
    for metric, value in wanted.items():
        assert row(tables, -1, metric)["value"] == pytest.approx(float(value), rel=1e-4), metric
    assert row(tables, -1, "logit_gap_with_errors")["value"] < 1e-5
    assert row(tables, -1, "kl")["value"] > 1e-2


def test_a_perfect_transcoder_scores_perfectly(world):
    """All error in the decoder bias alone is FVU 1; the mean output as bias, without features, is exactly that."""
    folder, model, clt, _, kept, _ = world
    silent = make_clt(d=model.config.d_model, dtype=torch.float32)
    for layer in range(LAYERS):
        silent.encoder_bias[layer].fill_(-1e6)
        silent.decoder_bias[layer].copy_(held_out(kept, "mlp_out", layer).mean(0))
    save_clt(folder / "silent.safetensors", silent, {})
    paths = {
        name: folder / f"silent.{name}.parquet" for name in ("evaluation", "features", "examples")
    }
    evaluate_clt(
        folder / "silent.safetensors", model, folder / "windows.parquet", [folder / "0000"],
        causal_windows=4, batch_windows=4, bootstrap=50, confidence=0.95, seed=0, **paths,
    )  # fmt: skip
    table = read_table(paths["evaluation"]).set_index(["layer", "metric"])["value"]
    assert table[(-1, "fvu")] == pytest.approx(1, abs=1e-4)
    assert table[(-1, "l0")] == 0 and table[(0, "dead_share")] == 1
    assert isinstance(read_table(paths["examples"]), pd.DataFrame)
    assert len(read_table(paths["examples"])) == 0


def test_a_transcoder_of_another_model_is_refused(world):
    folder, model, *_ = world
    save_clt(folder / "other.safetensors", make_clt(d=8, dtype=torch.float32), {})
    with pytest.raises(UserError, match="give the transcoder of this model"):
        evaluate_clt(
            folder / "other.safetensors", model, folder / "windows.parquet", [folder / "0000"],
            causal_windows=4, batch_windows=4, bootstrap=50, confidence=0.95, seed=0,
            evaluation="x", features="y", examples="z",
        )  # fmt: skip
