"""Files of other tools: what is written is read back, and old or broken files are read or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from latent_world import make_windows

from mechatlas.dictionaries.code_files import code_file, read_codes
from mechatlas.dictionaries.delphi import read_delphi, write_delphi
from mechatlas.explain.latents.debugger_files import (
    ScoredExplanation,
    Simulated,
    collate,
    read_collated,
    read_scored,
    simulation_scores,
    write_collated,
    write_scored,
)
from mechatlas.io import UserError, read_arrays, write_arrays


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(-1, 1, (9, 7)), 0).astype(np.float32)
    values[:, 0] = 9  # BOS does not count
    return values


TEXTS = [[f" w{w}.{t}" for t in range(7)] for w in range(9)]


def test_collated_activations_survive(tmp_path, values):
    unit = collate(3, 120, TEXTS, values, np.array([2, 0]), np.array([5]))
    path = tmp_path / "120.json"
    write_collated(path, unit)
    assert read_collated(path) == unit
    data = json.loads(path.read_text())
    assert data["dataclass_name"] == "NeuronRecord"
    assert data["neuron_id"] == {
        "neuron_index": 120,
        "layer_index": 3,
        "dataclass_name": "NeuronId",
    }
    first = data["most_positive_activation_records"][0]
    assert first["tokens"] == TEXTS[2][1:] and first["activations"] == values[2, 1:].tolist()
    assert data["mean"] == pytest.approx(values[:, 1:].mean())
    assert data["variance"] == pytest.approx(values[:, 1:].var(), rel=1e-6)


def test_old_collated_files_are_read(tmp_path):
    old = {
        "neuron_id": {"layer": 5, "idx": 17},
        "most_positive_activation_records": [{"tokens": ["a", "b"], "activations": [0, 1.5]}],
        "random_sample": [{"tokens": ["c"], "activations": [None]}],
    }
    path = tmp_path / "17.json"
    path.write_text(json.dumps(old))
    unit = read_collated(path)
    assert (unit.layer, unit.index) == (5, 17) and unit.moments["mean"] is None
    assert unit.top[0].activations == (0.0, 1.5) and np.isnan(unit.random[0].activations[0])


@pytest.mark.parametrize(
    "data",
    [
        {"neuron_id": {"layer_index": 1}},
        {
            "neuron_id": {"layer_index": 1, "neuron_index": 2},
            "most_positive_activation_records": [{"tokens": ["a"], "activations": []}],
        },
        [1, 2],
    ],
)
def test_other_files_are_refused_by_name(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"x\.json is no"):
        read_collated(path)
    with pytest.raises(UserError, match=r"x\.json is no"):
        read_scored(path)


def test_scored_explanations_survive(tmp_path):
    rng = np.random.default_rng(1)
    parts = [
        Simulated(("a", " b", "c"), tuple(rng.random(3).tolist()), tuple(rng.random(3).tolist()))
        for _ in range(4)
    ]
    one = ScoredExplanation("fires on cats", tuple(parts), simulation_scores(parts))
    none = ScoredExplanation("nothing", (), simulation_scores([]))
    path = tmp_path / "7.jsonl"
    write_scored(path, 2, 7, [one, none])
    assert read_scored(path) == (2, 7, [one, none])
    expected, true = (np.concatenate([getattr(p, n) for p in parts]) for n in ("expected", "true"))
    assert one.scores["ev_correlation_score"] == pytest.approx(np.corrcoef(expected, true)[0, 1])
    assert one.scores["rsquared_score"] == pytest.approx(
        1 - ((true - expected) ** 2).mean() / (true**2).mean()
    )
    flat = Simulated(("a", "b"), (0.0, 0.0), (0.0, 0.0))
    assert set(simulation_scores([flat]).values()) == {None}


def make_codes(folder, latents=11):
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    latent = np.sort(rng.integers(0, latents, 200))
    place = rng.permutation(40 * 11)[:200]
    order = np.lexsort((place, latent))
    arrays = {
        "offsets": np.r_[0, np.cumsum(np.bincount(latent, minlength=latents))].astype(np.int64),
        "window": (place[order] // 11).astype(np.int32),
        "position": (1 + place[order] % 11).astype(np.int32),
        "value": rng.random(200).astype(np.float16).astype(np.float32) + np.float32(0.5),
    }
    write_arrays(folder / code_file(0), arrays, {})
    return folder


def test_delphi_files_survive(tmp_path):
    windows = make_windows()
    chunk = make_codes(tmp_path / "codes")
    folder = tmp_path / "latents" / "layers.0"
    write_delphi(folder, [chunk], 0, windows.tokens, splits=3, about={"model_name": "m"})
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == ["0_2.safetensors", "3_6.safetensors", "7_10.safetensors"]
    own = read_codes([chunk], 0, 0, 11)
    found = list(read_delphi(folder))
    assert np.array_equal(np.concatenate([c.window for c, _ in found]), own.window)
    assert np.array_equal(np.concatenate([c.position for c, _ in found]), own.position)
    latents = np.concatenate([c.first + c.latents for c, _ in found])
    assert np.array_equal(latents, own.latents)
    assert np.allclose(np.concatenate([c.value for c, _ in found]), own.value, rtol=1e-3)
    tokens = found[0][1]
    assert np.array_equal(tokens[:, 1:], windows.tokens[:, 1:]) and (tokens[:, 0] == -1).all()
    arrays = read_arrays(folder / names[1])
    assert arrays["locations"].dtype == np.uint16 and arrays["activations"].dtype == np.float16
    assert arrays["locations"][:, 2].max() <= 3
    # Written again from what was read: the same bytes of content.
    assert json.loads((folder / "config.json").read_text())["n_tokens"] == 40 * 11


def test_broken_delphi_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no files"):
        list(read_delphi(tmp_path))
    arrays = {
        "locations": np.array([[0, 0, 9]], np.uint16),
        "activations": np.ones(1, np.float16),
        "tokens": np.ones((2, 3), np.int64),
    }
    write_arrays(tmp_path / "0_4.safetensors", arrays, {})
    with pytest.raises(UserError, match=r"0_4\.safetensors.*beyond"):
        list(read_delphi(tmp_path))
