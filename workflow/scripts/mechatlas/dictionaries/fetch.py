"""Download of published dictionaries."""

from __future__ import annotations

import logging
from pathlib import Path

from mechatlas.dictionaries.published import BASE, VERSIONS, address
from mechatlas.io.download import download, write_checksum

logger = logging.getLogger("mechatlas")


def fetch_openai(
    path: str | Path,
    checksum: str | Path,
    *,
    site: str,
    version: str,
    layer: int,
    sha256: str | None = None,
    base: str = BASE,
) -> None:
    """Download one of OpenAI's autoencoders, whole or not at all (see `mechatlas.io.download.download`).

    Parameters
    ----------
    path : str or Path
        The .pt file to write. ``<path>.source.json`` beside it says address, size and digest.
    checksum : str or Path
        File to write with its SHA-256, as ``sha256sum -c`` reads it.
    site, version, layer
        See `mechatlas.dictionaries.formats.openai.VERSIONS`.
    sha256 : str, optional
        What the file must have, if that is known from before.
    base : str
        Address of the folder that holds all of them.

    Raises
    ------
    UserError
        If there is no such autoencoder or it cannot be downloaded.
    """
    url = address(site, version, layer, base)
    logger.info("downloading %s", url)
    record = download(url, path, sha256=sha256)
    record |= {"site": site, "version": version, "layer": layer}
    record["normalisation"] = VERSIONS[version]["normalised"]
    write_checksum(path, checksum, record)
