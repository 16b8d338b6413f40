"""The cluster of these tests itself: it is stopped whole, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_node import CGROUPS, FILES, PLACE, PREFIX, OneNode, ask, has_cgroups, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=why_not())]

RUNNING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
NAMES = ("munged", "slurmctld", "slurmd", "slurmstepd", "srun")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        yield Path(name)


def processes() -> dict[int, str]:
    """Return the processes with the names of SLURM's programs; names have 15 characters at most."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name = (place / "comm").read_text().strip()
            ended = (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if not ended and name in NAMES:
            found[int(place.name)] = name
    return found


def place() -> list[str]:
    return sorted(os.listdir(PLACE)) if PLACE.exists() else []


def test_all_that_was_started_is_stopped_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    # A program of the same name that is not ours.
    other = tmp_path / "slurmd"
    other.symlink_to("/bin/sleep")
    with subprocess.Popen([other, "60"]) as bystander:
        before, links = processes(), place()
        with OneNode(folder):
            assert sorted(set(processes().values()) - {"srun"}) == ["munged", "slurmctld", "slurmd"]
            assert set(FILES) <= set(place())
            ask("sbatch", "--output=/dev/null", "--mem=100", "--wrap", "sleep 60")
            until(lambda: "slurmstepd" in processes().values())
        assert processes() == before and place() == links
        assert bystander.poll() is None
        bystander.kill()
    assert why_not() == ""


@pytest.mark.parametrize("cgroups", [True, False])
def test_a_job_over_its_memory_is_ended_alone(folder: Path, tmp_path: Path, cgroups: bool) -> None:
    if cgroups and not has_cgroups():
        pytest.skip("no cgroups of version 1 to limit memory with")
    with OneNode(folder, cgroups=cgroups) as node:
        for place, megabytes in (("within", 20), ("over", 400)):
            task = f"import time; held = bytearray({megabytes} * 2**20); time.sleep(3)"
            command = f"{sys.executable} -c '{task}'"
            ask("sbatch", f"--output={tmp_path / place}", "--mem=200", "--wrap", command)
        until(lambda: {j["JobState"] for j in node.jobs().values()}.isdisjoint(RUNNING))
        assert [j["JobState"] for j in node.jobs().values()] == ["COMPLETED", node.over_memory]
    assert not list(CGROUPS.glob("slurm*"))


def test_a_start_that_fails_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, links = processes(), place()
    broken = tmp_path / "slurmd"
    broken.write_text("#!/bin/sh\necho no such luck; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with (
        pytest.raises(RuntimeError, match="slurmd did not come up(.|\n)*no such luck"),
        OneNode(folder),
    ):
        pass
    assert processes() == before and place() == links


def test_daemons_end_with_tests_that_are_killed(folder: Path) -> None:
    before = processes()
    code = (
        "import sys, time; from pathlib import Path; from one_node import OneNode\n"
        "with OneNode(Path(sys.argv[1])): print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=Path(__file__).parent, stdout=subprocess.PIPE
    ) as tests:
        assert tests.stdout.readline() == b"up\n"
        tests.kill()
    until(lambda: processes() == before)
    try:
        assert "left by a killed run" in why_not()
    finally:
        for name in FILES:
            (PLACE / name).unlink()


def until(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
