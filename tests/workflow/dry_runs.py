"""Many dry runs for the price of one start: the library is read once, and every command runs in a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

TIMEOUT = 600


def dry_runs(folder: Path, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Run Snakemake without a job for each list of arguments; return exit status and output of each."""
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        input=json.dumps([list(command) for command in commands]),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return [(status, text) for status, text in json.loads(done.stdout)]


def _run(arguments: list[str]) -> tuple[int, str]:
    """Run one command in a child and return its exit status and what it wrote."""
    import tempfile

    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(_status(arguments))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def _status(arguments: list[str]) -> int:
    from snakemake.cli import main

    sys.argv = ["snakemake", *arguments]
    status = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _prepare() -> None:
    """Import what parsing imports, and read the library that it digests, once for all forks."""
    import jsonschema  # noqa: F401
    import snakemake.cli  # noqa: F401

    from mechatlas.config import load_schema
    from mechatlas.io.closure import closure_digest

    load_schema()
    for pattern in ("scripts/*.py", "notebooks/*.ipynb"):
        for path in Path("workflow").resolve().glob(pattern):
            closure_digest(path)


if __name__ == "__main__":
    _prepare()
    results = [_run(arguments) for arguments in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(results))
