"""Writes that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mechatlas.io.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` on success.

    Parameters
    ----------
    path : str or Path
        Where the finished file or folder shall be. Parent folders are created.
    folder : bool
        If true the temporary path is an existing empty folder, else a file that the caller creates.

    Raises
    ------
    UserError
        If the parent folder cannot be created or written.

    Notes
    -----
    The content is flushed to disk before the rename, so a killed process or a power cut leaves either the
    old content, the new content, or a dot-file that `clean_temporaries` removes.
    """
    path = Path(path)
    temporary = _reserve(path, folder)
    try:
        yield temporary
        _finish_tree(temporary)
        if folder and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def clean_temporaries(folder: str | Path) -> list[Path]:
    """Remove what killed writers left under ``folder``; return the removed paths, sorted."""
    leftovers = sorted(p for p in Path(folder).rglob(".tmp-*") if p.exists())
    for path in leftovers:
        _remove(path)
    return leftovers


def _reserve(path: Path, folder: bool) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".tmp-{path.name}-"
        if folder:
            temporary = tempfile.mkdtemp(dir=path.parent, prefix=prefix)
        else:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; "
            "make the folder writable or run with another --directory"
        ) from error
    return Path(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finish_tree(path: Path) -> None:
    """Give what was written the usual permissions, and flush it to disk.

    Temporary files are private, and so is what some libraries write; results are to be shared as the umask says.
    """
    mask = _umask()
    for part in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
        os.chmod(part, (0o777 if part.is_dir() else 0o666) & ~mask)
        _sync(part)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
