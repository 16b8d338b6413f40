"""Training of cross-layer transcoders: losses, planted features, determinism, resume, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from clt_makers import dense_outputs
from planted_dictionary import write_chunk

from mechatlas.corpus.windows import Windows, write_windows
from mechatlas.dictionaries import clt_trainer
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.dictionaries.clt_settings import CltSettings
from mechatlas.dictionaries.clt_trainer import CltTrainer, clt_places, measure_scales
from mechatlas.dictionaries.clt_training import train_clt, train_to_files
from mechatlas.dictionaries.stream import ActivationStream
from mechatlas.io import UserError, read_table, write_json

LAYERS, D, PLANTED, WINDOWS, LENGTH = 3, 24, 30, 160, 17
SETTINGS = CltSettings(
    features=48, k=2, tokens=4096, batch_tokens=128, buffer_windows=64, dead_tokens=1500
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a chunk whose outputs are written by known features of this and earlier layers, and their directions.

    Layer l has features ``10 l`` to ``10 l + 9``; each is read along its own direction and writes to all layers from l.
    """
    rng = np.random.default_rng(0)
    read = rng.normal(size=(PLANTED, D))
    read /= np.linalg.norm(read, axis=1, keepdims=True)
    write = rng.normal(size=(PLANTED, LAYERS, D))
    tokens = WINDOWS * LENGTH
    codes = np.zeros((tokens, PLANTED))
    for layer in range(LAYERS):
        chosen = np.argsort(rng.random((tokens, 10)), axis=1)[:, :2] + 10 * layer
        np.put_along_axis(codes, chosen, rng.uniform(1.0, 2.0, chosen.shape), axis=1)
    places = {}
    for layer in range(LAYERS):
        own, past = slice(10 * layer, 10 * layer + 10), slice(0, 10 * layer + 10)
        places["resid_mid", layer] = codes[:, own] @ read[own] + 0.5
        places["mlp_out", layer] = codes[:, past] @ write[past, layer] - 1.0
    folder = tmp_path_factory.mktemp("shards") / "0000"
    chunk = write_chunk(folder, {key: rows.astype(np.float32) for key, rows in places.items()})
    return chunk, read, write


def make_stream(chunk, settings=SETTINGS, reads="resid_mid"):
    return ActivationStream(
        [chunk], clt_places(reads, LAYERS), np.arange(100), batch_tokens=settings.batch_tokens, buffer_windows=64
    )  # fmt: skip


def run(chunk, tmp_path, settings=SETTINGS, **more):
    more = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_every": 8} | more
    windows = {"train_windows": np.arange(100), "validation_windows": np.arange(100, 130)}
    return train_clt([chunk], LAYERS, settings, **windows, **more)


def same(first, second):
    return all(torch.equal(x, second.tensors()[name]) for name, x in first.tensors().items())


def test_planted_features_are_recovered(world, tmp_path):
    chunk, _, write = world
    settings = replace(SETTINGS, tokens=128 * 500, learning_rate=2e-2)
    clt, history = run(chunk, tmp_path, settings, checkpoint_every=10_000)
    assert history[-1, :, 1].max() < 0.05
    for layer in range(LAYERS):
        own = slice(10 * layer, 10 * layer + 10)
        planted = write[own, layer:].reshape(10, -1)
        found = clt.decoder[layer].flatten(1).numpy()
        cosine = (planted / np.linalg.norm(planted, axis=1, keepdims=True)) @ (
            found / np.linalg.norm(found, axis=1, keepdims=True)
        ).T
        assert cosine.max(1).mean() > 0.95


def test_jumprelu_learns_with_the_tanh_penalty(world, tmp_path):
    chunk, *_ = world
    settings = replace(
        SETTINGS, activation="jumprelu", sparsity=0.3, tokens=128 * 200, learning_rate=5e-3
    )
    _, history = run(chunk, tmp_path, settings, checkpoint_every=10_000)
    free = run(chunk, tmp_path / "free", replace(settings, sparsity=0.0), checkpoint_every=10_000)[
        1
    ]
    assert history[-1, :, 1].mean() < 0.2
    assert history[-1, :, 2].mean() < 0.6 * free[-1, :, 2].mean()  # fewer active features


@pytest.mark.parametrize("decoders", ["cross", "per_layer", "tied"])
@pytest.mark.parametrize("activation", ["batchtopk", "topk", "jumprelu", "relu"])
def test_outputs_in_training_are_those_of_the_transcoder(world, decoders, activation):
    """The trainer's forward pass against the definition, in scaled units, and after folding in raw ones."""
    chunk, *_ = world
    settings = replace(SETTINGS, activation=activation, decoders=decoders, skip=True)
    stream = make_stream(chunk)
    trainer = CltTrainer(settings, measure_scales(stream, "resid_mid", LAYERS))
    with torch.no_grad():
        for name, p in trainer.parameters.items():
            if name.startswith(("skip", "target_scale", "encoder_bias", "decoder_bias")):
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    batch = stream.batch(0)
    inputs, targets = trainer.scaled(batch)
    outputs, _ = trainer._outputs(inputs, targets, 5)
    trainer.threshold *= 1 - 1e-6  # the smallest selected value is the threshold, but for rounding
    clt = trainer._current({})
    wanted = dense_outputs(clt, [clt.encode(x, i) for i, x in enumerate(inputs)], inputs)
    for out, one in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(out, one, atol=1e-5, rtol=1e-5)
    folded = trainer.result({}).reconstruct([batch["resid_mid", i] for i in range(LAYERS)])
    for i, (out, one) in enumerate(zip(folded, wanted, strict=True)):
        raw = one / trainer.scales.output_scale[i] + trainer.scales.output_mean[i]
        torch.testing.assert_close(out, raw, atol=1e-4, rtol=1e-4)


def test_loss_is_its_formula(world):
    chunk, *_ = world
    settings = replace(SETTINGS, activation="jumprelu", sparsity=0.7, preactivation=0.2, ramp=0.5)
    stream = make_stream(chunk)
    trainer = CltTrainer(settings, measure_scales(stream, "resid_mid", LAYERS))
    trainer.silent[:, :7] = settings.dead_tokens
    batch, step = stream.batch(3), 4
    loss = float(trainer.loss(batch, step).detach())
    inputs, targets = trainer.scaled(batch)
    clt = trainer._current({})
    wanted, n = 0.0, len(inputs[0])
    outputs = clt.reconstruct(inputs)
    for layer in range(LAYERS):
        pre = clt.pre_activations(inputs[layer], layer)
        threshold, norm = clt.activation[layer].threshold, clt.decoder_norms(layer)
        wanted += float((targets[layer] - outputs[layer]).square().sum()) / n / D
        active = clt.encode(inputs[layer], layer)
        ramped = 0.7 * step / (0.5 * settings.steps)
        wanted += ramped * float(torch.tanh(4 * norm * active).sum()) / n / D
        lacking = torch.relu(threshold - pre)[:, :7] * norm[:7]
        wanted += 0.2 * float(lacking.sum()) / n / D
    assert loss == pytest.approx(wanted / LAYERS, rel=1e-5)


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_sparse_and_dense_steps_have_the_same_gradients(world, activation, monkeypatch):
    chunk, *_ = world
    stream = make_stream(chunk)
    scales = measure_scales(stream, "resid_mid", LAYERS)
    gradients = []
    for below in (0.0, 1.0):
        monkeypatch.setattr(clt_trainer, "SPARSE_BELOW", below)
        trainer = CltTrainer(replace(SETTINGS, activation=activation), scales)
        trainer.silent[:, ::5] = SETTINGS.dead_tokens
        trainer.loss(stream.batch(0), 0).backward()
        gradients.append({name: p.grad.clone() for name, p in trainer.parameters.items()})
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], atol=1e-6, rtol=1e-4)
        assert one.abs().max() > 0


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_same_seed_same_bits_and_resumed_equals_uninterrupted(world, tmp_path, activation):
    chunk, *_ = world
    settings = replace(SETTINGS, activation=activation, patience=50)
    whole, history = run(chunk, tmp_path / "a", settings)
    again, _ = run(chunk, tmp_path / "b", settings)
    assert same(whole, again)
    run(chunk, tmp_path / "c", settings, stop_at=13)
    resumed, resumed_history = run(chunk, tmp_path / "c", settings)
    assert same(whole, resumed)
    assert torch.equal(history, resumed_history)
    other, _ = run(chunk, tmp_path / "d", replace(settings, seed=1))
    assert not same(whole, other)


def test_a_checkpoint_of_other_settings_is_not_used(world, tmp_path):
    chunk, *_ = world
    run(chunk, tmp_path, replace(SETTINGS, learning_rate=1e-4), stop_at=16)
    clt, _ = run(chunk, tmp_path)
    assert same(clt, run(chunk, tmp_path / "fresh")[0])


def test_training_stops_when_validation_gets_no_better(world, tmp_path, monkeypatch):
    chunk, *_ = world
    errors = iter([0.5, 0.4, 0.41, 0.4, 0.1])  # equal is no better
    monkeypatch.setattr(CltTrainer, "validation_fvu", lambda self, stream: next(errors))
    settings = replace(SETTINGS, patience=2, tokens=128 * 60)
    _, history = run(chunk, tmp_path, settings)
    assert len(history) == 32  # the fourth check
    _, again = run(chunk, tmp_path, settings)
    assert torch.equal(history, again) and next(errors) == 0.1  # the checkpoint remembers


def test_bfloat16_is_close(world, tmp_path):
    chunk, *_ = world
    settings = replace(SETTINGS, activation="relu", tokens=128 * 40, learning_rate=5e-3)
    exact = run(chunk, tmp_path, settings)[1]
    half = run(chunk, tmp_path / "half", replace(settings, dtype="bfloat16"))[1]
    assert not torch.equal(exact, half)
    assert half[-1, :, 1].mean() == pytest.approx(float(exact[-1, :, 1].mean()), abs=0.05)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(world, tmp_path):
    chunk, *_ = world
    settings = replace(SETTINGS, activation="relu", learning_rate=1e30, warmup=0.0, decay=0.0)
    with pytest.raises(UserError, match="not finite at step") as error:
        run(chunk, tmp_path, settings, checkpoint_every=1)
    assert "\n" not in str(error.value) and (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "gelu"),
        ({"decoders": "shared"}, "shared"),
        ({"reads": "q"}, "'q'"),
        ({"dtype": "float16"}, "float16"),
        ({"k": 49}, "k: 49"),
        ({"tokens": 100}, "less than one batch"),
        ({"bandwidth": 0.0}, "above 0"),
    ],
)
def test_settings_out_of_range_are_one_clear_line(change, message):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change)


def test_constant_activations_are_refused(tmp_path):
    rows = np.ones((4 * LENGTH, D), np.float32)
    chunk = write_chunk(tmp_path / "0", {place: rows for place in clt_places("resid_mid", LAYERS)})
    stream = ActivationStream([chunk], clt_places("resid_mid", LAYERS), np.arange(4), batch_tokens=16)  # fmt: skip
    with pytest.raises(UserError, match="constant"):
        measure_scales(stream, "resid_mid", LAYERS)


def test_files_of_a_training_and_its_resumption(world, tmp_path):
    """From windows and chunks to clt.safetensors and training.parquet; the checkpoint is gone at the end."""
    chunk, *_ = world
    tokens = np.zeros((WINDOWS, LENGTH), np.int32)
    docs = np.array([f"d{i}" for i in range(WINDOWS)], object)
    splits = np.where(np.arange(WINDOWS) < 100, 0, 2).astype(np.int8)
    windows = Windows(tokens, docs, splits, np.zeros(WINDOWS, np.int32), np.zeros(WINDOWS, bool))
    write_windows(tmp_path / "w.parquet", windows, source="s", tokenizer="t", bos=0, seed=0)
    index = {"layers": LAYERS}
    write_json(chunk / "index.json", index, {"model": "m", "model_hash": "h", "dtype": "float32"})
    paths = {name: tmp_path / name for name in ("clt.safetensors", "training.parquet")}
    train_to_files(
        tmp_path / "w.parquet", [chunk], SETTINGS, about={"model": "m", "transcoder": "x"},
        checkpoint=tmp_path / "state.safetensors", checkpoint_every=8, device="cpu",
        clt=paths["clt.safetensors"], training=paths["training.parquet"],
    )  # fmt: skip
    clt = load_clt(paths["clt.safetensors"])
    assert (clt.about["model_hash"], clt.n_layers) == ("h", LAYERS)
    table = read_table(paths["training.parquet"])
    assert list(table["step"].unique()) == list(range(1, SETTINGS.steps + 1))
    assert (table.groupby("step")["layer"].apply(list).iloc[0]) == [0, 1, 2]
    assert not (tmp_path / "state.safetensors").exists()
