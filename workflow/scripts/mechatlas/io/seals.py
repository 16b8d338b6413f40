"""Checksums of what a job made, compared whenever another job reads it.

A bit that flips on a disk, or a file that something else has cut short, would otherwise change results without a word.
What a rule makes is *sealed* when the job ends: the SHA-256 of its files is written below ``results/.seals``, as
``sha256sum -c`` reads it. A file from elsewhere (weights, text) is sealed when it is first read, together with its size
and time of change; when these are new, the file was replaced on purpose and gets a new seal.

It costs one reading of each file (about a second for 1.5 GB). ``MECHATLAS_CHECK_INPUTS=0`` in the environment turns
the comparison off.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mechatlas.io.artefacts import write_text
from mechatlas.io.errors import UserError
from mechatlas.io.manifest import manifest_lines

FOLDER = Path("results/.seals")
VARIABLE = "MECHATLAS_CHECK_INPUTS"


def seal(paths: Iterable[str | Path]) -> None:
    """Record the checksums of files and folders that a job has made."""
    for path in map(Path, paths):
        if path.exists():
            _write(path, manifest_lines([path]))


def break_seals(paths: Iterable[str | Path]) -> None:
    """Forget the checksums of what is about to be made anew."""
    for path in paths:
        _place(Path(path)).unlink(missing_ok=True)


def check_seals(paths: Iterable[str | Path]) -> None:
    """Compare files and folders with their seals, and seal files from elsewhere that have none.

    Raises
    ------
    UserError
        If the content of a file is not what it was.
    """
    if os.environ.get(VARIABLE) == "0":
        return
    for path in map(Path, paths):
        if path.exists():
            _check(path)


def _check(path: Path) -> None:
    place = _place(path)
    made, now = _is_made(path), manifest_lines([path])
    if not place.is_file():
        if not made:
            _write(path, now)
        return
    stamp, *sealed = place.read_text(encoding="utf-8").splitlines()
    if sealed == now:
        return
    if not made and stamp != _stamp(path):
        _write(path, now)
        return
    name = _first_difference(sealed, now)
    advice = (
        f"delete {path} and run snakemake again" if made else "restore it from where it came from"
    )
    raise UserError(
        f"{name} is damaged: its content has changed since it was {'made' if made else 'first read'} "
        f"(SHA-256 in {place}); {advice}"
    )


def _is_made(path: Path) -> bool:
    return path.parts[:1] == ("results",) or path.parts[:2] == ("resources", "downloads")


def _place(path: Path) -> Path:
    """Return where the seal of a path is kept; paths outside the working directory are named by their hash."""
    if path.is_absolute() or ".." in path.parts:
        return FOLDER / "elsewhere" / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return FOLDER / f"{path}.sha256"


def _stamp(path: Path) -> str:
    if _is_made(path) or path.is_dir():
        return "# made here"
    status = path.stat()
    return f"# {path}: {status.st_size} bytes, changed at {status.st_mtime_ns}"


def _write(path: Path, lines: list[str]) -> None:
    write_text(_place(path), "\n".join([_stamp(path), *lines]) + "\n")


def _first_difference(sealed: list[str], now: list[str]) -> str:
    changed = sorted(set(sealed) ^ set(now), key=lambda line: line[66:])
    return changed[0][66:]
