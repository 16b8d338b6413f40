"""Check whether this cluster is fit for a run and print a line for each thing looked at.

Params: folder (the working directory), trial_seconds, latency_seconds. No output: the job fails if something is wrong.
"""

import logging

from mechatlas.job import job
from mechatlas.cluster import examine, require

logger = logging.getLogger("mechatlas")


def main(folder: str, trial_seconds: int, latency_seconds: int) -> None:
    """Log what `mechatlas.cluster.examine` finds; raise `UserError` if something is wrong."""
    checks = examine(folder, trial_seconds=trial_seconds, latency_seconds=latency_seconds)
    logger.info("the cluster:\n%s", "\n".join(map(str, checks)))
    require(checks)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
