"""The configurations of two papers, run to their end: a small model in the place of GPT-2, few prompts, all figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from conftest import REPOSITORY, snakemake, write_yaml

pytestmark = pytest.mark.slow

FEW = {"prompts": 12, "held_out": 12}
#: What makes a run small; the procedures are those of the papers.
SMALL = {
    "circuits": {
        "bootstrap": 50,
        "patching": {"points": ["z", "attn_out", "mlp_out"]},
        "nodes": {
            **{
                "random_circuits": 5,
                "stability_samples": 2,
                "subset_samples": 2,
                "least_harmful_step": 12,
            },
            "one_iter": True,
        },
        "edges": {
            **{"exact_prompts": 0, "acdc_orders": 0, "random_sets": 5, "curve_random_sets": 0},
            **{"shares": [0.05, 1.0], "path_receivers": 1, "steps": 2},
        },
        "generation": {"prompts": 4, "random_sets": 3, "files": []},
        # The published circuit has heads that a model of this size lacks.
        "extra": {"ioi-paper": None},
    },
}
TASKS = {"ioi": ["ioi"], "seqcont": ["numerals", "numwords", "months"]}


def small_gpt2(folder: Path) -> None:
    """The embedded model of four layers, in the folder and under the name where a download of GPT-2 lies."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "resources" / "models" / "demo-4l" / name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("paper", TASKS)
def test_paper_runs_to_its_end(paper: str, tmp_path: Path) -> None:
    small_gpt2(tmp_path / "resources" / "downloads" / "models" / "gpt2")
    (tmp_path / "resources").mkdir(exist_ok=True)
    for name in ("reference", "circuits", "questions"):
        shutil.copytree(REPOSITORY / "resources" / name, tmp_path / "resources" / name)
    small = SMALL | {"tasks": {task: FEW for task in TASKS[paper]}}
    write_yaml(tmp_path / "small.yaml", small)
    config = str(REPOSITORY / "config" / f"paper-{paper}.yaml")
    targets = ["results/figures/gpt2/circuits"]
    command = ["-s", str(REPOSITORY / "Snakefile"), "--configfile", config, "small.yaml"]
    snakemake(tmp_path, *targets, *command, "--cores", "2", "--resources", "gpu=0", timeout=1500)

    published = pd.read_parquet(tmp_path / "results/gpt2/circuits/published.parquet")
    assert set(published["task"]) == set(TASKS[paper])
    both = published.dropna(subset=["ours"])
    # Heads and layers that the small model lacks have no number here.
    assert 0 < len(both) < len(published)
    assert (both["difference"] - (both["ours"] - both["published"])).abs().max() < 1e-9
    for task in TASKS[paper]:
        circuit = json.loads(
            (tmp_path / f"results/gpt2/tasks/{task}/nodes/circuit.json").read_text()
        )
        mine = both[(both["task"] == task) & (both["quantity"] == "circuit percent")]
        assert mine["ours"].tolist() == [circuit["faithfulness"]["discovery"]["percent"]]

    figures = tmp_path / "results/figures/gpt2/circuits"
    captions = json.loads((figures / "captions.json").read_text())
    assert {
        "overlay",
        "published",
        *(f"{task}_patching-map" for task in TASKS[paper]),
    } <= captions.keys()
    for name in captions:
        assert all(
            (figures / f"{name}.{end}").stat().st_size for end in ("svg", "pdf", "png", "csv")
        )
    ablation = pd.read_csv(figures / f"{TASKS[paper][0]}_circuit.csv")
    assert {"published", "difference"} <= set(ablation) and ablation["difference"].notna().any()
