"""What `snakemake doctor` says of clusters of several kinds, played by small programs on the PATH."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mechatlas import cluster
from mechatlas.cluster import NOTE, OK, WRONG, examine, missing_profile, reasons, require
from mechatlas.io import UserError

ANSWERS = {
    "scontrol": 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at head is UP"; else cat "$0.config"; fi',
    "sinfo": 'case "$3" in "%P|%G") echo "main*|gpu:a100:4";; *) echo "main*|1-00:00:00|64000|32|up";; esac',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    **dict.fromkeys(("sbatch", "squeue", "scancel"), "exit 0"),
}
CONFIG = (
    "AccountingStorageType   = accounting_storage/slurmdbd\nMinJobAge               = 300 sec\n"
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts SLURM's commands on the PATH, some with another body."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.delenv("SLURM_CONF", raising=False)

    def make(config: str = CONFIG, **bodies: str) -> Path:
        for name, body in {**ANSWERS, **bodies}.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        (folder / "scontrol.config").write_text(config)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setattr(cluster.metadata, "version", lambda name: "2.8.0")
        (tmp_path / "run").mkdir()
        return tmp_path / "run"

    return make


def states(folder: Path, seconds: int = 20) -> dict[str, tuple[str, str]]:
    checks = examine(folder, trial_seconds=seconds, latency_seconds=1)
    return {check.name: (check.state, check.text) for check in checks}


def test_a_good_cluster_is_ready(slurm) -> None:
    folder = slurm()
    checks = examine(folder, trial_seconds=60, latency_seconds=1)
    assert {check.state for check in checks} == {OK}
    require(checks)
    assert list(folder.iterdir()) == []  # the trial's file is gone
    assert "gpu:a100:4" in dict((c.name, c.text) for c in checks)["gpu"]


def test_without_commands_nothing_more_is_asked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = states(tmp_path)
    assert found["commands"][0] == WRONG and "sbatch" in found["commands"][1]
    assert "controller" not in found


def test_a_silent_controller_ends_the_examination(slurm) -> None:
    found = states(slurm(scontrol="echo 'Slurmctld(primary) at head is DOWN'; exit 1"))
    assert found["controller"][0] == WRONG and "DOWN" in found["controller"][1]
    assert "trial job" not in found


def test_forgetful_queue_is_wrong_without_accounting_only(slurm, tmp_path: Path) -> None:
    short = "MinJobAge = 10 sec\nAccountingStorageType = accounting_storage/"
    folder = slurm(short + "none")
    assert states(folder)["listing"][0] == WRONG
    assert states(folder)["accounting"][0] == NOTE
    Path(tmp_path / "bin" / "scontrol.config").write_text(short + "slurmdbd")
    found = states(folder)["listing"]
    assert found[0] == NOTE and "sacct" in found[1]


def test_no_default_partition_and_no_gpu_are_said(slurm) -> None:
    body = 'case "$3" in "%P|%G") echo "main|(null)";; *) echo "main|1:00:00|64000|32|up";; esac'
    found = states(slurm(sinfo=body))
    assert found["default"][0] == WRONG and "slurm_partition" in found["default"][1]
    assert found["gpu"][0] == NOTE and "device: cpu" in found["gpu"][1]


def test_a_configuration_that_jobs_do_not_get_is_wrong(slurm, monkeypatch, tmp_path: Path) -> None:
    folder = slurm()
    monkeypatch.setenv("SLURM_CONF", "/opt/slurm.conf")
    monkeypatch.setattr(cluster, "CONFIGURED", tmp_path / "none")
    found = states(folder)["config"]
    assert found[0] == WRONG and "/opt/slurm.conf" in found[1]


@pytest.mark.parametrize(
    ("srun", "says"),
    [
        ("echo 'srun: error: invalid account' >&2; exit 1", "invalid account"),
        ("sleep 30", "is the queue full"),
        ("exit 0", "did not appear"),  # ran on a node that does not share the folder
    ],
)
def test_a_trial_job_that_fails_says_why(slurm, srun: str, says: str) -> None:
    folder = slurm(srun=srun)
    found = states(folder, seconds=2)["trial job"]
    assert found[0] == WRONG and says in found[1]
    with pytest.raises(UserError, match="trial job"):
        require(examine(folder, trial_seconds=1, latency_seconds=0))


def test_profiles_that_exist_are_not_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "profile.v9+.yaml").touch()
    for arguments in (["--workflow-profile", "good"], ["--workflow-profile=good"], ["-n"]):
        assert missing_profile(["snakemake", *arguments]) is None
    assert missing_profile(["--workflow-profile", "none"]) is None
    assert missing_profile(["-n", "--workflow-profile", "bad", "-c1"]) == "bad"
    assert missing_profile(["--workflow-profile=good/"]) is None


def test_what_slurm_said_of_failed_jobs_is_found(tmp_path: Path) -> None:
    texts = {
        "7": "slurmstepd-n1: error: StepId=7.batch exceeded memory limit (9 > 5), killed\nslurmstepd-n1: error: x\n",
        "8": "a traceback, and nothing of SLURM\n",
        "9": "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n",
    }
    said = "SLURM-job '6' failed, SLURM status is: 'FAILED'.\n"  # its log was never written
    for job, text in {**texts, "10": "slurmstepd: error: of a job that did not fail\n"}.items():
        path = tmp_path / "a (folder)" / "rule_capture_heads" / "model_0000" / f"{job}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        said += f"Job 3 has been submitted with SLURM jobid {job} (log: {path}).\n"
    said += "".join(
        f"message: SLURM-job '{job}' failed, SLURM status is: 'FAILED'.\n" for job in texts
    )
    folder = path.parent
    assert reasons(said) == [
        f"SLURM job 7: StepId=7.batch exceeded memory limit (9 > 5), killed ({folder / '7.log'})",
        f"SLURM job 9: *** JOB 9 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT *** ({folder / '9.log'})",
    ]
    assert reasons("nothing failed") == []


def test_without_the_executor_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "PLUGIN", "no-such-executor")
    check = cluster.check_plugin()
    assert check.state == WRONG and "envs/slurm.txt" in check.text


def test_importing_it_brings_no_torch() -> None:
    import subprocess

    code = "import sys, mechatlas.cluster; sys.exit('torch' in sys.modules)"
    folder = Path(cluster.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0
