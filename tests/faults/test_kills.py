"""Runs that are killed at random moments end, after the same command again, with the same bytes.

The moments come from one seed (``FAULTS_SEED``): which job, by its number in the order of starting, one in each of as
many equal parts of the run as there are kills, and how far into it. What is killed takes turns: the whole session, as
when a machine goes down; Snakemake alone; one job alone, as when the system runs out of memory.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from llm_server import LlmServer

from .conftest import CORES, FORM, SEED, SHORT, TARGETS
from .world import Run, World, explainer

CHAINS, KILLS = (1, 3) if SHORT else (4, 5)
KINDS = ("session", "snakemake", "job")
LONGEST_DELAY = 6.0


def moments(chain: int, jobs: int) -> list[tuple[int, float, str]]:
    """Return for each kill of a chain the number of the job, how many seconds into it, and what is killed."""
    rng = random.Random(f"{SEED} {chain}")
    kinds = [KINDS[(chain + i) % len(KINDS)] for i in range(KILLS)]
    parts = [jobs * i / KILLS for i in range(KILLS + 1)]
    numbers = [rng.uniform(*parts[i : i + 2]) for i in range(KILLS)]
    return [
        (max(1, int(number)), rng.uniform(0, LONGEST_DELAY), kind)
        for number, kind in zip(numbers, kinds, strict=True)
    ]


def kill(run: Run, kind: str) -> None:
    """Kill a session, Snakemake alone, or the job that started last."""
    if kind == "session":
        run.kill()
    elif kind == "snakemake":
        run.signal(signal.SIGKILL)
        run.process.wait()
    else:
        for pid in run.world.jobs()[-1:]:
            _end(pid)
        run.wait()


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.skipif(FORM not in ("short", "full"), reason="FAULTS names other faults")
@pytest.mark.parametrize("chain", range(CHAINS))
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    chain: int, reference: World, tmp_path: Path
) -> None:
    log = []
    with LlmServer(explainer) as server:
        world = World(tmp_path / "killed", server)
        done = 0
        jobs = len(set(_finished(reference)))
        for number, delay, kind in moments(chain, jobs):
            run = world.start(*TARGETS, cores=CORES)
            reached = run.wait_for(lambda n=number, d=done: d + len(run.started()) >= n)  # noqa: B023
            if reached:
                run.wait_for(lambda: world.jobs(), timeout=60)
                time.sleep(delay)
            log.append((number, round(delay, 1), kind, run.started()[-1:]))
            kill(run, kind)
            left = world.wait_until_empty()
            assert not left, f"{kind}: {left} were orphaned after {log}"
            done += max(0, len(run.started()) - 1)
            if kind != "job":
                assert "cannot be locked" in world.run(*TARGETS, ok=False)
                world.unlock()
        world.run(*TARGETS, cores=CORES)
        assert not server.repeated(), "a question was asked again that had been answered"
    assert world.results() == reference.results(), log
    assert not world.leftovers()
    assert not world.wait_until_empty()


def _finished(world: World) -> list[str]:
    folder = world.folder / "results" / "benchmarks"
    return [path.as_posix() for path in folder.rglob("*.tsv")]


def test_moments_cover_the_run_and_every_kind() -> None:
    for jobs in (12, 37):
        found = [moment for chain in range(CHAINS) for moment in moments(chain, jobs)]
        assert len(found) == CHAINS * KILLS and {kind for *_, kind in found} == set(KINDS)
        numbers = [number for number, *_ in found]
        assert min(numbers) <= jobs / KILLS and max(numbers) >= jobs - jobs / KILLS - 1
        assert moments(0, jobs) == moments(0, jobs)
