"""One piece of work spread over several jobs: how many there are, and which part is whose.

The number of jobs is known while the workflow is planned, when how much work there is may not be. So there may be more
jobs than work: one without any writes an empty file.
"""

from __future__ import annotations

import math


def batch_names(units: int, per_job: int) -> list[str]:
    """Return the names of the jobs that units are spread over, none if one job does everything.

    Parameters
    ----------
    units : int
        How many there are at most.
    per_job : int
        Units of one job; 0 means all.
    """
    jobs = math.ceil(units / per_job) if per_job else 1
    return [f"{batch:04d}" for batch in range(jobs)] if jobs > 1 else []


def share(units: int, batch: int, batches: int) -> range:
    """Return the units of one of several jobs: runs of nearly equal length that make up all units, in order."""
    return range(batch * units // batches, (batch + 1) * units // batches)
