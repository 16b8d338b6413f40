"""The benchmarks of a GPU run on a CPU, too, and need little from outside the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
#: What the machine with the GPU may lack.
ABSENT = (
    "pandas",
    "pyarrow",
    "scipy",
    "snakemake",
    "yaml",
    "jsonschema",
    "sklearn",
    "transformers",
)
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv[0] = {str(BENCHMARKS / "run.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments, code=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == code, done.stderr
    return done


def test_parts_run_without_the_packages_that_a_gpu_machine_may_lack(tmp_path):
    parts = ["matmul", "capture", "sampling", "transcoder", "edges", "graph"]
    done = run("--device", "cpu", "--quick", "--out", str(tmp_path), *parts)
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert result["machine"]["device"] == "cpu" and set(result["parts"]) == set(parts)
    found = result["parts"]
    assert found["capture"]["float32"]["error"] < 1e-5 < found["capture"]["bfloat16"]["error"] < 0.1
    assert found["edges"]["error"]["eap"] < 1e-4 and found["graph"]["error"] < 1e-4
    # What is more than the floor takes longer than it.
    assert found["graph"]["over_products"] > 1 and found["transcoder"]["float32"]["times"]
    assert "capture_over_forward" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "captur"], "error: no part captur; there are matmul, capture"),
        (["--device", "cuda:9"], "error: --device cuda:9, but torch finds no GPU"),
    ],
)
def test_a_wrong_part_or_device_is_named(arguments, message, tmp_path):
    if "cuda" in message:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    done = run(*arguments, "--out", str(tmp_path), code=1)
    assert message in done.stderr and not list(tmp_path.iterdir())
