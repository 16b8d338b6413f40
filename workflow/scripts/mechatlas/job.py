"""What surrounds every script of the workflow: arguments, log, threads, errors.

A script is a docstring, a ``main`` with plain keyword arguments, and four lines, the first of them before all other
imports of this library, which it makes cheaper (see `mechatlas.start`)::

    from mechatlas.job import job

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

A `UserError`, a full disk or one that cannot be written becomes one line ``error: ...`` in the log and on stderr, every
other exception a traceback in the log; all end the job with status 1. What the job reads is compared with its checksum,
what it makes gets one (`mechatlas.io.seals`). A job ends when the Snakemake that started it has died, and when it is
asked to (SIGTERM), without leaving half-written files. Knows the attributes of Snakemake's object but does not import
it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from mechatlas.io import UserError
from mechatlas.io.seals import break_seals, check_seals, seal
from mechatlas.start import quicken, settle

logger = logging.getLogger("mechatlas")

FORMAT = "%(asctime)s %(levelname)s %(message)s"
WATCH_SECONDS = 0.5
SHELLS = ("bash", "sh", "dash")
#: How the system and libraries say that a disk cannot take what is written.
STORAGE = {
    "No space left on device": "no space left on the device",
    "os error 28": "no space left on the device",
    "database or disk is full": "no space left on the device",
    "Disk quota exceeded": "the quota of the disk is used up",
    "File too large": "larger than files may be here",
    "os error 27": "larger than files may be here",
    "Read-only file system": "the file system is read-only",
    "os error 30": "the file system is read-only",
    "readonly database": "the file system is read-only",
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Scripts import this module first. Other programs that import it (tests, say) are left as they are.
if "snakemake" in vars(sys.modules["__main__"]):
    quicken()


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
        settle()
        self.handlers = _start_logging(self.log)
        _set_environment(int(self.snakemake.threads), self.offline)
        if type(self.snakemake).__module__.startswith("snakemake"):
            _end_with_snakemake()
        logger.info("%s started, threads %d", self.snakemake.rule, self.snakemake.threads)
        arguments = job_arguments(self.snakemake)
        try:
            check_seals(self.snakemake.input)
            break_seals(self.snakemake.output)
        except (UserError, OSError):
            self.__exit__(*sys.exc_info())
        return arguments

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                seal(self.snakemake.output)
            except OSError as failure:
                kind, error, trace = OSError, failure, failure.__traceback__
        if error is None:
            logger.info("%s finished", self.snakemake.rule)
        for handler in self.handlers:
            logger.removeHandler(handler)
            handler.close()
        if isinstance(error, Exception) and (said := storage_problem(error)):
            error = UserError(said)
        if isinstance(error, UserError):
            _emit(self.log, f"error: {error}\n")
            raise SystemExit(1) from None
        if isinstance(error, Exception):
            _emit(self.log, "".join(traceback.format_exception(kind, error, trace)))
            raise SystemExit(1) from None


def storage_problem(error: Exception) -> str:
    """Return one sentence about a disk that is full or cannot be written, whichever library met it; else ``""``."""
    text = str(error).partition("\n")[0]
    for sign, what in STORAGE.items():
        if sign in text:
            name = getattr(error, "filename", None) or "a result"
            return f"{name} cannot be written ({what}); make room or choose another --directory, then run again"
    return ""


def _end_with_snakemake() -> None:
    """End this process when asked to, and soon after Snakemake was killed: nobody waits for it any more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ancestors = _ancestors()

    def watch() -> None:
        while _ancestors() == ancestors:
            time.sleep(WATCH_SECONDS)
        os._exit(128 + signal.SIGHUP)

    threading.Thread(target=watch, daemon=True, name="watch of Snakemake").start()


def _ancestors() -> list[int]:
    """Return the processes between this one and Snakemake, which is the first that is no shell (Linux only)."""
    found = [os.getppid()]
    with contextlib.suppress(OSError):
        while True:
            # The name, in parentheses, may hold anything.
            name, _, rest = Path(f"/proc/{found[-1]}/stat").read_text().rpartition(")")
            if name.partition("(")[2] not in SHELLS:
                break
            found.append(int(rest.split()[1]))
    return found


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
