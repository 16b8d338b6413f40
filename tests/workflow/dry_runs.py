"""Many dry runs for the price of one start: the library is read once, and every command runs in a fork."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forks import Forks

TIMEOUT = 120


def dry_runs(folder: Path, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Run Snakemake without a job for each list of arguments; return exit status and output of each."""
    forks = Forks(prepared=folder)
    try:
        return [forks.run(folder, command, TIMEOUT) for command in commands]
    finally:
        forks.close()
