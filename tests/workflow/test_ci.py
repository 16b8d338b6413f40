"""What .ci/run does around the suite, with programs that only say that they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import REPOSITORY

#: Stands in for make: notes its target, and does and ends as the test wants.
MAKE = """#!/bin/bash
echo "make $1" >> calls
case $1 in
  test-browser) mkdir -p results/screenshots; touch results/screenshots/{map,head}.png
    echo "2 of the browser in 3.0s"; exit ${BROWSER_ENDS:-0} ;;
  test-faults) echo "9 passed in 100.0s" ;;
  test-slurm) echo "8 of SLURM in 400.0s"; exit ${SLURM_ENDS:-0} ;;
  test-slow) echo "12 of whole runs in 300.0s"; exit ${SLOW_ENDS:-0} ;;
  test) echo "42 passed, 1 skipped in 500.00s (0:08:20)"; exit ${TEST_ENDS:-0} ;;
esac
"""
APT = """#!/bin/bash
echo "apt-get $1" >> calls
[ "$1" = update ] && exit 0
echo "Reading package lists..."
[ -n "$NO_PACKAGE" ] && { echo "E: Unable to locate package chromium" >&2; exit 100; }
ln -sf /bin/true "$(dirname "$0")/chromium"
"""
SLURM = ("munged", "slurmctld", "slurmd", "sbatch")
CLOSING = "42 passed, 1 skipped in 500.00s (0:08:20)"
USED = (
    "bash",
    "dirname",
    "mktemp",
    "tee",
    "grep",
    "tail",
    "rm",
    "ls",
    "wc",
    "mkdir",
    "touch",
    "ln",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the script, and with nothing on the path but what it uses, and SLURM."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / ".ci" / "run")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in USED:
        (programs / name).symlink_to(str(shutil.which(name)))
    for name in ("git", "python3", *SLURM):
        (programs / name).symlink_to(str(shutil.which("true")))
    write(programs / "make", MAKE)
    write(programs / "id", "#!/bin/bash\necho ${USER_ID:-0}\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def ci(place: Path, **environment: str) -> tuple[int, list[str], list[str]]:
    """Run the script; return its exit status, its lines and what it called."""
    done = subprocess.run(
        [str(place / ".ci" / "run")],
        env={"PATH": str(place / "bin"), "TMPDIR": str(place), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    calls = (place / "calls").read_text().splitlines()
    return done.returncode, (done.stdout + done.stderr).splitlines(), calls


def test_chromium_is_installed_and_pictures_are_kept(place: Path) -> None:
    write(place / "bin" / "apt-get", APT)
    (place / "results" / "screenshots").mkdir(parents=True)
    (place / "results" / "screenshots" / "of-an-earlier-run.png").touch()
    status, lines, calls = ci(place)
    assert status == 0 and lines[-1] == CLOSING
    assert calls == [
        *("make test-faults", "make test-slurm", "apt-get update", "apt-get install"),
        *("make test-browser", "make test-slow", "make test"),
    ]
    pictures = place / "results" / "screenshots"
    assert f"screenshots of every view: {pictures} (2 pictures)" in lines
    assert {path.name for path in pictures.iterdir()} == {"map.png", "head.png"}


def test_chromium_that_is_there_is_taken(place: Path) -> None:
    (place / "bin" / "chromium").symlink_to(place / "bin" / "git")
    assert ci(place, USER_ID="1000")[2] == [
        *("make test-faults", "make test-slurm", "make test-browser", "make test-slow", "make test")
    ]


@pytest.mark.parametrize(
    ("apt", "environment", "why"),
    [
        (
            True,
            {"USER_ID": "1000"},
            "SLURM is not installed, and installing it needs root and apt-get",
        ),
        (False, {}, "SLURM is not installed, and installing it needs root and apt-get"),
        (
            True,
            {"NO_PACKAGE": "1"},
            "apt-get could not install SLURM: E: Unable to locate package chromium",
        ),
    ],
)
def test_without_slurm_one_line_says_why(
    apt: bool, environment: dict[str, str], why: str, place: Path
) -> None:
    """Its tests are called all the same: they skip themselves, with the reason."""
    (place / "bin" / "chromium").symlink_to(place / "bin" / "git")
    (place / "bin" / "slurmd").unlink()
    if apt:
        write(place / "bin" / "apt-get", APT)
    status, lines, calls = ci(place, **environment)
    assert status == 0 and lines[-1] == CLOSING and "make test-slurm" in calls
    assert [line for line in lines if "cannot run" in line] == [f"test-slurm cannot run: {why}"]


def test_slurm_is_installed(place: Path) -> None:
    (place / "bin" / "chromium").symlink_to(place / "bin" / "git")
    (place / "bin" / "sbatch").unlink()
    write(place / "bin" / "apt-get", APT)
    assert ci(place)[2][:3] == ["apt-get update", "apt-get install", "make test-faults"]


@pytest.mark.parametrize(
    ("apt", "environment", "why"),
    [
        (True, {"USER_ID": "1000"}, "there is no chromium, and only root can install it"),
        (False, {}, "there is no chromium, and no apt-get to install it"),
        (
            True,
            {"NO_PACKAGE": "1"},
            "apt-get cannot install chromium: E: Unable to locate package chromium",
        ),
    ],
)
def test_without_chromium_one_line_says_why(
    apt: bool, environment: dict[str, str], why: str, place: Path
) -> None:
    if apt:
        write(place / "bin" / "apt-get", APT)
    status, lines, calls = ci(place, **environment)
    assert status == 0 and lines[-1] == CLOSING
    assert [line for line in lines if "browser" in line] == [f"browser tests not run: {why}"]
    assert "make test-browser" not in calls and calls[-1] == "make test"


@pytest.mark.parametrize("failing", ["SLURM_ENDS", "BROWSER_ENDS", "SLOW_ENDS", "TEST_ENDS"])
def test_a_failure_fails_all_and_the_suite_still_closes(failing: str, place: Path) -> None:
    (place / "bin" / "chromium").symlink_to(place / "bin" / "git")
    status, lines, calls = ci(place, **{failing: "2"})
    assert status == 2 and lines[-1] == CLOSING and calls[-1] == "make test"
    assert os.listdir(place / "results" / "screenshots")
