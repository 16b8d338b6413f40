"""The numerical stages compute the same on another device as on the CPU.

With ``MECHATLAS_TEST_DEVICE=cuda`` that device is a GPU. Without it, it is a pretended one (see `pretend_gpu`), which
shows whether every tensor is where it should be.
"""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from clt_makers import make_clt
from edge_models import SHAPES, make_model
from pretend_gpu import pretend_gpu

from mechatlas.capture.sweep import CaptureSettings, capture_chunk
from mechatlas.circuits.ablation import Ablation, without_each
from mechatlas.circuits.attribution import METHODS, attribute_edges
from mechatlas.circuits.backend import fast_matmul
from mechatlas.circuits.curves import Faithfulness, trace_curve
from mechatlas.circuits.exact_edges import exact_edge_effects
from mechatlas.circuits.graphs.attribute import Settings, attribute
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.lens import read_lens
from mechatlas.circuits.metrics import make_metric
from mechatlas.circuits.ov import ov_ranks, token_residuals
from mechatlas.circuits.patching import HEAD_POINTS, LAYER_POINTS, patch
from mechatlas.circuits.pruning import PruneSettings, prune
from mechatlas.corpus.windows import Windows, write_windows
from mechatlas.dictionaries.clt import LayerScales
from mechatlas.dictionaries.clt_settings import CltSettings
from mechatlas.dictionaries.clt_trainer import CltTrainer
from mechatlas.dictionaries.settings import TrainingSettings
from mechatlas.dictionaries.trainer import Scaling, SparseTrainer
from mechatlas.io import UserError, read_arrays, read_json, read_table
from mechatlas.models.precision import set_precision
from mechatlas.models.sampling import sample
from mechatlas.models.transformer import Transformer

CHOSEN = os.environ.get("MECHATLAS_TEST_DEVICE", "")
KINDS = ("gpt2", "llama")


@pytest.fixture
def device():
    if not CHOSEN:
        with pretend_gpu() as pretended:
            yield pretended
        return
    if not torch.cuda.is_available():
        pytest.skip(f"MECHATLAS_TEST_DEVICE={CHOSEN}, but torch finds no GPU")
    yield torch.device(CHOSEN)


def moved(x, device):
    """Return tensors in lists, mappings and dataclasses on a device."""
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if isinstance(x, dict):
        return {name: moved(value, device) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(moved(value, device) for value in x)
    if is_dataclass(x):
        return replace(x, **{f.name: moved(getattr(x, f.name), device) for f in fields(x)})
    return x


def both(kind, device):
    """Return the same model on the CPU and on the device."""
    model = make_model(kind)
    there = Transformer(model.config, moved(model.weights, device), "test")
    return model, there


def pairs_of(kind, count=3, length=7):
    """Return clean and corrupted prompts that differ at two positions, ends, right and wrong answers (on the CPU)."""
    generator, vocab = torch.Generator().manual_seed(0), SHAPES[kind].vocab_size
    clean, other = torch.randint(0, vocab, (2, count, length), generator=generator)
    corrupted = clean.clone()
    corrupted[:, [2, 4]] = other[:, [2, 4]]
    # The clean prompts are better by these answers, so that a circuit has something to keep.
    model = make_model(kind)
    low, high = (model.forward(x)[:, -1] for x in (corrupted, clean))
    answers, wrong = (high - low).argmax(-1), (high - low).argmin(-1)
    return clean, corrupted, torch.full((count,), length - 1), answers, wrong


def assert_equal(found, wanted):
    """Compare what both devices gave: tensors, arrays or numbers; what is kept in float32 by its rounding."""
    found, wanted = (
        x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        for x in (found, wanted)
    )
    rounding = 1e-6 if wanted.dtype == np.float32 else 1e-9
    np.testing.assert_allclose(found, wanted, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hooked", [False, True])
def test_forward_passes_and_losses(kind, hooked, device):
    cpu, there = both(kind, device)
    tokens, seen = pairs_of(kind)[0], []
    hooks = {"pattern": lambda value, layer: seen.append(value)} if hooked else None
    assert_equal(there.forward(tokens.to(device), hooks), cpu.forward(tokens, hooks))
    assert_equal(there.losses(tokens.to(device)), cpu.losses(tokens))
    for here, wanted in zip(seen[:3], seen[3:], strict=True):
        assert_equal(here, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "top_p"), [(0, None), (1.0, 0.9)])
def test_sampling(kind, temperature, top_p, device):
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    found, wanted = (
        sample(model, prompts, 5, temperature=temperature, top_p=top_p, seed=3)
        for model in reversed(both(kind, device))
    )
    assert found == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", [*HEAD_POINTS, *LAYER_POINTS])
def test_patching(kind, point, device):
    clean, corrupted, _, answers, wrong = pairs_of(kind)
    (wanted,), (found,) = (
        patch(model, clean, corrupted, answers, wrong, point=point) for model in both(kind, device)
    )
    assert_equal(found.patched, wanted.patched)


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_and_pruning(kind, device):
    clean, corrupted, _, answers, wrong = pairs_of(kind)
    here, there = (
        Ablation(model, clean, corrupted, answers, wrong) for model in both(kind, device)
    )
    assert_equal(there.values(without_each(there.full)), here.values(without_each(here.full)))
    wanted, found = (prune(ablation, PruneSettings()) for ablation in (here, there))
    assert [r["node"] for r in found.records] == [r["node"] for r in wanted.records]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_edge_attribution(kind, method, device):
    clean, corrupted, end, answers, wrong = pairs_of(kind)
    wanted, found = (
        attribute_edges(
            model, clean, corrupted, end, make_metric("logit_difference", model, answers, wrong),
            method=method, steps=3,
        ).mean
        for model in both(kind, device)
    )  # fmt: skip
    assert np.abs(wanted).max() > 0
    assert_equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_edges_and_curves(kind, device):
    clean, corrupted, end, answers, wrong = pairs_of(kind)
    results = []
    for model in both(kind, device):
        metric = make_metric("logit_difference", model, answers, wrong)
        effects = exact_edge_effects(model, clean, corrupted, end, metric).mean
        runs = Faithfulness(model, clean, corrupted, end, metric)
        curve = trace_curve(runs, effects, np.random.default_rng(0))
        results.append((effects, curve.faithfulness))
    for found, wanted in zip(*results, strict=True):
        assert_equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [None, 5])
def test_attribution_graphs(kind, cap, device):
    tokens = torch.tensor([0, 7, 3, 22, 7, 39, 1])
    graphs = []
    for model in both(kind, device):
        clt = make_clt(d=model.config.d_model, reads="mlp_in", skip=True).to(model.device)
        run = run_prompt(model, clt, tokens.to(model.device))
        graphs.append(attribute(run, settings=Settings(max_features=cap)))
    wanted, found = graphs
    assert_equal(found.edges.toarray(), wanted.edges.toarray())
    assert np.abs(found.gaps()[found.has_row]).max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_lenses_and_ov(kind, device):
    clean, _, _, answers, wrong = pairs_of(kind)
    results = []
    for model in both(kind, device):
        seen = token_residuals(model, clean, torch.tensor([[1, 3]] * len(clean)))
        results.append(ov_ranks(model, seen.flatten(0, 1), answers.repeat_interleave(2)[:, None]))
    wanted, found = results
    assert_equal(found, wanted)
    lenses = [
        read_lens(model, clean, torch.stack([answers, wrong], 1)) for model in both(kind, device)
    ]
    for name, value in vars(lenses[0]).items():
        if isinstance(value, torch.Tensor | np.ndarray):
            assert_equal(getattr(lenses[1], name), value)


def steps(trainer, places, device, d, count=6):
    """Make some steps on random activations; return the losses."""
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(count):
        batch = {place: torch.randn(64, d, generator=generator).to(device) for place in places}
        loss = trainer.loss(batch, step)
        trainer.update(loss, step)
        losses.append(float(loss.detach()))
        trainer.measure()
    return losses


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("latents", [24, 128])
def test_training_of_autoencoders(activation, latents, device):
    d, place = 8, ("resid_mid", 0)
    settings = TrainingSettings(
        latents=latents,
        activation=activation,
        k=3,
        tokens=64 * 20,
        batch_tokens=64,
        dead_tokens=128,
    )
    results = []
    for where in (torch.device("cpu"), device):
        scaling = Scaling(torch.zeros(d).to(where), torch.zeros(d).to(where), 1.0, 1.0)
        trainer = SparseTrainer(settings, place, place, scaling)
        results.append(steps(trainer, [place], where, d))
        trainer.result({})
    np.testing.assert_allclose(*results, rtol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("decoders", ["cross", "tied"])
def test_training_of_transcoders(activation, decoders, device):
    d, layers = 8, 2
    settings = CltSettings(
        features=96, activation=activation, k=3, tokens=64 * 20, batch_tokens=64, decoders=decoders,
        skip=True, dead_tokens=128,
    )  # fmt: skip
    places = [(point, layer) for point in ("resid_mid", "mlp_out") for layer in range(layers)]
    results = []
    for where in (torch.device("cpu"), device):
        means, ones = torch.zeros(layers, d).to(where), torch.ones(layers).to(where)
        trainer = CltTrainer(settings, LayerScales(means, ones, means, ones))
        results.append(steps(trainer, places, where, d))
        trainer.result({})
    np.testing.assert_allclose(*results, rtol=1e-4)


def windows_of(count, length=12):
    """Return windows of two documents in three splits, a few of them in the pattern sample."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, (count, length)).astype(np.int32)
    docs = np.array([f"d{i % 5}" for i in range(count)], dtype=object)
    splits = (np.arange(count) % 5 % 3).astype(np.int8)
    return Windows(tokens, docs, splits, np.zeros(count, np.int32), rng.random(count) < 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_capture(kind, device, tmp_path):
    write_windows(tmp_path / "windows.parquet", windows_of(11))
    settings = CaptureSettings(
        candidates=20, sample=10, random_events=6, batch_windows=4, pattern_dtype="float32",
        activations=("resid_mid", "embed"),
    )  # fmt: skip
    for name, model in zip("ab", both(kind, device), strict=True):
        capture_chunk(
            model,
            tmp_path / "windows.parquet",
            tmp_path / name,
            first=1,
            stop=11,
            settings=settings,
        )
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        here, there = tmp_path / "a" / name, tmp_path / "b" / name
        if name.endswith(".safetensors"):
            wanted, found = read_arrays(here), read_arrays(there)
            for array in wanted:
                np.testing.assert_allclose(found[array], wanted[array], rtol=1e-5, atol=1e-6)
        elif name.endswith(".parquet"):
            pd.testing.assert_frame_equal(read_table(there), read_table(here), rtol=1e-5)


class Small(Transformer):
    """A model on a device that has memory for two windows."""

    tried: list[int]

    def forward(self, tokens, *args, **kwargs):
        self.tried.append(len(tokens))
        if len(tokens) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore")
        return super().forward(tokens, *args, **kwargs)


def test_a_batch_that_does_not_fit_is_halved_before_anything_is_kept(device, tmp_path, caplog):
    cpu, there = both("gpt2", device)
    small = Small(there.config, there.weights, "test")
    small.tried, small.room = [], 2
    write_windows(tmp_path / "windows.parquet", windows_of(11))
    chunk = {"first": 0, "stop": 11}
    settings = CaptureSettings(candidates=20, sample=10, random_events=6, batch_windows=8)
    capture_chunk(small, tmp_path / "windows.parquet", tmp_path / "a", **chunk, settings=settings)
    assert small.tried == [8, 4, 2, *(2, 2, 2, 2, 2, 1)]
    assert "capture.batch_windows: 8 needs more memory" in caplog.text
    # The same as if that size had been asked for.
    chosen = replace(settings, batch_windows=2)
    capture_chunk(there, tmp_path / "windows.parquet", tmp_path / "b", **chunk, settings=chosen)
    for path in (tmp_path / "b").glob("*.parquet"):
        pd.testing.assert_frame_equal(read_table(tmp_path / "a" / path.name), read_table(path))
    assert read_json(tmp_path / "a" / "index.json")["batch_windows"] == 2
    small.room = 0
    with pytest.raises(UserError, match="not even a batch of 1 fits.*Tried to allocate 20.00 MiB"):
        capture_chunk(
            small, tmp_path / "windows.parquet", tmp_path / "c", **chunk, settings=settings
        )
    assert not (tmp_path / "c").exists()


def test_tf32_is_float32_on_a_cpu_and_never_reaches_circuits(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    assert set_precision("tf32", "cpu") is torch.float32 and not asked
    assert set_precision("tf32", "cuda:1") is torch.float32 and asked == ["high"]
    assert set_precision("bfloat16", "cuda") is torch.bfloat16 and asked[1:] == ["highest"]
    with pytest.raises(UserError, match="dtype: 'float16' is not supported"):
        set_precision("float16", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with fast_matmul():
        assert asked[2:] == ["highest"]
