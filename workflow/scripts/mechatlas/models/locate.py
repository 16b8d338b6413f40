"""From the name of a model to a folder that holds it: local, shipped with the project, or downloaded once."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mechatlas.io import UserError, write_text
from mechatlas.io.download import download
from mechatlas.models.fetch import check_revision, fetch_model
from mechatlas.models.tdb import PIECES, checksums, piece_names, read_layers

logger = logging.getLogger("mechatlas")

EMBEDDED = Path(__file__).resolve().parents[4] / "resources" / "models"
TDB_BASE = "https://openaipublic.blob.core.windows.net/neuron-explainer/subject-models"
TDB_SIZES = ("small", "medium", "large", "xl")
HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
SUMS = "SHA256SUMS"
CONNECTIONS = 8


def find_model(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model, downloading it first if need be.

    Parameters
    ----------
    name_or_path : str or Path
        In this order: a folder; the name of an embedded model (`embedded_models`); ``gpt2-small``, ``gpt2-medium``,
        ``gpt2-large`` or ``gpt2-xl`` (or with a slash) for OpenAI's copies; the https address of another Transformer
        Debugger folder; a Hugging Face repository.
    revision : str, optional
        For a Hugging Face repository the 40 digits of a commit, which are required. For an address the digest that
        `mechatlas.models.tdb.tdb_digest` gives of the folder: another content is refused then.

    Raises
    ------
    UserError
        If there is no such model, it cannot be downloaded, or its content is not that of ``revision``.
    """
    name = str(name_or_path)
    if Path(name).is_dir():
        return Path(name)
    if name in embedded_models():
        return EMBEDDED / name
    size = re.fullmatch(f"gpt2[-/]({'|'.join(TDB_SIZES)})", name)
    if size:
        return fetch_tdb(f"{TDB_BASE}/gpt2/{size[1]}", revision)
    if "://" in name:
        return fetch_tdb(name, revision)
    if isinstance(name_or_path, Path) or not HUB.fullmatch(name):
        raise UserError(
            f"the folder {name} does not exist; correct the path, or take an embedded model: "
            f"{', '.join(embedded_models())}"
        )
    return _from_hub(name, revision)


def embedded_models() -> list[str]:
    """Return the names of the models that ship with the project."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))


def cache_folder() -> Path:
    """Return where downloaded models are kept: ``$MECHATLAS_CACHE``, or ``mechatlas`` in the user's cache folder."""
    own = os.environ.get("MECHATLAS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechatlas"


def fetch_tdb(address: str, revision: str | None = None) -> Path:
    """Download a Transformer Debugger folder to the cache, or check the copy that is there.

    Files that have arrived are kept when a download breaks off, and the next one goes on from there. The folder gets
    its name only when all files are there, with their SHA-256 in ``SHA256SUMS``; later uses compare with those.

    Raises
    ------
    UserError
        If the address is not https, a file cannot be downloaded, or the content is not that of ``revision`` or has
        changed since it was downloaded.
    """
    address = address.rstrip("/")
    slug = re.sub(r"[^A-Za-z0-9]+", "-", address.rpartition("://")[2]).strip("-")[-60:]
    name = f"{slug}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    folder = cache_folder() / "models" / name
    with _locked(folder.parent / f".lock-{name}"):
        if not folder.is_dir():
            logger.info("downloading %s", address)
            _download(address, folder)
    _verify(folder, address, revision)
    return folder


def _download(address: str, folder: Path) -> None:
    arriving = folder.parent / f".part-{folder.name}"
    (arriving / PIECES).mkdir(parents=True, exist_ok=True)
    _missing(address, arriving, ["config.json"])
    layers = read_layers(arriving / "config.json")
    _missing(address, arriving, [f"{PIECES}/{name}.pt" for name in piece_names(layers)])
    write_text(arriving / SUMS, checksums(arriving))
    arriving.replace(folder)


def _missing(address: str, folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).exists()]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        jobs = [pool.submit(download, f"{address}/{name}", folder / name) for name in missing]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _verify(folder: Path, address: str, revision: str | None) -> None:
    found = checksums(folder)
    sums = folder / SUMS
    if not sums.is_file() or sums.read_text(encoding="utf-8") != found:
        raise UserError(
            f"{folder} is not what was downloaded from {address}; remove it, and it will be downloaded again"
        )
    digest = hashlib.sha256(found.encode()).hexdigest()
    if revision is not None and revision != digest:
        raise UserError(
            f"{address} holds the content {digest}, not revision {revision}; correct one of the two"
        )


def _from_hub(name: str, revision: str | None) -> Path:
    if revision is None:
        raise UserError(
            f"{name} is no folder and no embedded model ({', '.join(embedded_models())}); if it is a Hugging Face "
            "repository, give the 40 digits of a commit as revision, so that the model cannot change"
        )
    check_revision(name, revision)  # before it becomes part of a path
    folder = cache_folder() / "models" / f"hub-{name.replace('/', '--')}-{revision}"
    with _locked(folder.parent / f".lock-{folder.name}"):
        if not folder.is_dir():
            fetch_model(name, revision, folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from downloading the same model at the same time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(
            f"cannot write {path.parent}: {error.strerror}; set MECHATLAS_CACHE to another folder"
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
