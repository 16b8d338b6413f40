"""Checksums of result files, in the format of sha256sum."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from mechatlas.io.artefacts import provenance_path, write_text
from mechatlas.io.digest import file_digest
from mechatlas.io.errors import UserError

logger = logging.getLogger("mechatlas")


def manifest_lines(paths: Iterable[str | Path]) -> list[str]:
    """Return one line ``<sha256>  <path>`` for each file, sorted by path.

    Parameters
    ----------
    paths : iterable of path
        Files, and folders whose files all count; a file's provenance sidecar counts with it. Hidden files, such
        as the time stamps that Snakemake leaves in folders, do not.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            found.update(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif path.is_file():
            found.update(p for p in (path, provenance_path(path)) if p.is_file())
        else:
            raise UserError(f"{path} does not exist; run snakemake again to make it")
    return [f"{file_digest(path)}  {path.as_posix()}" for path in sorted(found)]


def write_manifest(paths: Iterable[str | Path], manifest: str | Path) -> None:
    """Write the manifest of ``paths``, to be checked by ``sha256sum -c`` from the working directory."""
    lines = manifest_lines(paths)
    write_text(manifest, "".join(line + "\n" for line in lines))
    logger.info("%d files in %s", len(lines), manifest)


def verify_manifest(manifest: str | Path) -> int:
    """Return how many files a manifest lists, all of them as they should be.

    Raises
    ------
    UserError
        If the manifest is missing or malformed, or a file is missing or has another content.
    """
    manifest = Path(manifest)
    if not manifest.is_file():
        raise UserError(f"{manifest} does not exist; run snakemake to make the results first")
    wrong = []
    lines = manifest.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise UserError(
                f"{manifest}, line {number} is no checksum line; make the manifest again"
            )
        if not Path(name).is_file():
            wrong.append(f"{name} (missing)")
        elif file_digest(name) != digest:
            wrong.append(f"{name} (changed)")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(lines)} files differ from {manifest}: {', '.join(wrong[:20])}; "
            "delete them and run snakemake again"
        )
    logger.info("%d files agree with %s", len(lines), manifest)
    return len(lines)
