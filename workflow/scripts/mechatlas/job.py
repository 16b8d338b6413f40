"""What surrounds every script of the workflow: arguments, log, threads, errors.

A script is a docstring, a ``main`` with plain keyword arguments, and three lines::

    if "snakemake" in globals():
        with job(snakemake) as arguments:
            main(**arguments)

It has no ``from __future__`` import, as Snakemake puts lines of its own before it. ``arguments`` holds the rule's
named inputs, outputs and params under their own names. Left out are

- ``code``: the digest of the library, which is there to trigger reruns;
- ``captions``: texts that the report of the engine shows below figures;
- names that end in ``_files``: inputs that are there to trigger reruns, when the script is given their folder
  as a param.

What is neither comes explicitly: ``main(**arguments, gpu=snakemake.resources.gpu)``. A named input or output that
is a list arrives as a list of str, an optional input that is absent as an empty list.

A `UserError` becomes one line ``error: ...`` in the log and on stderr, every other exception a traceback in the
log; both end the job with status 1. Knows the attributes of Snakemake's object but does not import it.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")

FORMAT = "%(asctime)s %(levelname)s %(message)s"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class job:  # noqa: N801 - reads as a statement: with job(snakemake) as arguments
    """Set up one job and give the arguments of its ``main``.

    Parameters
    ----------
    snakemake : object
        The object that Snakemake gives to a script.
    offline : bool
        Forbid the libraries of the Hugging Face hub to use the network. Only a download sets this to false.

    Raises
    ------
    SystemExit
        With status 1, in place of an exception of the body.
    """

    def __init__(self, snakemake: Any, *, offline: bool = True) -> None:
        self.snakemake = snakemake
        self.offline = offline
        self.log = str(snakemake.log[0])

    def __enter__(self) -> dict[str, Any]:
        self.handlers = _start_logging(self.log)
        _set_environment(int(self.snakemake.threads), self.offline)
        logger.info("%s started, threads %d", self.snakemake.rule, self.snakemake.threads)
        return job_arguments(self.snakemake)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            logger.info("%s finished", self.snakemake.rule)
        for handler in self.handlers:
            logger.removeHandler(handler)
            handler.close()
        if isinstance(error, UserError):
            _emit(self.log, f"error: {error}\n")
            raise SystemExit(1) from None
        if isinstance(error, Exception):
            _emit(self.log, "".join(traceback.format_exception(kind, error, trace)))
            raise SystemExit(1) from None


def job_arguments(snakemake: Any) -> dict[str, Any]:
    """Return the named inputs, outputs and params of a job as keyword arguments (see the module's page)."""
    arguments: dict[str, Any] = {}
    for values in (snakemake.input, snakemake.output, snakemake.params):
        for name, value in values.items():
            if name in arguments:
                raise ValueError(f"rule {snakemake.rule} uses the name {name!r} twice")
            if name not in ("code", "captions") and not name.endswith("_files"):
                arguments[name] = _plain(value)
    return arguments


def _plain(value: Any) -> Any:
    """Turn Snakemake's list type into a list and its string type into str."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _start_logging(path: str) -> list[logging.Handler]:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.FileHandler(path, mode="w", encoding="utf-8"),
        logging.StreamHandler(sys.stderr),
    ]
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handlers


def _set_environment(threads: int, offline: bool) -> None:
    # Set before torch is imported: it reads these variables once.
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"


def _emit(log: str, text: str) -> None:
    sys.stderr.write(text)
    with open(log, "a", encoding="utf-8") as handle:
        handle.write(text)
