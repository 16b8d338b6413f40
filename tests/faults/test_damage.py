"""A world that is against the run: damaged files, full and read-only disks, odd clocks, a second run, dying kernels.

Each fault ends in one clear line that names the file, and the same command again gives the bytes of an undisturbed run.
In the short form (``FAULTS=short``) three of the faults are drawn by the seed; the full form has all.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import CORES, FORM, SEED
from .world import World

FOLDER = "results/demo-2l/synthetic-wiki"
EVENTS = f"{FOLDER}/heads/raw_events.parquet"
REPORT = f"{FOLDER}/heads/report.md"
#: Everything that can happen; the notebook needs the pages, which the short form's reference lacks.
FAULTS = (
    "shard", "table", "truncated shard", "weights", "full disk", "file size", "read-only", "clock", "two runs",
    "ctrl-c", "terminated", "kernel",
)  # fmt: skip
DRAWN = random.Random(f"{SEED} faults").sample(FAULTS[:-1], 3)
CHOSEN = {"short": DRAWN, "full": FAULTS}.get(FORM, FORM.split(","))


def fault(name: str):
    """Mark a test as one fault, which the short form runs if it was drawn."""
    assert name in FAULTS
    return pytest.mark.skipif(name not in CHOSEN, reason="not drawn; FAULTS=full runs all")


def errors(said: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"^error: .*", said, re.MULTILINE)))


def same(world: World, reference: World) -> None:
    """Compare what this world made with the same files of the reference, byte for byte; look for what was left."""
    found, wanted = world.results(), reference.results()
    assert found and found.keys() <= wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
    assert not world.leftovers() and not world.wait_until_empty()


def flip(path: Path, place: float) -> None:
    """Flip one bit, and let the file look as old as before."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1000])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("damaged", "made_by", "damage", "below"),
    [
        pytest.param(
            f"{FOLDER}/capture/0001/patterns.layer_1.safetensors", f"{FOLDER}/capture/0001",
            lambda path: flip(path, 0.7), REPORT, marks=fault("shard"),
        ),
        pytest.param(
            f"{FOLDER}/capture/0000/patterns.layer_0.safetensors", f"{FOLDER}/capture/0000",
            truncate, REPORT, marks=fault("truncated shard"),
        ),
        pytest.param(
            f"{FOLDER}/windows.parquet", f"{FOLDER}/windows.parquet", lambda path: flip(path, 0.5), EVENTS,
            marks=fault("table"),
        ),
    ],
)  # fmt: skip
def test_damaged_results_are_named_and_made_again(
    damaged: str, made_by: str, damage: Callable, below: str, copy: Callable, reference: World
) -> None:
    world = copy()
    damage(world.folder / damaged)
    (world.folder / below).unlink()
    (world.folder / f"{FOLDER}/heads/explanations/programs.jsonl").unlink(missing_ok=True)
    said = world.run(below, ok=False, cores=CORES)
    assert any(
        f"{damaged} is damaged" in line and f"delete {made_by} and run" in line
        for line in errors(said)
    ), said[-3000:]
    assert "Traceback" not in "".join(errors(said))
    target = world.folder / made_by
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    world.run(below, cores=CORES)
    same(world, reference)


@fault("weights")
def test_weights_that_change_unnoticed_are_named(fresh: World, reference: World) -> None:
    model = fresh.folder / "models" / "mine"
    shutil.copytree(Path(__file__).parents[2] / "resources/models/demo-2l", model)
    text = (fresh.folder / "small.yaml").read_text()
    place = re.search(r"path: (\S*demo-2l)", text)[1]
    (fresh.folder / "small.yaml").write_text(text.replace(place, "models/mine"))
    fresh.run(f"{FOLDER}/capture/0000", cores=CORES)
    flip(model / "model.safetensors", 0.6)
    said = fresh.run(EVENTS, ok=False, cores=CORES)
    assert any("models/mine/model.safetensors is damaged" in line for line in errors(said)), said
    assert any("restore it from where it came from" in line for line in errors(said))
    flip(model / "model.safetensors", 0.6)
    fresh.run(EVENTS, cores=CORES)
    same(fresh, reference)
    # Weights that were replaced on purpose are newer, and taken.
    content = bytearray((model / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (model / "model.safetensors").write_bytes(content)
    fresh.run(EVENTS, cores=CORES)
    facts = f"{FOLDER}/capture/0000/index.json.provenance.json"  # holds the digest of the weights
    assert fresh.results()[facts] != reference.results()[facts]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a disk in memory; yield a function that changes its options."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "mechatlas-faults", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no disk can be mounted here ({done.stderr.strip()})")

    def change(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@fault("full disk")
def test_a_full_disk(fresh: World, reference: World) -> None:
    with small_disk(fresh.folder / "results", "3m") as change:
        said = fresh.run(EVENTS, ok=False, cores=CORES)
        assert any("no space left on the device" in line for line in errors(said)), said[-3000:]
        assert all("Traceback" not in line for line in errors(said))
        change("size=50m")
        fresh.run(EVENTS, cores=CORES)
        same(fresh, reference)


@fault("file size")
def test_files_that_may_not_grow(fresh: World, reference: World) -> None:
    command = fresh.command(EVENTS, cores=CORES)
    # In blocks of 512 bytes (POSIX); above everything that Snakemake itself writes, below a pattern shard.
    limited = ["sh", "-c", 'ulimit -f 300 && exec "$@"', "limited", *command]
    done = subprocess.run(
        limited, cwd=fresh.folder, env=fresh.environment, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode and any("larger than files may be" in line for line in errors(said)), (
        said[-3000:]
    )
    fresh.run(EVENTS, cores=CORES)
    same(fresh, reference)


@fault("read-only")
def test_results_that_cannot_be_written(fresh: World, reference: World) -> None:
    with small_disk(fresh.folder / "results", "50m") as change:
        fresh.run(f"{FOLDER}/windows.parquet", cores=CORES)
        change("ro")
        said = fresh.run(EVENTS, ok=False, cores=CORES)
        assert "results cannot be written; change its permissions" in said, said[-3000:]
        change("rw")
        fresh.run(EVENTS, cores=CORES)
        same(fresh, reference)


@fault("clock")
def test_clocks_that_go_backwards(fresh: World, reference: World) -> None:
    day = 86400 * 10**9
    fresh.run(f"{FOLDER}/capture/0000", cores=CORES)
    for path in (fresh.folder / "results").rglob("*"):
        # The first half of the run was made "tomorrow", but for the documents, which are of 1970.
        now = path.stat().st_mtime_ns
        moved = 10**9 if "sources" in path.parts else now + day
        os.utime(path, ns=(moved, moved))
    fresh.run(EVENTS, cores=CORES)
    same(fresh, reference)
    for path in (fresh.folder / "results").rglob("*.parquet"):
        os.utime(path, ns=(10**9, 10**9))
    fresh.run(EVENTS, cores=CORES)
    same(fresh, reference)
    # In the end everything is as old as it should be, and nothing is made again.
    assert "Nothing to be done" in fresh.run(EVENTS, cores=CORES)


@fault("two runs")
def test_two_runs_in_one_folder(fresh: World, reference: World) -> None:
    first = fresh.start(EVENTS, cores=CORES)
    assert first.wait_for(lambda: first.started())
    said = fresh.run(EVENTS, ok=False, cores=CORES)
    assert "Directory cannot be locked" in said and "no other Snakemake process" in said
    assert first.wait() == 0, first.said()[-3000:]
    same(fresh, reference)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=fault("ctrl-c")),
        pytest.param(signal.SIGTERM, marks=fault("terminated")),
    ],
)
def test_interrupted_runs_leave_nothing_and_go_on(
    number: int, fresh: World, reference: World
) -> None:
    run = fresh.start(EVENTS, cores=CORES)
    assert run.wait_for(lambda: "capture_heads" in run.started() and fresh.jobs())
    time.sleep(random.Random(SEED).uniform(0, 4))
    # As a terminal does, and as a system does that is shut down.
    run.signal_group(number)
    assert run.wait(60) != 0
    assert not fresh.wait_until_empty() and not fresh.leftovers()
    # The lock is free.
    fresh.run(EVENTS, cores=CORES)
    same(fresh, reference)


@fault("kernel")
def test_a_notebook_kernel_that_dies(copy: Callable) -> None:
    world = copy()
    page = "results/report/demo-2l/synthetic-wiki/heads.html"
    world.run(page, cores=CORES)
    wanted = world.results()
    (world.folder / page).unlink()
    run = world.start(page, cores=CORES)
    assert run.wait_for(lambda: world.kernels())
    time.sleep(1)
    for pid in world.kernels():
        os.kill(pid, signal.SIGKILL)
    assert run.wait() != 0
    said = run.said()
    assert any("kernel" in line and "heads.ipynb" in line for line in errors(said)), said[-3000:]
    assert not world.wait_until_empty()
    world.run(page, cores=CORES)
    assert world.results() == wanted
