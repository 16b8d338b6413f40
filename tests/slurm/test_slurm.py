"""Real runs on a real SLURM: a one-node cluster is started here, the workflow goes through profiles/slurm.

Run by `make test-slurm`; skipped, with the reason, where no cluster can be started. The whole run has two faults, so
that what a job does when it is tried again is seen on the way to the results.
"""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ctrl_c
import pytest
import yaml
from one_node import PREFIX, OneNode, ask, why_not
from small_run import small_run

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = REPOSITORY / "profiles" / "slurm"
CLUSTER = ["--workflow-profile", str(PROFILE), "--resources", "gpu=1", "--latency-wait", "5"]
LOCAL = [
    *("--workflow-profile", str(REPOSITORY / "profiles" / "default"), "--resources", "gpu=1"),
    *("--cores", "2"),
]
# Every analysis, small: heads, latents of a dictionary, circuits of a task, a transcoder with a graph.
REDUCED = small_run()
REDUCED["tasks"]["numerals"] = {"prompts": 4, "held_out": 4}
REDUCED["graphs"]["numerals"] = {"models": ["demo-2l"], "task": "numerals"}
REDUCED["graph_sets"] = {"ioi": None}
HERE = {"render_index", "write_manifest"}  # what only links and checks runs where Snakemake runs
CANCELLED, SHORT = "capture_heads", "merge_events"  # the faults of the whole run
FIRST_MB = 50
ALONE = "prepare_prompts", "results/demo-2l/tasks/numerals/prompts.jsonl"  # needs nothing else


@dataclass
class Run:
    """A whole run on the cluster.

    Attributes
    ----------
    folder : Path
    output : str
        What Snakemake printed.
    jobs : dict
        What SLURM knows of each job, by its identifier, and under ``Rules`` the rules that ran in it.
    cancelled : str
        The job that was cancelled.
    """

    folder: Path
    output: str
    jobs: dict[str, dict]
    cancelled: str

    def tries(self, rule: str) -> list[dict]:
        """Return the jobs of a rule in the order in which they were submitted."""
        return [job for _, job in sorted(self.jobs.items(), key=lambda pair: int(pair[0]))
                if job["Rules"] == [rule]]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[OneNode]:
    # Not pytest's folder: a socket's path has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, OneNode(Path(folder)) as node:
        yield node


@pytest.fixture(scope="module")
def run(cluster: OneNode, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = prepare(tmp_path_factory.mktemp("cluster"))
    short = ["--set-resources", f"{SHORT}:mem_mb={FIRST_MB}*20**(attempt-1)"]
    with start(folder, *CLUSTER, *looks(8), *short) as process:
        cancelled = wait_for_job(cluster, CANCELLED, process)
        ask("scancel", cancelled)
        assert process.wait(1800) == 0, said(folder)
    output = said(folder)
    known = cluster.jobs()
    jobs = {job: known[job] | {"Rules": rules} for job, rules in submitted(output).items()}
    return Run(folder, output, jobs, cancelled)


def looks(seconds: int) -> list[str]:
    """Say how often the jobs are looked at: about when one ends, as every look in vain makes the next one later."""
    return ["--slurm-init-seconds-before-status-checks", str(seconds)]


def prepare(folder: Path) -> Path:
    (folder / "reduced.yaml").write_text(yaml.safe_dump(REDUCED))
    return folder


class start(subprocess.Popen):  # noqa: N801 - reads as a statement
    """Snakemake in a folder, its output in a file there; killed at the end of a ``with`` block if it still runs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        given = ["-s", str(REPOSITORY / "Snakefile"), "--configfile", "reduced.yaml", *arguments]
        with (folder / "output.txt").open("w") as output:
            # It must not outlive these tests, should they be killed.
            super().__init__(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "snakemake", *given],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=ctrl_c.hear,
            )

    def __exit__(self, *exception: object) -> None:
        self.kill()
        super().__exit__(*exception)


def said(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def snakemake(folder: Path, *arguments: str, fails: bool = False) -> str:
    with start(folder, *arguments) as process:
        process.wait(900)
    assert (process.returncode != 0) == fails, said(folder)
    return said(folder)


def wait_for_job(cluster: OneNode, rule: str, process: subprocess.Popen) -> str:
    """Wait until a job of a rule runs and return its identifier."""
    while process.poll() is None:
        for identifier, job in cluster.jobs().items():
            if job["JobState"] == "RUNNING" and job["Comment"].startswith(f"rule_{rule}"):
                return identifier
        time.sleep(0.2)
    raise AssertionError(f"no job of {rule} has started")


def submitted(output: str) -> dict[str, list[str]]:
    """Return the rules that ran in every SLURM job that a run submitted, by the job's identifier."""
    pairs = yaml.safe_load((PROFILE / "profile.yaml").read_text())["groups"]
    group_of = dict(pair.split("=") for pair in pairs)
    found = {}
    for job, name in re.findall(r"SLURM jobid (\d+) \(log: \S*?slurm_logs/([\w-]+)/", output):
        kind, _, name = name.partition("_")
        found[job] = [name] if kind == "rule" else []
        if kind == "group":  # of one model and source there is one job of each rule in it
            members = [r for r in planned(output) if name.startswith(f"{group_of.get(r)}_")]
            assert all(rule in name for rule in members)
            found[job] = members
    return found


def planned(output: str) -> dict[str, int]:
    table = output.split("Job stats:", 1)[1].split("total", 1)[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}


def gpu_rules() -> set[str]:
    """Return the rules that ask for a GPU, as their text has it."""
    texts = [path.read_text() for path in (REPOSITORY / "workflow" / "rules").glob("*.smk")]
    rules = [part for text in texts for part in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]]
    # `gpu_unless`: of rules that ask for one unless others did their work, as nowhere here.
    return {
        rule.partition(":")[0] for rule in rules if re.search(r"gpu=gpu_(request|unless)", rule)
    }


def checksums(folder: Path) -> dict[str, str]:
    lines = (folder / "results" / "manifest.sha256").read_text().splitlines()
    names = [line.split("  ", 1)[1] for line in lines]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_every_rule_ran_as_a_cluster_job(run: Run) -> None:
    wanted = {rule: n for rule, n in planned(run.output).items() if rule not in {*HERE, "all"}}
    assert len(wanted) > 30
    done = [
        rules
        for job in run.jobs.values()
        if job["JobState"] == "COMPLETED"
        for rules in job["Rules"]
    ]
    assert Counter(done) == wanted
    here = set(re.findall(r"^localrule (\w+):", run.output, flags=re.MULTILINE))
    assert here == HERE | {"all"}


def test_short_jobs_of_a_group_are_one_cluster_job(run: Run) -> None:
    (tables,) = [job for job in run.jobs.values() if "report_heads" in job["Rules"]]
    wanted = "cluster_explanations render_heads report_heads score_heads summarise_scores".split()
    assert sorted(tables["Rules"]) == wanted


def test_jobs_ask_for_a_gpu_if_their_rule_wants_one_and_have_it_alone(run: Run) -> None:
    wants = gpu_rules()
    holders = [job for job in run.jobs.values() if job.get("TresPerJob") == "gres:gpu:1"]
    assert {rule for job in holders for rule in job["Rules"]} == wants & set(planned(run.output))
    others = [job for job in run.jobs.values() if job not in holders]
    assert others and not any("gpu" in str(job) for job in others)
    times = sorted((job["StartTime"], job["EndTime"]) for job in holders)
    assert len(times) > 10
    for (_, end), (begin, _) in zip(times, times[1:], strict=False):
        assert begin >= end


def test_a_cancelled_job_was_tried_again_with_more(run: Run) -> None:
    first, second = run.tries(CANCELLED)
    assert first is run.jobs[run.cancelled] and first["JobState"] == "CANCELLED"
    assert second["JobState"] == "COMPLETED"
    asked = [int(job["MinMemoryNode"][:-1]) for job in (first, second)]
    assert asked[1] == pytest.approx(2 * asked[0], abs=1)  # whole MB
    times = [minutes(job["TimeLimit"]) for job in (first, second)]
    assert times[1] == pytest.approx(2 * times[0], abs=1)  # whole minutes
    assert f"SLURM-job '{run.cancelled}' failed, SLURM status is: 'CANCELLED'" in run.output


def minutes(limit: str) -> int:
    hours, minutes, _ = limit.split(":")
    return 60 * int(hours) + int(minutes)


def test_a_job_over_its_memory_was_tried_again_with_more(cluster: OneNode, run: Run) -> None:
    first, second = run.tries(SHORT)
    assert first["MinMemoryNode"] == f"{FIRST_MB}M"
    assert first["JobState"] == cluster.over_memory
    assert second["MinMemoryNode"] == f"{20 * FIRST_MB}M" and second["JobState"] == "COMPLETED"


def test_results_are_those_of_a_local_run(run: Run, tmp_path: Path) -> None:
    snakemake(prepare(tmp_path), *LOCAL)
    assert len(checksums(tmp_path)) > 100
    assert checksums(tmp_path) == checksums(run.folder)


def test_a_job_that_never_has_enough_memory_fails_with_the_reason(
    cluster: OneNode, tmp_path: Path
) -> None:
    rule, target = ALONE
    short = ["--set-resources", f"{rule}:mem_mb={FIRST_MB}", "--retries", "0"]
    output = snakemake(prepare(tmp_path), *CLUSTER, *looks(3), *short, target, fails=True)
    ((job, rules),) = submitted(output).items()
    assert rules == [rule] and cluster.jobs()[job]["JobState"] == cluster.over_memory
    assert f"Error in rule {rule}" in output
    assert re.search(rf"^SLURM job {job}: .*(exceeded memory limit|oom-kill event)", output, re.M)
    assert not (tmp_path / target).exists()


def test_an_interrupted_run_cancels_its_jobs(cluster: OneNode, tmp_path: Path) -> None:
    rule, target = ALONE
    with start(prepare(tmp_path), *CLUSTER, *looks(3), target) as process:
        job = wait_for_job(cluster, rule, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    assert cluster.jobs()[job]["JobState"] == "CANCELLED"
    assert not (tmp_path / target).exists()


def test_doctor_finds_the_cluster_ready(cluster: OneNode, tmp_path: Path) -> None:
    output = snakemake(prepare(tmp_path), *CLUSTER, *looks(3), "doctor")
    found = {
        name: state for state, name in re.findall(r"^(ok|note|wrong) +([\w ]+?)  ", output, re.M)
    }
    wanted = dict.fromkeys("plugin commands controller config listing partitions gpu".split(), "ok")
    assert found == wanted | {"trial job": "ok", "accounting": "note"}
