"""Dictionaries in the running model: hooks, evaluation against slow computations, folders of layers."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from dictionary_makers import random_dictionary
from edge_models import make_model

from mechatlas.capture.patterns import read_activations
from mechatlas.capture.sweep import CaptureSettings, capture_chunk
from mechatlas.corpus.windows import Windows, write_windows
from mechatlas.dictionaries import hooks as hooking
from mechatlas.dictionaries.collection import (
    import_collection,
    layers_of,
    read_dictionary,
    write_collection,
    write_references,
)
from mechatlas.dictionaries.evaluate import evaluate, evaluate_layers
from mechatlas.dictionaries.formats.openai import write_openai
from mechatlas.dictionaries.frontier import frontier_table
from mechatlas.dictionaries.settings import TrainingSettings
from mechatlas.dictionaries.train import train_layers
from mechatlas.figures.dictionaries import frontier
from mechatlas.figures.style import svg, write_figure
from mechatlas.io import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / "tests" / "reference" / "dictionaries"
POINTS = ("resid_post", "mlp_in", "mlp_out")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def world(model, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Thirty windows of ten documents, captured in two chunks."""
    folder = tmp_path_factory.mktemp("captured")
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, (30, 12)).astype(np.int32)
    tokens[:, 0] = 0
    docs = np.array([f"d{i % 10}" for i in range(30)], dtype=object)
    splits = np.array([(0, 0, 0, 0, 0, 1, 2, 2, 2, 2)[i % 10] for i in range(30)], np.int8)
    windows = Windows(tokens, docs, splits, np.zeros(30, np.int32), np.zeros(30, bool))
    write_windows(folder / "windows.parquet", windows)
    settings = CaptureSettings(activations=POINTS, batch_windows=4)
    chunks = [folder / "0000", folder / "0001"]
    for i, chunk in enumerate(chunks):
        capture_chunk(
            model, folder / "windows.parquet", chunk, first=16 * i, stop=16 * (i + 1),
            settings=settings, facts={"model": "tiny", "model_hash": "h", "dtype": "float64"},
        )  # fmt: skip
    return {"windows": folder / "windows.parquet", "chunks": chunks, "tokens": tokens, "docs": docs,
            "splits": splits}  # fmt: skip


def about(layer: int = 1, reads: str = "resid_post", writes: str | None = None) -> dict:
    return {"layer": layer, "reads": reads, "writes": writes or reads}


def batch(world: dict, n: int = 4) -> torch.Tensor:
    return torch.from_numpy(world["tokens"][:n].astype(np.int64))


# --- hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["resid_post", "mlp_post", "z"])
def test_the_reconstruction_replaces_the_activation_but_at_bos(model, world, reads: str) -> None:
    widths = {"resid_post": 12, "mlp_post": 20, "z": 12}
    sae = random_dictionary("relu", d_in=widths[reads], about=about(1, reads))
    tokens, seen = batch(world), {}

    def keep(name):
        return {reads: lambda x, at: seen.setdefault(name, x.clone()) if at == 1 else None}

    model.forward(tokens, keep("before"))
    replaced = hooking.replace_by_reconstruction(sae)
    hooks = hooking.merge_hooks(replaced, {reads: lambda x, at: seen.update({("after", at): x})})
    logits = model.forward(tokens, hooks)
    before, after = seen["before"].flatten(2), seen["after", 1].flatten(2)
    torch.testing.assert_close(after[:, 1:], sae.forward(before[:, 1:]), atol=1e-10, rtol=0)
    assert torch.equal(after[:, :1], before[:, :1])
    assert not torch.allclose(logits, model.forward(tokens))


def test_the_error_term_makes_the_model_run_as_before(model, world) -> None:
    sae = random_dictionary("relu", about=about())
    tokens = batch(world)
    same = model.forward(tokens, hooking.replace_by_reconstruction(sae, error=True))
    torch.testing.assert_close(same, model.forward(tokens), atol=1e-12, rtol=0)
    # An edit that changes nothing, too: here everything is computed.
    same = model.forward(tokens, hooking.replace_by_reconstruction(sae, lambda z: z, error=True))
    torch.testing.assert_close(same, model.forward(tokens), atol=1e-12, rtol=0)


def test_ablating_a_latent_takes_away_what_it_writes(model, world) -> None:
    sae = random_dictionary("relu", about=about())
    tokens, seen = batch(world), []
    keep = {"resid_post": lambda x, at: seen.append(x) if at == 1 else None}
    model.forward(tokens, keep)
    edited = hooking.replace_by_reconstruction(sae, hooking.ablate([3, 5]), error=True)
    model.forward(tokens, hooking.merge_hooks(edited, keep))
    z = sae.encode(seen[0][:, 1:])
    wanted = seen[0][:, 1:] - z[..., [3, 5]] @ sae.decoder[[3, 5]]
    torch.testing.assert_close(seen[1][:, 1:], wanted, atol=1e-10, rtol=0)
    doubled = hooking.replace_by_reconstruction(sae, hooking.scale([3], 2.0), error=True)
    model.forward(tokens, hooking.merge_hooks(doubled, keep))
    wanted = seen[0][:, 1:] + z[..., [3]] @ sae.decoder[[3]]
    torch.testing.assert_close(seen[2][:, 1:], wanted, atol=1e-10, rtol=0)


def test_steering_adds_a_direction_everywhere(model, world) -> None:
    sae = random_dictionary("topk", about=about(0, "mlp_out"))
    tokens, seen = batch(world), []
    keep = {"mlp_out": lambda x, at: seen.append(x) if at == 0 else None}
    model.forward(tokens, keep)
    model.forward(tokens, hooking.merge_hooks(hooking.steer(sae, 7, -2.5), keep))
    torch.testing.assert_close(seen[1], seen[0] - 2.5 * sae.decoder[7], atol=1e-12, rtol=0)


def test_a_transcoder_reads_one_place_and_writes_another(model, world) -> None:
    place = about(1, "mlp_in", "mlp_out")
    sae = random_dictionary("jumprelu", subtract_bias=False, skip=True, about=place)
    tokens, seen = batch(world), {}
    keep = {p: (lambda x, at, p=p: seen.update({(p, at): x})) for p in ("mlp_in", "mlp_out")}
    model.forward(tokens, hooking.merge_hooks(hooking.replace_by_reconstruction(sae), keep))
    wanted = sae.forward(seen["mlp_in", 1][:, 1:])
    torch.testing.assert_close(seen["mlp_out", 1][:, 1:], wanted, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="does not say its layer"):
        hooking.replace_by_reconstruction(random_dictionary("relu", about={"reads": "mlp_out"}))


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_equals_a_slow_computation(model, world) -> None:
    sae = random_dictionary("relu", d_in=12, about=about())
    split = {
        name: np.flatnonzero(world["splits"] == i) for i, name in enumerate(("train", "v", "test"))
    }
    causal = split["test"][:5]
    documents = {"test": world["docs"][split["test"]], "causal": world["docs"][causal]}
    table, latents = evaluate(
        sae, model, world["chunks"], split, world["tokens"][causal], documents,
        batch_windows=2, bootstrap=50, confidence=0.9, seed=0,
    )  # fmt: skip
    value = table.set_index("metric")["value"]
    x = read_activations(world["chunks"], "resid_post", 1, split["test"])[:, 1:].reshape(-1, 12)
    z = sae.encode(torch.from_numpy(x).double()).numpy()
    y = z @ sae.decoder.numpy() + sae.decoder_bias.numpy()
    assert value["fvu"] == pytest.approx(
        ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-5
    )
    assert value["l0"] == pytest.approx((z > 0).sum(1).mean())
    assert value["dead_share"] == ((z > 0).sum(0) == 0).mean()
    np.testing.assert_allclose(latents["density"], (z > 0).mean(0))
    np.testing.assert_allclose(latents["max"], z.max(0), rtol=1e-6)
    # The model on each variant, token by token.
    mean = read_activations(world["chunks"], "resid_post", 1, split["train"])[:, 1:].mean((0, 1))
    runs = {
        "model": lambda x: x,
        "reconstruction": lambda x: sae.forward(x),
        "zero": torch.zeros_like,
        "mean": lambda x: torch.from_numpy(mean).double().expand_as(x),
    }
    tokens = torch.from_numpy(world["tokens"][causal].astype(np.int64))
    logs = {}
    for name, change in runs.items():

        def hook(x, at, change=change):
            return torch.cat([x[:, :1], change(x[:, 1:])], 1) if at == 1 else None

        logs[name] = model.forward(tokens, {"resid_post": hook})[:, :-1].log_softmax(-1)
    losses = {n: -float(v.gather(-1, tokens[:, 1:, None]).mean()) for n, v in logs.items()}
    for name, loss in losses.items():
        assert value[f"loss_{name}"] == pytest.approx(loss, rel=1e-5), name
    base, other = logs["model"], logs["reconstruction"]
    kl = torch.nn.functional.kl_div(other, base, log_target=True, reduction="none").sum(-1).mean()
    assert value["kl"] == pytest.approx(float(kl), rel=1e-4)
    agree = (base.argmax(-1) == other.argmax(-1)).double().mean()
    assert value["top1_agreement"] == pytest.approx(float(agree))
    recovered = (losses["mean"] - losses["reconstruction"]) / (losses["mean"] - losses["model"])
    assert value["loss_recovered_mean"] == pytest.approx(recovered, rel=1e-3)
    rows = table.set_index("metric").drop(index="dead_share")
    assert (rows["low"] <= rows["high"]).all()
    assert rows.loc["fvu", "documents"] == 4 and rows.loc["fvu", "tokens"] == 12 * 11
    assert rows.loc["kl", "tokens"] == 5 * 11


def test_a_perfect_dictionary_loses_nothing_and_one_of_zeros_everything(model, world) -> None:
    """Identity with the identity matrix reconstructs exactly; its negative as decoder writes the mirror image."""
    sae = random_dictionary("identity", latents=12, d_in=12, about=about())
    with torch.no_grad():
        sae.encoder[:] = torch.eye(12)
        sae.decoder[:] = torch.eye(12)
        sae.encoder_bias[:] = 0
    split = {"train": np.arange(5), "test": np.array([6, 7, 8, 9])}
    documents = {name: world["docs"][split["test"]] for name in ("test", "causal")}
    table, _ = evaluate(
        sae, model, world["chunks"], split, world["tokens"][split["test"]], documents,
        batch_windows=4, bootstrap=20, confidence=0.9, seed=0,
    )  # fmt: skip
    value = table.set_index("metric")["value"]
    assert value["fvu"] < 1e-10 and abs(value["kl"]) < 1e-6
    assert value["top1_agreement"] == 1
    assert value["loss_recovered_zero"] == pytest.approx(1, abs=1e-5)


# --- folders --------------------------------------------------------------------------------------


def run(world: dict, folder: Path, **changes) -> None:
    settings = {"latents": 24, "k": 3, "tokens": 1200, "batch_tokens": 40, "dead_tokens": 200}
    options = {"reads": "resid_post", "writes": "resid_post", "layers": [0, 2]}
    train_layers(
        world["windows"], world["chunks"], TrainingSettings(**settings),
        about={"model": "tiny", "dictionary": "d"}, checkpoints=folder / "checkpoints",
        checkpoint_every=10, device="cpu", weights=folder / "weights",
        training=folder / "training.parquet", **(options | changes),
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_training_all_layers_gives_the_same_bytes_each_time(world, model, tmp_path: Path) -> None:
    for name in "ab":
        run(world, tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert set(digests(tmp_path / "a")) == {
        "training.parquet", "weights/index.json", "weights/index.json.provenance.json",
        "weights/layer_0.safetensors", "weights/layer_2.safetensors",
    }  # fmt: skip
    assert layers_of(tmp_path / "a" / "weights") == [0, 2]
    sae = read_dictionary(tmp_path / "a" / "weights", 2, config=model.config)
    assert (sae.n_latents, sae.d_in, sae.about["layer"], sae.about["model"]) == (24, 12, 2, "tiny")
    table = pd.read_parquet(tmp_path / "a" / "training.parquet")
    assert table.groupby("layer").size().to_dict() == {0: 30, 2: 30}
    evaluate_layers(
        tmp_path / "a" / "weights", model, world["windows"], world["chunks"], dictionary="d",
        causal_windows=3, batch_windows=2, bootstrap=20, confidence=0.9, seed=0,
        evaluation=tmp_path / "e.parquet", latents=tmp_path / "l.parquet",
    )  # fmt: skip
    assert len(pd.read_parquet(tmp_path / "l.parquet")) == 48
    points = frontier_table({"d": tmp_path / "e.parquet", "e": tmp_path / "e.parquet"})
    assert len(points) == 4 and (points["fvu_low"] <= points["fvu"]).all()
    texts = {svg(frontier(points)) for _ in range(2)}
    assert len(texts) == 1 and "layer 2" not in texts
    for name in "ab":
        write_figure(frontier(points), tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [3]}, "layer.*3 is out of range; the model has layers 0 to 2"),
        ({"reads": "attn_out", "writes": "attn_out"}, "add attn_out to capture.activations"),
    ],
)
def test_what_was_not_captured_cannot_be_trained_on(world, tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        run(world, tmp_path, **changes)
    assert not (tmp_path / "weights").exists()


def test_dictionaries_of_others_are_checked_and_referred_to(model, tmp_path: Path) -> None:
    sae = random_dictionary("topk", normalisation="layer_norm", dtype=torch.float32)
    write_openai(tmp_path / "0.pt", sae)
    entry = {"format": "openai", "path": str(tmp_path / "0.pt"), "version": "_v5_32k",
             "site": "resid_post_mlp"}  # fmt: skip
    import_collection(tmp_path / "weights", {0: entry}, model.config, {"model": "tiny"})
    read = read_dictionary(tmp_path / "weights", 0, config=model.config)
    x = torch.randn(3, 12)
    assert torch.equal(read.forward(x), sae.forward(x)) and read.about["reads"] == "resid_post"
    assert not list((tmp_path / "weights").glob("*.pt"))
    for wrong, message in (
        ({"site": "resid_delta_attn", "version": "_v4"}, "activation TopK, but version '_v4'"),
        ({"path": str(tmp_path / "1.pt")}, "does not exist"),
        ({"format": "unheard"}, "format 'unheard' of layer 0 is not known"),
    ):
        with pytest.raises(UserError, match=message):
            import_collection(tmp_path / "bad", {0: entry | wrong}, model.config, {})
    with pytest.raises(UserError, match="layer 5 is out of range"):
        import_collection(tmp_path / "bad", {5: entry}, model.config, {})
    assert not (tmp_path / "bad").exists()


def test_a_dictionary_of_another_layer_or_model_is_refused(model, tmp_path: Path) -> None:
    write_references(
        tmp_path / "a", {0: {"format": "saelens", "path": str(PEERS / "standard")}}, {}
    )
    with pytest.raises(UserError, match="is a dictionary of layer 3, not of layer 0"):
        read_dictionary(tmp_path / "a", 0)
    write_references(
        tmp_path / "b", {1: {"format": "circuit-tracer", "path": str(PEERS / "circuit_tracer")}}, {}
    )
    assert read_dictionary(tmp_path / "b", 1).about["reads"] == "mlp_in"
    with pytest.raises(UserError, match="reads mlp_in of width 6, but in this model"):
        read_dictionary(tmp_path / "b", 1, config=model.config)
    write_collection(tmp_path / "c", {1: random_dictionary("relu", about=about())}, {})
    with pytest.raises(UserError, match="has no dictionary of layer 0; there are 1"):
        read_dictionary(tmp_path / "c", 0)
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(UserError, match="does not exist"):
        layers_of(tmp_path / "c")


def test_intervals_widen_with_few_documents() -> None:
    """A mean of two documents has the interval that resampling two documents gives."""
    from mechatlas.dictionaries.evaluate import SHARD_METRICS, evaluation_table

    sums = pd.DataFrame(
        {"error": [1.0, 3.0], "variance": [10.0, 10.0], "active": [5.0, 5.0], "tokens": [5.0, 5.0]}
    )
    table = evaluation_table(sums, SHARD_METRICS, 0, bootstrap=400, confidence=0.9, seed=0)
    fvu = table.set_index("metric").loc["fvu"]
    assert (fvu["low"], fvu["value"], fvu["high"]) == pytest.approx((0.1, 0.2, 0.3))
    assert math.isclose(table.set_index("metric").loc["l0", "value"], 1.0)
