"""Snakemake in forks of one process that has imported it: importing it takes longer than most of what tests do with it.

A fork is what ``python -m snakemake`` is: it has its own working directory, environment, arguments and output, imports
the library of the workflow that it runs, and ends with the same status.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Where the workflow is parsed many times and its library does not change: read it once, too.
PREPARED = "--prepared"


class Forks:
    """The process, and a way to run Snakemake in forks of it, one after the other.

    Parameters
    ----------
    prepared : path, optional
        A copy of the workflow whose library is read before forking, for runs that change nothing in it.
    """

    def __init__(self, prepared: Path | None = None) -> None:
        words = [PREPARED, str(prepared)] if prepared else []
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(
        self, folder: Path, arguments: Sequence[str], timeout: float, **changes: str
    ) -> tuple[int, str]:
        """Run Snakemake in a folder; return its exit status and what it wrote, stdout and stderr together.

        ``changes`` are variables of its environment, which is otherwise the present one.

        Raises
        ------
        TimeoutError
            If it takes longer; it is killed.
        """
        with tempfile.NamedTemporaryFile() as output:
            wanted = {"folder": str(folder), "arguments": list(arguments), "output": output.name}
            wanted["environment"] = _environment() | changes
            self.process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self.process.stdin.flush()
            child = int(self.process.stdout.readline())
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                os.killpg(child, signal.SIGKILL)
                self.process.stdout.readline()
                raise TimeoutError(f"{arguments} in {folder} took longer than {timeout} s")
            status = int(self.process.stdout.readline())
            return status, Path(output.name).read_text(errors="replace")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@functools.cache
def shared() -> Forks:
    """Return the process of this session, started when first asked for."""
    forks = Forks()
    atexit.register(forks.close)
    return forks


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


# The process itself.


def _serve() -> None:
    for line in sys.stdin.buffer:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            status = _run(**wanted)
            # What stands in files beside the library is kept here, too.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(status)
        _say(child)
        _say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _run(folder: str, arguments: list[str], output: str, environment: Mapping[str, str]) -> int:
    """Be Snakemake; return the exit status."""
    from snakemake.cli import main

    with open(output, "wb") as file, open(os.devnull, "rb") as nothing:
        for descriptor, own in enumerate((nothing, file, file)):
            os.dup2(own.fileno(), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0], sys.argv = folder, ["snakemake", *arguments]
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _prepare(place: str | None) -> None:
    """Import what every run imports; with a copy of the workflow, read the library that it digests."""
    import jsonschema  # noqa: F401
    import nbformat  # noqa: F401
    import smart_open  # noqa: F401
    from snakemake.cli import get_argument_parser

    get_argument_parser()
    if place is None:
        return
    sys.path.insert(1, str(Path(place, "workflow", "scripts").resolve()))
    from mechatlas.config import load_schema
    from mechatlas.io.closure import closure_digest

    load_schema()
    for pattern in ("scripts/*.py", "notebooks/*.ipynb"):
        for path in Path(place, "workflow").resolve().glob(pattern):
            closure_digest(path)


if __name__ == "__main__":
    _prepare(sys.argv[2] if sys.argv[1:2] == [PREPARED] else None)
    _serve()
