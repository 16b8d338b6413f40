"""Download of one file over https: resumable, checked, and whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from mechatlas.io.artefacts import read_json, write_text
from mechatlas.io.atomic import atomic_path
from mechatlas.io.digest import file_digest
from mechatlas.io.errors import UserError
from mechatlas.io.progress import progress

logger = logging.getLogger("mechatlas")

BLOCK = 2**16
MEBIBYTE = 2**20
LOCAL = ("127.0.0.1", "localhost")


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    attempts: int = 5,
    pause: float = 2.0,
    timeout: float = 60.0,
) -> dict[str, Any]:
    """Download a file.

    What has arrived is kept in ``.part-<name>`` beside ``path``, and a later call goes on from there if the server
    says that the file is still the same. Only a file of the announced size and, where known, the right digests is
    moved to ``path``.

    Parameters
    ----------
    url : str
        https (http only from this machine, for tests).
    path : str or Path
    sha256 : str, optional
        What the file must have.
    attempts : int
        Tries in a row without a byte of progress before giving up.
    pause, timeout : float
        Seconds between tries, and to wait for the server.

    Returns
    -------
    dict
        ``url``, ``bytes``, ``sha256``, ``etag``: for provenance.

    Raises
    ------
    UserError
        If the address is not https, the file does not exist there, the connection fails for good, or size or digest
        are not what was announced (what arrived is deleted then).
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOCAL:
        raise UserError(f"{url} is not an https address; nothing else is downloaded")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, said = path.parent / f".part-{path.name}", path.parent / f".part-{path.name}.json"
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            announced = _receive(url, part, said, timeout)
            break
        except urllib.error.HTTPError as error:
            if error.code not in (408, 425, 429) and error.code < 500:
                raise UserError(
                    f"{url} cannot be downloaded (HTTP {error.code}); check the name"
                ) from error
            reason = f"HTTP {error.code}"
        except (OSError, urllib.error.URLError, EOFError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > before else failures + 1
        if failures >= attempts:
            raise UserError(
                f"{url} cannot be downloaded ({reason}); check the network and run the same command again: "
                f"the {now} bytes that have arrived are kept"
            )
        logger.info("%s after %d bytes: trying again", reason, now)
        time.sleep(pause)
    digest = _verify(part, said, announced, sha256, url)
    part.replace(path)
    said.unlink(missing_ok=True)
    return {"url": url, "bytes": announced["bytes"], "sha256": digest, "etag": announced["etag"]}


def write_checksum(path: str | Path, checksum: str | Path, record: dict[str, Any]) -> None:
    """Write the SHA-256 of a downloaded file as ``sha256sum -c`` reads it, with where it comes from beside it."""
    with atomic_path(checksum) as temporary:
        temporary.write_text(f"{record['sha256']}  {path}\n")
    write_text(f"{path}.source.json", json.dumps(record, indent=1) + "\n")


def _receive(url: str, part: Path, said: Path, timeout: float) -> dict[str, Any]:
    """Append what is missing to the part file; return what the server says of the whole file."""
    have = part.stat().st_size if part.exists() and said.exists() else 0
    known = read_json(said) if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "mechatlas"})
    if have and known.get("etag"):
        request.add_header("Range", f"bytes={have}-")
        # The rest of the same file, or all of it if it has changed.
        request.add_header("If-Range", known["etag"])
    else:
        have = 0
    try:
        response = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310 (https, checked)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have == known.get("bytes"):
            return known
        if error.code == 416:
            part.unlink()
        raise
    with response:
        headers = response.headers
        if response.status == 206:
            total = int(headers["Content-Range"].rpartition("/")[2])
        else:
            have, total = 0, int(headers.get("Content-Length") or -1)
        announced = {
            "bytes": total,
            "etag": headers.get("ETag"),
            "md5": headers.get("Content-MD5") if response.status == 200 else known.get("md5"),
        }
        write_text(said, json.dumps(announced))
        left = -(-(total - have) // MEBIBYTE) if total >= 0 else None
        with open(part, "ab" if have else "wb", buffering=0) as handle:
            for _ in progress(_copy(response, handle), total=left, desc=part.name[6:], unit="MiB"):
                pass
    size = part.stat().st_size
    if total >= 0 and size < total:
        raise EOFError(f"connection closed after {size} of {total} bytes")
    return announced | {"bytes": size if total < 0 else total}


def _copy(response: Any, handle: IO[bytes]) -> Iterator[None]:
    """Write what arrives as it arrives; yield after each MiB that has begun."""
    done = 0
    while block := response.read1(BLOCK):
        handle.write(block)
        for _ in range(-(-(done + len(block)) // MEBIBYTE) - -(-done // MEBIBYTE)):
            yield
        done += len(block)


def _verify(part: Path, said: Path, announced: dict[str, Any], sha256: str | None, url: str) -> str:
    digest, problem = file_digest(part), None
    if part.stat().st_size != announced["bytes"]:
        problem = f"{part.stat().st_size} bytes arrived where {announced['bytes']} were announced"
    elif sha256 is not None and digest != sha256:
        problem = f"its SHA-256 is {digest}, not {sha256}"
    elif announced.get("md5"):
        with open(part, "rb") as handle:
            md5 = hashlib.file_digest(handle, "md5").digest()
        if base64.b64encode(md5).decode() != announced["md5"]:
            problem = "its MD5 is not the one that the server announced"
    if problem:
        part.unlink()
        said.unlink(missing_ok=True)
        raise UserError(f"{url}: {problem}; what arrived was deleted, run the same command again")
    return digest
