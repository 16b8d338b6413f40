"""Forecasts of time, memory and disk: the laws of work, what they give for measured runs, the written page."""

from __future__ import annotations

import copy
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mechatlas.costs.__main__ import (
    DOCS,
    SAMPLED_CLOSELY,
    SAMPLED_LATER,
    main,
    read_config,
    shapes_of,
    whole_cpu,
)
from mechatlas.costs.circuit_passes import edge_passes
from mechatlas.costs.estimate import (
    TABLES,
    Measured,
    estimate,
    faster,
    gpu_rate,
    read_runs,
    short,
    start_and_slope,
)
from mechatlas.costs.scale import page
from mechatlas.costs.shapes import KNOWN, shape_of
from mechatlas.costs.work import work_of
from mechatlas.io import UserError

ROOT = Path(__file__).resolve().parents[2]
GPT2 = KNOWN["openai-community/gpt2"]


@pytest.fixture(scope="module")
def default():
    config = read_config([])
    return config, shapes_of(config)


def works(config, shapes):
    return {work.rule: work for work in work_of(config, shapes)}


def test_sizes_are_those_of_the_models() -> None:
    # 124.4 million with positions, norms and biases, which are not counted.
    assert GPT2.weights == 84_934_656 and abs(GPT2.all_weights - 123.5e6) < 1e5
    assert abs(KNOWN["meta-llama/Llama-2-7b-hf"].all_weights - 6.6e9) < 1e8
    assert KNOWN["openai-community/gpt2-xl"].weights == 48 * 12 * 1600**2


def test_operations_of_a_forward_pass_are_those_that_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mechatlas.costs.shapes import Shape
    from mechatlas.models.config import ModelConfig
    from mechatlas.models.transformer import Transformer
    from mechatlas.models.weights import random_weights

    config = ModelConfig(
        "llama", 3, 4, 2, 32, 8, 48, 64, 100, 1e-5, "silu", False, True, False, False
    )
    model = Transformer(config, random_weights(config, 0, "cpu", torch.float32), "")
    with FlopCounterMode(display=False) as counter:
        model.forward(torch.zeros(2, 16, dtype=torch.long), {"pattern": lambda value, layer: None})
    assert Shape.of(config).forward(32, 16, logits=True) == counter.get_total_flops()


def test_passes_of_single_edges_and_of_paths_are_those_that_torch_counts() -> None:
    import torch
    from edge_models import make_pairs
    from torch.utils.flop_counter import FlopCounterMode

    from mechatlas.circuits.components import Graph
    from mechatlas.circuits.exact_edges import exact_edge_effects
    from mechatlas.circuits.path_patching import PathSweep
    from mechatlas.costs.shapes import Shape
    from mechatlas.models.config import ModelConfig
    from mechatlas.models.transformer import Transformer
    from mechatlas.models.weights import random_weights

    config = ModelConfig("gpt2", 6, 4, 4, 64, 16, 256, 64, 50, 1e-5, "gelu_new", True)
    model = Transformer(config, random_weights(config, 0, "cpu", torch.float32), "")
    clean, corrupted, end, metric = make_pairs(model, 1, 16)
    shape, graph = Shape.of(config), Graph.of(config)
    with FlopCounterMode(display=False) as exact:
        exact_edge_effects(model, clean, corrupted, end, metric)
    sweep = PathSweep(model, clean, corrupted, end, metric)
    with FlopCounterMode(display=False) as paths:
        for layer in range(6):
            name = f"L{layer}.H0.k"
            senders = list(graph.sources[: graph.visible[graph.destination(name)]])
            for through in (True, False):
                sweep(senders, [name], through_mlps=through)
    edges = {"acdc_orders": 0, "acdc_prompts": 1, "exact_prompts": 1, "path_receivers": 0}
    edges |= {
        "shares": [1.0],
        "methods": ["eap"],
        "steps": 1,
        "curve_random_sets": 0,
        "random_sets": 0,
    }
    passes = edge_passes(edges, shape, {"prompts": 1, "held_out": 1})
    one = shape.forward(16, 16)
    assert passes["exact"] * one == pytest.approx(exact.get_total_flops(), rel=0.3)
    assert 6 * passes["paths"] * one == pytest.approx(paths.get_total_flops(), rel=0.3)


def test_work_grows_as_the_laws_say(default) -> None:
    config, shapes = default
    before = works(config, shapes)
    double = copy.deepcopy(config)
    double["sampling"]["windows"] *= 2
    after = works(double, shapes)
    assert after["capture_heads"].operations == 2 * before["capture_heads"].operations
    assert after["capture_heads"].jobs >= before["capture_heads"].jobs
    assert after["replace_heads"] == before["replace_heads"]
    wide = copy.deepcopy(config)
    wide["dictionaries"]["resid"]["latents"] *= 3
    assert works(wide, shapes)["train_sae"].operations == 3 * before["train_sae"].operations
    assert works(wide, shapes)["train_sae"].memory == 3 * before["train_sae"].memory
    none = {**config, "tasks": {}, "dictionaries": {}, "transcoders": {}, "graphs": {}}
    assert not {"trace_edges", "train_sae", "train_clt", "attribution_graph"} & set(
        works(none, shapes)
    )


def test_jobs_are_those_of_the_workflow(default) -> None:
    """The measured default run had as many jobs as the law says."""
    with (TABLES / "runs.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["run"] == "default"]
    measured = {row["rule"]: float(row["jobs"]) for row in rows}
    found = {rule: work.jobs for rule, work in works(*default).items()}
    wrong = {r: (found.get(r), jobs) for r, jobs in measured.items() if found.get(r) != jobs}
    assert not wrong, wrong


def test_rules_that_ask_for_a_gpu_are_those_of_the_workflow(default) -> None:
    asking = set()
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule, body in re.findall(
            r"^rule (\w+):\n((?:(?!^rule ).*\n)*)", path.read_text(), re.M
        ):
            asking |= {rule} if re.search("gpu=gpu_(request|unless)", body) else set()
    counted = works(*default)
    assert {work.rule for work in counted.values() if work.gpu} == asking & set(counted)


def test_the_measured_run_is_forecast_within_a_tenth(default) -> None:
    config, shapes = default
    costs = estimate(work_of(config, shapes), max(s.d for s in shapes.values()))
    wanted = sum(max(run.cpu_s for run in runs) for runs in read_runs().values())
    assert sum(cost.core_hours for cost in costs) * 3600 == pytest.approx(wanted, rel=0.1)


def test_what_snakemake_did_not_look_at_is_added() -> None:
    """A job that is busy throughout took its whole time, however long ago the last look was."""
    for seconds, looked_at in ((9.0, 9.0), (15.5, 15.5), (31.6, 15.5), (46.0, 45.5), (80.0, 75.5)):
        assert whole_cpu(seconds, looked_at) == pytest.approx(seconds), seconds
    assert whole_cpu(40.0, 7.75) == pytest.approx(20.0)  # half busy
    assert whole_cpu(3.0, 0.0) == 0


def test_looks_at_jobs_come_as_often_as_snakemake_says() -> None:
    from snakemake.benchmark import BENCHMARK_INTERVAL, BENCHMARK_INTERVAL_SHORT

    # One look every half second until there were more of them than the long interval has seconds.
    assert (BENCHMARK_INTERVAL + 1) * BENCHMARK_INTERVAL_SHORT == SAMPLED_CLOSELY
    assert BENCHMARK_INTERVAL == SAMPLED_LATER


def test_two_runs_give_start_and_slope() -> None:
    runs = [Measured(2, 20.0, 2 * (3 + 0.5 * 10), 1), Measured(1, 100.0, 3 + 0.5 * 100, 1)]
    assert start_and_slope(runs) == pytest.approx((3, 0.5))
    assert start_and_slope(runs[:1]) == (8, 0)
    # A larger run that was faster, on a quieter machine, gives no negative cost.
    assert start_and_slope([runs[0], Measured(1, 100.0, 4.0, 1)]) == (8, 0)


def test_products_become_faster_with_width_and_not_beyond_what_was_measured() -> None:
    rates = {64: 1e9, 1024: 16e9}
    seconds = [faster(width, 64, rates, 1e-9) for width in (32, 64, 256, 1024, 8192)]
    assert seconds == pytest.approx([1e-9, 1e-9, 0.25e-9, 1 / 16e9, 1 / 16e9])
    assert faster(8192, 64, rates, 1e-12) == pytest.approx(1e-12)  # never slower


def test_a_gpu_takes_the_products_and_leaves_the_rest(default) -> None:
    work = work_of(*default)
    slow, quick = (estimate(work, 128, gpu=rate) for rate in (1e12, 1e15))
    for a, b in zip(slow, quick, strict=True):
        assert a.gpu_hours >= b.gpu_hours and a.core_hours == b.core_hours >= b.with_gpu
    assert {cost.rule for cost in slow if cost.gpu_hours} <= {w.rule for w in work if w.gpu}


def test_the_rate_of_a_measured_gpu(tmp_path: Path) -> None:
    measured = {"forward_tflop_per_s": 40.0, "further_windows_over_forward": 4.0}
    parts = {"capture": {"float32": measured}}
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": parts}))
    assert gpu_rate(tmp_path / "gpu.json") == pytest.approx(10e12)
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": {"capture": {"failed": "x"}}}))
    with pytest.raises(UserError, match="holds no capture on a GPU"):
        gpu_rate(tmp_path / "gpu.json")


def test_numbers_are_short() -> None:
    assert [short(x) for x in (0, 0.00123, 0.5, 1.26, 33.3, 1234.5)] == [
        *("0", "0.0012", "0.50", "1.3", "33", "1,234"),
    ]


def test_models_that_are_not_here_are_known_or_named(tmp_path: Path) -> None:
    assert shape_of("x", {"hub": "openai-community/gpt2"}, tmp_path) == GPT2
    with pytest.raises(
        UserError, match=r"models\.x: the size of a/b is not known before it is here"
    ):
        shape_of("x", {"hub": "a/b"}, tmp_path)


def test_the_command_prints_every_rule_of_a_configuration(capsys) -> None:
    assert main([str(ROOT / "config" / "paper-clt.yaml")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^train_clt +\d", out, re.M) and out.splitlines()[-2].startswith("all ")
    assert main(["no-such.yaml"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_page_is_what_the_command_writes() -> None:
    assert DOCS.read_text(encoding="utf-8") == page(), "run python -m mechatlas.costs --docs"
    assert "7-billion" in page() and "10^9" in page()


def test_wider_models_cost_more() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page().splitlines()
        if line.startswith("| 10^9 | heads: capture")
    ]
    hours = [float(row[3].replace(",", "")) for row in rows]
    assert len(hours) == 4 and hours == sorted(hours)
    assert replace(GPT2, layers=24).weights == 2 * GPT2.weights
