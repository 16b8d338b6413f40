"""Work that is spread over jobs gives the bytes of one job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from asked_world import capture, script
from edge_models import make_model
from latent_world import make_windows
from node_reference import solved_pairs

from mechatlas.circuits.layer_batches import LayerBatch, LayerBatches
from mechatlas.circuits.patching import HEAD_POINTS, LAYER_POINTS, patch, role_places
from mechatlas.circuits.resume import Parts
from mechatlas.config_spread import check_spread, head_batches, latent_batches
from mechatlas.corpus.windows import write_windows
from mechatlas.costs.shapes import KNOWN
from mechatlas.dictionaries.latent_merge import OWN, RANDOM_DIRECTION
from mechatlas.io import UserError, read_jsonl, write_table
from mechatlas.spread import batch_names, share

GPT2 = KNOWN["openai-community/gpt2"]
METRICS = ("logit_difference", "kl", "rank", "probability_difference")
PROGRAMS = {
    **{"max_parts": 1, "parsimony": 0.02, "rule_windows": 3, "steps": 2, "learning_rate": 0.3},
    **{"penalty": 1e-4, "factors": 2, "batch_windows": 8},
}
#: Rules that do a part of the work of others.
GATHERED_BY = {
    **{"patch_layers": "measure_components", "trace_parts": "trace_edges"},
    "prune_halves": "prune_nodes",
}


@pytest.mark.parametrize("units", [1, 2, 7, 12, 100])
@pytest.mark.parametrize("per_job", [1, 3, 5, 12, 200])
def test_jobs_share_everything_once_and_in_order(units: int, per_job: int) -> None:
    names = batch_names(units, per_job)
    jobs = len(names) or 1
    shares = [share(units, batch, jobs) for batch in range(jobs)]
    assert [unit for mine in shares for unit in mine] == list(range(units))
    assert max(map(len, shares)) <= per_job
    assert names == [f"{i:04d}" for i in range(jobs)] or (names == [] and per_job >= units)
    assert batch_names(units, 0) == []


def test_jobs_of_heads_have_whole_layers() -> None:
    sizes = {0: 0, 1: 12, 12: 12, 23: 12, 24: 6, 60: 3, 143: 2, 144: 0, 1000: 0}
    assert {n: len(head_batches(GPT2, n)) for n in sizes} == sizes
    assert len(latent_batches(GPT2, {"layers": [3, 4]}, 20, 8)) == 5
    assert len(latent_batches(GPT2, {"layers": None}, 20, 100)) == 3
    assert latent_batches(GPT2, {}, 20, 0) == []


def test_models_whose_size_is_unknown_are_one_line(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "models": {"here": {"path": "x"}, "gpt2": {"hub": "openai-community/gpt2"}},
        "explain": {"units_per_job": 100},
        "circuits": {"layers_per_job": 2, "parts_per_job": 8},
    }
    assert list(check_spread(config, tmp_path)) == []
    config["models"]["other"] = {"hub": "a/b"}
    (line,) = check_spread(config, tmp_path)
    assert line.startswith("explain.units_per_job: 100 needs the size of models.other (a/b)")
    assert line.endswith(
        "snakemake --cores 1 resources/downloads/models/other "
        "--config 'explain={units_per_job: 0}' 'circuits={layers_per_job: 0, parts_per_job: 0}'"
    )
    config["explain"]["units_per_job"] = 0
    (line,) = check_spread(config, tmp_path)
    assert line.startswith("circuits.layers_per_job: 2 needs")
    config["circuits"]["layers_per_job"] = 0
    (line,) = check_spread(config, tmp_path)
    assert line.startswith("circuits.parts_per_job: 8 needs")
    config["circuits"]["parts_per_job"] = 0
    assert list(check_spread(config, tmp_path)) == []


def test_forecast_counts_the_jobs() -> None:
    from mechatlas.costs.__main__ import read_config, shapes_of
    from mechatlas.costs.estimate import estimate
    from mechatlas.costs.work import work_of

    config = read_config([])
    shapes = shapes_of(config)
    one = {work.rule: work for work in work_of(config, shapes)}
    config["explain"]["units_per_job"] = 8
    config["circuits"] |= {"layers_per_job": 2, "parts_per_job": 2}
    several = {work.rule: work for work in work_of(config, shapes)}
    jobs = {rule: work.jobs for rule, work in several.items()}
    # With their controls: four layers on two sources, two on one; one dictionary; four tasks in two jobs, and one job.
    assert [jobs[rule] for rule in ("fit_heads", "explain_heads")] == [2 * (4 * 2 + 2), 6]
    assert [jobs[rule] for rule in ("fit_latents", "explain_latents")] == [2, 1]
    assert [jobs[rule] for rule in ("patch_layers", "measure_components")] == [8, 5]
    # Two orders, the smallest circuit, four curves, four receivers and four layers, or two, are 15 parts or 13.
    assert [jobs[rule] for rule in ("trace_parts", "trace_edges")] == [4 * 8 + 7, 5]
    assert [jobs[rule] for rule in ("prune_halves", "prune_nodes")] == [5 * 2, 5]
    assert several["fit_heads"].operations == one["explain_heads"].operations
    for spread, rest in GATHERED_BY.items():
        both = several[spread].operations + several[rest].operations
        assert several[rest].operations > 0 and both == pytest.approx(one[rest].operations)
    hours = {cost.rule: cost.core_hours for cost in estimate(list(several.values()), 128)}
    before = {cost.rule: cost.core_hours for cost in estimate(list(one.values()), 128)}
    assert hours["fit_heads"] > before["explain_heads"]
    assert all(hours[a] + hours[b] > before[b] for a, b in GATHERED_BY.items())
    assert not {"fit_heads", *GATHERED_BY} & set(one)
    assert hours["score_heads"] == before["score_heads"]


# --- heads and latents ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return capture(tmp_path_factory.mktemp("world"), hostile=False)


@pytest.mark.parametrize(("max_heads", "jobs"), [(200, 2), (3, 2), (200, 3)])
def test_heads_in_batches_are_those_of_one_job(
    max_heads: int, jobs: int, world: dict[str, Any], tmp_path: Path
) -> None:
    places = {"windows": world["windows"], "chunks": world["chunks"], "model": world["model"]}
    settings = {
        **{"trained_chunks": world["chunks"], "bos": None, "max_heads": max_heads, "seed": 0},
        **{"programs": PROGRAMS, "controls": ["shuffled"], "device": "cpu", "gpu": 0},
    }
    whole, gathered = tmp_path / "whole.jsonl", tmp_path / "gathered.jsonl"
    script("explain_heads").main(**places, **settings, explanations=str(whole))
    batches = [str(tmp_path / f"{batch}.jsonl") for batch in range(jobs)]
    for batch, path in enumerate(batches):
        script("fit_heads").main(**places, **settings, batch=[batch, jobs], explanations=path)
    script("explain_heads").main(**places, **settings, explanations=str(gathered), batches=batches)
    assert gathered.read_bytes() == whole.read_bytes() and len(read_jsonl(whole)) > 5
    sidecars = [Path(f"{path}.provenance.json").read_bytes() for path in (whole, gathered)]
    assert sidecars[0] == sidecars[1]
    # Three jobs are more than there are layers, and with few heads a layer may have none.
    layers = {record["layer"] for record in read_jsonl(whole)}
    assert [bool(read_jsonl(path)) for path in batches].count(True) == len(layers)


def latents(folder: Path) -> tuple[str, str]:
    """Windows of random tokens and four latents, each active on a token of its own and its neighbour."""
    windows = make_windows(vocabulary=40)
    write_windows(folder / "windows.parquet", windows)
    rows = []
    for control in (OWN, RANDOM_DIRECTION):
        for layer, latent, token in ((0, 3, 5), (0, 9, 6), (1, 2, 7), (2, 8, 8)):
            at = np.argwhere((windows.tokens == token) | (windows.tokens == token + 10))
            rows += [
                (layer, latent, control, int(w), int(t), 1.0 + (w + t) % 3) for w, t in at if t
            ]
    columns = ["layer", "latent", "control", "window", "position", "activation"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.sort_values(["layer", "latent", "control", "window", "position"])
    write_table(folder / "activations.parquet", table, {"point": "resid_mid"})
    return str(folder / "windows.parquet"), str(folder / "activations.parquet")


@pytest.mark.parametrize("jobs", [2, 3, 6])
def test_latents_in_batches_are_those_of_one_job(
    jobs: int, world: dict[str, Any], tmp_path: Path
) -> None:
    windows, activations = latents(tmp_path)
    settings = {
        **{"windows": windows, "activations": activations, "model": world["model"], "bos": None},
        **{"programs": {"max_conditions": 2, "max_rules": 2}, "seed": 0},
        "controls": ["shuffled", "random_direction"],
    }
    whole, gathered = tmp_path / "whole.jsonl", tmp_path / "gathered.jsonl"
    script("explain_latents").main(**settings, explanations=str(whole))
    batches = [str(tmp_path / f"{batch}.jsonl") for batch in range(jobs)]
    for batch, path in enumerate(batches):
        script("fit_latents").main(**settings, batch=[batch, jobs], explanations=path)
    script("explain_latents").main(**settings, explanations=str(gathered), batches=batches)
    assert gathered.read_bytes() == whole.read_bytes() and len(read_jsonl(whole)) == 12
    sidecars = [Path(f"{path}.provenance.json").read_bytes() for path in (whole, gathered)]
    assert sidecars[0] == sidecars[1]
    assert sum(bool(read_jsonl(path)) for path in batches) == min(jobs, 4)


# --- patching -------------------------------------------------------------------------------------


def swept(model: Any, pairs: Any, rows: int | None, point: str, store: Any, layers: Any = None):
    places = {"all": torch.ones_like(pairs[0], dtype=torch.bool)}
    places |= role_places({"a": torch.tensor([2, 4, -1, 2, 8]), "end": torch.full((5,), 8)}, 9)
    return patch(
        model, *pairs,
        point=point, places=places, metrics=METRICS, rows=rows, parts=store, layers=layers,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("rows", "jobs"), [(1, 3), (60, 2), (130, 5), (130, 2), (None, 3)])
def test_layers_in_batches_have_the_digits_of_one_job(
    kind: str, rows: int | None, jobs: int, tmp_path: Path
) -> None:
    # In the precision of a run: that numbers are close would show less than that they are the same.
    model = make_model(kind, dtype=torch.float32)
    pairs, facts = solved_pairs(model), {"model": "m"}
    kept = Parts(tmp_path, facts)
    paths = [str(tmp_path / f"{batch}.safetensors") for batch in range(jobs)]
    points = HEAD_POINTS + LAYER_POINTS
    for batch, path in enumerate(paths):
        mine = LayerBatch(kept, share(model.config.n_layers, batch, jobs))
        for point in points:
            assert swept(model, pairs, rows, point, mine, mine.layers) == []
        mine.write(path)
    joined = LayerBatches(paths, facts)
    for point in points:
        whole = swept(model, pairs, rows, point, None)
        for one, two in zip(whole, swept(model, pairs, rows, point, joined), strict=True):
            assert torch.equal(one.clean, two.clean) and torch.equal(one.corrupted, two.corrupted)
            assert torch.equal(one.patched.nan_to_num(9e9), two.patched.nan_to_num(9e9))
            assert one.patched.shape[0] == 3 and one.patched.isnan().any()


def test_every_job_patches_its_own_layers_only(tmp_path: Path, monkeypatch) -> None:
    from mechatlas.circuits import patching

    model = make_model()
    pairs = solved_pairs(model)
    ran: list[int] = []
    start = patching._start
    monkeypatch.setattr(patching, "_start", lambda *a: (ran.append(a[3]), start(*a))[1])
    for batch in range(3):
        mine = LayerBatch(Parts(tmp_path, {}), share(3, batch, 3))
        patch(model, *pairs, rows=1, parts=mine, layers=mine.layers)
        assert set(ran) == {batch}
        ran.clear()
    # Killed before it wrote its file, a job finds its parts again.
    again = LayerBatch(Parts(tmp_path, {}), share(3, 1, 3))
    patch(model, *pairs, rows=1, parts=again, layers=again.layers)
    assert ran == [] and again.found


def test_batches_of_something_else_are_refused(tmp_path: Path) -> None:
    model = make_model()
    pairs = solved_pairs(model)
    path = str(tmp_path / "0000.safetensors")
    mine = LayerBatch(Parts(tmp_path, {"model": "m"}), range(3))
    patch(model, *pairs, parts=mine, layers=mine.layers)
    mine.write(path)
    with pytest.raises(UserError, match=r"0000\.safetensors is of another model.*delete it"):
        LayerBatches([path], {"model": "n"})
    # Prompts run in other groups on a GPU.
    with pytest.raises(UserError, match="another kind of device"):
        patch(model, *pairs, rows=1, parts=LayerBatches([path], {"model": "m"}))
