"""Real runs on a real SLURM: a one-node cluster is started here, the workflow goes through profiles/slurm.

Run by `make test-slurm`; skipped, with the reason, where no cluster can be started.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from one_node import OneNode, why_not

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

REPOSITORY = Path(__file__).resolve().parents[2]
# The first look at a job comes after 40 s by default: a cluster of one node is not overloaded by an earlier one.
PROFILE = ["--workflow-profile", str(REPOSITORY / "profiles" / "slurm"), "--resources", "gpu=1"]
QUICK = ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"]
LOCAL = [
    "--workflow-profile",
    str(REPOSITORY / "profiles" / "default"),
    "--cores",
    "2",
    "--resources",
    "gpu=1",
]
MODEL = {"path": str(REPOSITORY / "resources" / "models" / "demo-2l")}
REDUCED = {
    "models": {"demo-4l": None, "demo-2l": MODEL},
    "sources": {
        "synthetic-qa": None,
        "synthetic-wiki": {"kind": "synthetic", "style": "wiki", "documents": 60},
    },
    "sampling": {"windows": 60, "window_len": 32, "pattern_windows": 6},
    "capture": {"chunk_windows": 20, "topk": 20},
    "explain": {"programs": {"steps": 3, "rule_windows": 2}},
    "score": {
        **{"bootstrap": 20, "min_events": 5, "causal_windows": 2, "random_orders": 1},
        **{"replacement_shares": [1.0], "controls": ["swapped", "shuffled", "mean_pattern"]},
    },
}
LOCAL_RULES = {"render_index", "write_manifest"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[OneNode]:
    folder = Path(
        tempfile.mkdtemp(prefix="one-")
    )  # short: a socket's path has 108 characters at most
    with OneNode(folder) as node:
        yield node
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def run(cluster: OneNode, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run on the cluster: its folder, and what Snakemake printed."""
    folder = tmp_path_factory.mktemp("cluster")
    return folder, snakemake(prepare(folder), *PROFILE, *QUICK)


def prepare(folder: Path) -> Path:
    (folder / "reduced.yaml").write_text(yaml.safe_dump(REDUCED))
    return folder


def command(*arguments: str) -> list[str]:
    given = ["-s", str(REPOSITORY / "Snakefile"), "--configfile", "reduced.yaml", *arguments]
    return [sys.executable, "-m", "snakemake", *given]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def snakemake(folder: Path, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output
    return output


def submitted(output: str) -> dict[str, str]:
    """Return the rule of every SLURM job that a run submitted, by the job's identifier."""
    found = re.findall(r"SLURM jobid (\d+) \(log: \S*slurm_logs/(?:rule_)?(\w+)/", output)
    return dict(found)


def planned(output: str) -> dict[str, int]:
    table = output.split("Job stats:", 1)[1].split("total", 1)[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}


def checksums(folder: Path) -> dict[str, str]:
    names = [
        line.split("  ", 1)[1]
        for line in (folder / "results" / "manifest.sha256").read_text().splitlines()
    ]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_every_rule_ran_as_a_cluster_job(run: tuple[Path, str], cluster: OneNode) -> None:
    jobs = submitted(run[1])
    counts = {rule: n for rule, n in planned(run[1]).items() if rule not in {*LOCAL_RULES, "all"}}
    assert len(counts) > 8
    assert {rule: list(jobs.values()).count(rule) for rule in counts} == counts
    states = {job["JobId"]: job["JobState"] for job in cluster.ended()}
    assert {states[job] for job in jobs} == {"COMPLETED"}


def test_at_most_one_gpu_job_ran_at_a_time(run: tuple[Path, str], cluster: OneNode) -> None:
    jobs = submitted(run[1])
    wanted = {"capture_heads", "replace_heads"}
    times = sorted(
        (job["StartTime"], job["EndTime"])
        for job in cluster.ended()
        if jobs.get(job["JobId"]) in wanted
    )
    assert len(times) >= 4  # three chunks and the replacement: what could have overlapped
    for (_, end), (start, _) in zip(times, times[1:], strict=False):
        assert start >= end
    requests = (run[0] / ".snakemake" / "log").glob("*.log")
    assert any("gpu=1" in path.read_text() for path in requests)


def test_results_are_those_of_a_local_run(run: tuple[Path, str], tmp_path: Path) -> None:
    snakemake(prepare(tmp_path), *LOCAL)
    assert checksums(tmp_path) == checksums(run[0])


def test_a_cancelled_job_is_tried_again(cluster: OneNode, tmp_path: Path) -> None:
    target = "results/demo-2l/synthetic-wiki/heads/raw_events.parquet"
    before = {job["JobId"] for job in cluster.ended()}
    process = subprocess.Popen(
        command(*PROFILE, *QUICK, target), cwd=prepare(tmp_path), env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    cancelled = cancel_first(cluster, "capture_heads")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert cancelled in submitted(output)
    states = {
        job["JobId"]: job["JobState"] for job in cluster.ended() if job["JobId"] not in before
    }
    assert states[cancelled] == "CANCELLED"
    assert list(submitted(output).values()).count("capture_heads") == 4  # three chunks, one twice
    assert (tmp_path / target).exists()


def cancel_first(cluster: OneNode, rule: str) -> str:
    """Wait until a job of a rule runs, cancel it, and return its identifier."""
    for _ in range(600):
        for job, comment, _ in cluster.running():
            if rule in comment:
                subprocess.run(["scancel", job], check=True)
                return job
        time.sleep(0.2)
    raise AssertionError(f"no job of {rule} has started")


def test_a_job_over_its_memory_is_tried_again_with_more(cluster: OneNode, tmp_path: Path) -> None:
    target = "results/demo-2l/synthetic-wiki/capture/0000"
    short = ["--set-resources", "capture_heads:mem_mb=60*40**(attempt-1)"]
    output = snakemake(prepare(tmp_path), *PROFILE, *QUICK, *short, target)
    jobs = [job for job, rule in submitted(output).items() if rule == "capture_heads"]
    ended = {job["JobId"]: job for job in cluster.ended()}
    assert len(jobs) == 2
    assert [ended[job]["JobState"] == "COMPLETED" for job in sorted(jobs, key=int)] == [False, True]
    assert (tmp_path / target / "index.json").exists() or any((tmp_path / target).iterdir())


def test_a_job_that_never_has_enough_memory_fails_with_its_log(
    cluster: OneNode, tmp_path: Path
) -> None:
    target = "results/demo-2l/synthetic-wiki/capture/0000"
    short = ["--set-resources", "capture_heads:mem_mb=60"]
    output = snakemake(
        prepare(tmp_path), *PROFILE, *QUICK, *short, "--retries", "1", target, fails=True
    )
    assert list(submitted(output).values()).count("capture_heads") == 2
    assert "capture_heads" in output and re.search(r"SLURM status is: '\w+'", output)
    assert not (tmp_path / target).exists()


def test_doctor_finds_the_cluster_ready(cluster: OneNode, tmp_path: Path) -> None:
    output = snakemake(prepare(tmp_path), *PROFILE, *QUICK, "doctor")
    states = re.findall(r"^(ok|note|wrong) +([\w ]+?)  ", output, flags=re.MULTILINE)
    assert (
        ("ok", "trial job") in states
        and ("ok", "gpu") in states
        and ("note", "accounting") in states
    )
    assert "wrong" not in {state for state, _ in states}


def test_nothing_is_left_when_the_cluster_is_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The last test in this file: what was started is what is stopped."""
    assert why_not().endswith("a SLURM of its own")  # the module's cluster is up
