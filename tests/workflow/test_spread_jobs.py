"""Work spread over jobs by config: what is planned, and that the bytes stay the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import REPOSITORY, job_counts, snakemake, write_yaml
from test_dag import jobs

HUB = f"models={{hub: {{hub: %s, revision: {'0' * 40}}}, demo-2l: null, demo-4l: null}}"
SPREAD = ("fit_heads", "fit_latents", "patch_layers", "trace_parts", "prune_halves")
# The fake models have two layers of two heads each; of the dictionary's latents four a layer are explained. Edges have
# 13 parts: two orders, the smallest circuit, four curves, paths into the logits and three inputs, two layers.
PLANNED = {
    "one of each, two parts": (
        *(1, 1, 2),
        {
            **{"fit_heads": 12, "fit_latents": 8, "patch_layers": 10},
            **{"trace_parts": 35, "prune_halves": 10},
        },
    ),
    "whole layers only": (3, 0, 0, {"fit_heads": 12, "fit_latents": 3}),
    "everything at once": (100, 2, 13, {}),
    "patching and edges": (0, 1, 12, {"patch_layers": 10, "trace_parts": 10}),
}


@pytest.mark.parametrize("case", PLANNED)
def test_jobs_that_are_planned(case: str, workflow: Path) -> None:
    units, layers, parts, more = PLANNED[case]
    planned = job_counts(
        workflow,
        *("--config", f"explain={{units_per_job: {units}}}"),
        f"circuits={{layers_per_job: {layers}, parts_per_job: {parts}}}",
    )
    assert planned == jobs(2, 3, 1) | more


def test_sizes_of_models_of_the_hub(workflow: Path) -> None:
    known = HUB % "openai-community/gpt2"
    settings = ["explain={units_per_job: 24}", "circuits={layers_per_job: 3, parts_per_job: 20}"]
    planned = job_counts(workflow, "--config", known, *settings)
    # Twelve layers of twelve heads; two sources, each with its control; one task.
    assert {rule: planned.get(rule, 0) for rule in SPREAD} == {
        **{"fit_heads": 6 * 4, "fit_latents": 0, "patch_layers": 4, "trace_parts": 2},
        "prune_halves": 0,
    }
    unknown = HUB % "a/b"
    output = snakemake(workflow, "-n", "--config", unknown, *settings, check=False)
    (line,) = [line for line in output.splitlines() if "units_per_job" in line]
    assert "models.hub (a/b)" in line and "Traceback" not in output
    without = ["explain={units_per_job: 0}", "circuits={layers_per_job: 0, parts_per_job: 0}"]
    assert "--config " + " ".join(f"'{part}'" for part in without) in line
    # The way out that it names.
    fetched = job_counts(
        workflow, "resources/downloads/models/hub",
        "--config", unknown, *without,
    )  # fmt: skip
    assert fetched == {"fetch_model": 1}


@pytest.mark.parametrize("setting", ["explain={units_per_job: -1}", "circuits={parts_per_job: x}"])
def test_sizes_that_make_no_sense_are_one_line(setting: str, workflow: Path) -> None:
    output = snakemake(workflow, "-n", "--config", setting, check=False)
    section, key = setting.partition("=")[0], setting.partition("{")[2].partition(":")[0]
    lines = [line for line in output.splitlines() if f"{section}.{key}" in line]
    assert len(lines) == 1 and "Traceback" not in output


HEADS = "results/demo-2l/synthetic-wiki/heads/explanations/programs.jsonl"
LATENTS = "results/demo-2l/synthetic-wiki/latents/small/explanations/programs.jsonl"
TASK = "results/demo-2l/tasks/numerals"
SMALL = {
    "models": {"demo-4l": None, "demo-2l": {"path": str(REPOSITORY / "resources/models/demo-2l")}},
    "sources": {
        "synthetic-qa": None,
        "synthetic-wiki": {"kind": "synthetic", "style": "wiki", "documents": 60},
    },
    "tasks": {
        **dict.fromkeys(("ioi", "months", "induction")),
        "numerals": {"prompts": 8, "held_out": 8},
    },
    "circuits": {
        "edges": {
            **{"methods": ["eap"], "rank_by": "eap", "acdc_orders": 1, "exact_prompts": 1},
            "path_receivers": 0,
        },
    },
    "sampling": {"windows": 60, "window_len": 48, "pattern_windows": 6},
    "transcoders": {"clt": None},
    "graphs": dict.fromkeys(("ioi", "numerals", "induction")),
    "graph_sets": {"ioi": None},
    "sweeps": {"sparsity": None},
    "dictionaries": {
        "resid": None,
        "small": {
            **{"kind": "trained", "reads": "resid_post", "latents": 48, "k": 4, "tokens": 2048},
            **{"batch_tokens": 128, "dead_tokens": 500},
        },
    },
    "explain": {"programs": {"steps": 3, "rule_windows": 2}},
    "score": {"controls": ["swapped", "shuffled"]},
}


@pytest.mark.slow
def test_results_have_the_bytes_of_single_jobs(tmp_path: Path) -> None:
    spread = {
        "explain": {"units_per_job": 3},
        "circuits": {"layers_per_job": 1, "parts_per_job": 4},
    }
    write_yaml(tmp_path / "small.yaml", SMALL)
    write_yaml(tmp_path / "spread.yaml", spread)
    tables = [f"{TASK}/{name}/effects.parquet" for name in ("patching", "edges")]
    targets = [HEADS, LATENTS, *tables]
    command = ["-s", str(REPOSITORY / "Snakefile"), "--cores", "1", *targets, "--configfile"]
    snakemake(tmp_path, *command, "small.yaml", timeout=600)
    kept = [HEADS, LATENTS, *(f"{path}.provenance.json" for path in (HEADS, LATENTS))]
    folders = [tmp_path / TASK / name for name in ("patching", "roles", "lens", "edges")]
    files = [*(tmp_path / path for path in kept), *(p for f in folders for p in f.iterdir())]
    whole = {path: path.read_bytes() for path in files}
    assert len(whole) > 25
    shutil.rmtree(tmp_path / "results" / "steps")
    planned = job_counts(tmp_path, *command, "small.yaml", "spread.yaml")
    again = {"fit_heads": 2, "explain_heads": 1, "fit_latents": 3, "explain_latents": 1}
    again |= {"patch_layers": 2, "measure_components": 1, "trace_parts": 2, "trace_edges": 1}
    assert planned == again
    snakemake(tmp_path, *command, "small.yaml", "spread.yaml", timeout=600)
    assert {path for path in files if path.read_bytes() != whole[path]} == set()
    assert "Nothing to be done" in snakemake(tmp_path, *command, "small.yaml", "spread.yaml")
