"""Edges and halves of prompts shared by jobs: the bytes of one job, and every part done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked_world import script
from edge_models import make_model
from node_reference import solved_pairs
from test_circuit_studies import OPTIONS, Words, planted_data, settings_of

from mechatlas.circuits import edge_parts, stability
from mechatlas.circuits.batches import Batch, Batches
from mechatlas.circuits.edge_parts import EdgeParts, EdgeSteps, trace_parts
from mechatlas.circuits.edge_study import EdgeStudy, study_edges
from mechatlas.circuits.exact_edges import each_pair
from mechatlas.circuits.metrics import make_metric
from mechatlas.circuits.resume import Afresh
from mechatlas.circuits.task_data import TaskData
from mechatlas.config_spread import edge_batches, half_batches
from mechatlas.costs.shapes import Shape
from mechatlas.io import UserError, write_json, write_table
from mechatlas.tasks.pairs import PairBatch

SMALL = {
    **{"exact_prompts": 2, "acdc_prompts": 1, "random_sets": 3, "curve_random_sets": 2},
    **{"shares": [0.05, 0.3, 1.0], "path_receivers": 1, "acdc_threshold": 0.2},
}
#: Nothing that is done one after the other.
QUICK = {
    **{"minimise": False, "acdc_orders": 1, "path_receivers": 0},
    **{"methods": ["eap"], "rank_by": "eap"},
}
NODE_TABLES = (
    *("effects", "pruning", "curve", "stability", "completeness", "minimality", "random"),
)


def random_data(kind: str, dtype: torch.dtype, pairs: int = 6) -> TaskData:
    model = make_model(kind, dtype=dtype)
    clean, corrupted, *_ = solved_pairs(model, pairs)
    # By these answers the clean prompts are better.
    change = model.forward(clean)[:, -1] - model.forward(corrupted)[:, -1]
    words = (clean, corrupted, change.argmax(1), change.argmin(1))
    clean, corrupted, answers, wrong = (x.numpy() for x in words)
    split = tuple(["discovery"] * (pairs // 2) + ["held_out"] * (pairs - pairs // 2))
    end = {"end": np.full(pairs, clean.shape[1] - 1)}
    batch = PairBatch(
        "random", clean, corrupted, answers, wrong, end, ("one",) * pairs, split, False
    )
    return TaskData("m", "random", model, Words(), batch, {"model": f"{kind} {dtype}"})


def batches_of(data: TaskData, settings: dict[str, Any], folder: Path, jobs: int) -> list[str]:
    """Do the parts of all jobs, the last job first."""
    paths = [str(folder / f"{number}.safetensors") for number in range(jobs)]
    for number in reversed(range(jobs)):
        steps = EdgeSteps(folder / "steps", data, settings, OPTIONS["seed"])
        batch = Batch(Afresh(), steps.parts_facts)
        trace_parts(data, settings, steps, batch, (number, jobs), seed=OPTIONS["seed"])
        batch.write(paths[number])
    return paths


def study(data: TaskData, settings: dict[str, Any], folder: Path, paths: Any = ()) -> EdgeStudy:
    kept = EdgeSteps(folder, data, settings, OPTIONS["seed"])
    done = Batches(paths, kept.parts_facts, Afresh())
    return study_edges(data, settings, log=kept.log, parts=kept.parts, done=done, **OPTIONS)


def written(found: EdgeStudy, folder: Path) -> dict[str, bytes]:
    """Return the bytes of everything that a study writes."""
    files = {"circuit": json.dumps(vars(found.circuit), default=lambda x: x.tolist()).encode()}
    files["acdc"] = json.dumps(vars(found.acdc), default=lambda x: x.tolist()).encode()
    for name, table in found.tables.items():
        write_table(folder / "table.parquet", table, {})
        files[name] = (folder / "table.parquet").read_bytes()
    return files


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a job has done this")

    for name in names:
        monkeypatch.setattr(edge_parts, name, refuse)


@pytest.mark.parametrize(
    ("kind", "dtype", "jobs", "changes"),
    [
        ("gpt2", torch.float64, 3, {}),
        ("llama", torch.float64, 5, {"metric": "kl", "acdc_orders": 1}),
        # More jobs than parts.
        ("gpt2", torch.float32, 9, QUICK),
    ],
)
def test_parts_in_jobs_have_the_bytes_of_one_job(
    kind: str, dtype: torch.dtype, jobs: int, changes: dict, tmp_path: Path, monkeypatch: Any
) -> None:
    data, settings = random_data(kind, dtype), settings_of("edges", **SMALL | changes)
    whole = written(study(data, settings, tmp_path / "one"), tmp_path)
    paths = batches_of(data, settings, tmp_path, jobs)
    # Curves of exact effects need those of all layers, and come last.
    curves: list[Any] = []
    real = edge_parts.trace_curve
    forbid(monkeypatch, "acdc", "smallest_circuit", "each_pair", "PathSweep")
    monkeypatch.setattr(
        edge_parts, "trace_curve", lambda *a, **k: (curves.append(k["signed"]), real(*a, **k))[1]
    )
    gathered = written(study(data, settings, tmp_path / "many", paths), tmp_path)
    assert [name for name in whole if whole[name] != gathered[name]] == []
    assert curves == [False, True]


def test_what_waits_for_exact_effects_stays_in_the_last_job(tmp_path: Path) -> None:
    data = random_data("gpt2", torch.float64)
    settings = settings_of("edges", **SMALL | {"acdc_orders": 1}, rank_by="exact")
    whole = written(study(data, settings, tmp_path / "one"), tmp_path)
    paths = batches_of(data, settings, tmp_path, 2)
    gathered = written(study(data, settings, tmp_path / "many", paths), tmp_path)
    assert whole == gathered
    parts = EdgeParts(data, settings, seed=0, log=None, kept=None, done=Afresh()).independent()
    assert {part.func.__name__ for part in parts} == {"acdc", "curve", "into_layer"}


@pytest.mark.parametrize(
    "changes",
    [{}, {"rank_by": "exact"}, {"exact_prompts": 0}, {"acdc_orders": 0, "path_receivers": 3}],
)
def test_the_number_of_parts_is_known_before(changes: dict[str, Any]) -> None:
    data, settings = planted_data(8), settings_of("edges", **SMALL | changes)
    parts = EdgeParts(data, settings, seed=0, log=None, kept=None, done=Afresh())
    if settings["rank_by"] != "exact":
        # The two heads of the planted circuit come first, then an MLP, which has one input.
        receivers = 1 + 3 * min(2, settings["path_receivers"]) + (settings["path_receivers"] > 2)
        assert len(parts.receivers()) == receivers
    most = len(edge_batches(Shape.of(data.model.config), settings, 1))
    assert most - 2 * (settings["path_receivers"] > 2) == len(parts.independent())


def test_a_killed_job_finds_its_pairs_and_decisions_again(tmp_path: Path, monkeypatch: Any) -> None:
    data = random_data("gpt2", torch.float64)
    settings = settings_of("edges", **SMALL | QUICK)
    whole = batches_of(data, settings, tmp_path, 1)
    before = Path(whole[0]).read_bytes()
    forbid(monkeypatch, "each_pair")
    evaluated = []
    real = edge_parts.acdc
    monkeypatch.setattr(
        edge_parts, "acdc", lambda *a, **k: (found := real(*a, **k), evaluated.append(found.evaluated))[0]
    )  # fmt: skip
    assert Path(batches_of(data, settings, tmp_path, 1)[0]).read_bytes() == before
    assert evaluated == [0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_effects_into_layers_are_columns_of_all(kind: str, dtype: torch.dtype) -> None:
    model = make_model(kind, dtype=dtype)
    clean, corrupted, answers, wrong = solved_pairs(model, 2)
    pairs = (clean, corrupted, torch.full((2,), clean.shape[1] - 1))
    metric = make_metric("logit_difference", model, answers, wrong)
    layers = model.config.n_layers
    for cuts in ([0, 1, 2, layers], [0, 2, layers]):
        runs = [range(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        parts = [each_pair(model, *pairs, metric, layers=run) for run in runs]
        joined = [np.concatenate(one, axis=1) for one in zip(*parts, strict=True)]
        np.testing.assert_array_equal(joined, list(each_pair(model, *pairs, metric)))


def test_batches_of_other_settings_are_refused(tmp_path: Path) -> None:
    data, settings = planted_data(8), settings_of("edges", **SMALL | QUICK)
    path = str(tmp_path / "0.safetensors")
    # A job without parts writes an empty file.
    facts = EdgeSteps(tmp_path, data, settings, OPTIONS["seed"]).parts_facts
    Batch(Afresh(), facts).write(path)
    assert Batches([path], facts, Afresh()).batches == [{}]
    with pytest.raises(UserError, match=r"0\.safetensors is of another model.*delete it"):
        study(data, {**settings, "target": 0.5}, tmp_path, [path])


def test_halves_in_jobs_have_the_bytes_of_one_job(tmp_path: Path, monkeypatch: Any) -> None:
    settings = settings_of(
        "nodes", stability_samples=5, random_circuits=4, subset_samples=2, threshold=60
    )
    prune_halves, prune_nodes = script("prune_halves"), script("prune_nodes")
    for module in (prune_halves, prune_nodes):
        monkeypatch.setattr(module, "load_task_data", lambda *_: planted_data(12))
    pruned, real = [], stability.prune
    monkeypatch.setattr(stability, "prune", lambda *a: (pruned.append(1), real(*a))[1])
    write_json(tmp_path / "audit.json", {"rows": []}, {})
    task = {"prompts": "", "model": "", "name": "m", "device": "cpu", "dtype": "float64"}
    task |= {"nodes": settings, "bos": None}

    def gather(folder: Path, halves: list[str]) -> dict[str, bytes]:
        tables = {name: str(folder / f"{name}.parquet") for name in NODE_TABLES}
        circuits = {name: str(folder / f"{name}.json") for name in ("circuit", "least_harmful")}
        prune_nodes.main(
            **task, **tables, **circuits,
            audit=str(tmp_path / "audit.json"), options=OPTIONS, steps=str(folder / "steps"), halves=halves,
        )  # fmt: skip
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    whole = gather(tmp_path / "one", [])
    assert len(whole) > 9 and len(pruned) == 5
    jobs = len(half_batches(settings, 2))
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(jobs)]
    for number, path in enumerate(paths):
        before = len(pruned)
        prune_halves.main(
            **task, batch=[number, jobs], seed=0, steps=str(tmp_path / "steps"), halves=path
        )
        assert 1 <= len(pruned) - before <= 2
    assert jobs == 3 and gather(tmp_path / "many", paths) == whole
    assert len(pruned) == 10
