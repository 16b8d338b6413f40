"""Download of corpora from the Hugging Face hub."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from mechatlas.io import UserError, atomic_path, progress, provenance
from mechatlas.io.digest import file_digest
from mechatlas.io.tables import table_writer

logger = logging.getLogger("mechatlas")

WIKITEXT = "Salesforce/wikitext"
ROWS_PER_WRITE = 10_000


def fetch_wikitext(
    path: str | Path, checksum: str | Path, *, source: str, config: str, split: str, revision: str
) -> None:
    """Download one split of WikiText at a commit of its repository, whole or not at all.

    Parameters
    ----------
    path : str or Path
        Parquet file to write, with the column ``text``, one row per line of the corpus.
    checksum : str or Path
        File to write with its SHA-256, as ``sha256sum -c`` reads it.
    source : str
        Key of the source, for messages and provenance.
    config, split, revision : str
        Such as wikitext-103-raw-v1, train, and the 40 digits of a commit.

    Raises
    ------
    UserError
        If the hub cannot be reached, or does not hold what was asked for.
    """
    import pyarrow as pa

    logger.info("downloading %s, %s, %s at %s", WIKITEXT, config, split, revision)
    # A cache of its own: the common one might answer, when there is no network, with another revision.
    with tempfile.TemporaryDirectory(dir=_parent(path), prefix=".tmp-datasets-") as cache:
        rows = _load(source, config, split, revision, cache)
        schema = pa.schema([("text", pa.string())])
        facts = provenance(
            source=source, dataset=WIKITEXT, config=config, split=split, revision=revision
        )
        with table_writer(path, schema, facts) as write:
            batches = rows.with_format("arrow").iter(ROWS_PER_WRITE)
            for batch in progress(batches, desc="write", unit="batches"):
                write(batch.select(["text"]))
    with atomic_path(checksum) as temporary:
        temporary.write_text(f"{file_digest(path)}  {path}\n")


def _load(source: str, config: str, split: str, revision: str, cache: str) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            WIKITEXT, config, split=split, revision=revision, cache_dir=cache
        )
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"sources.{source}: {WIKITEXT} ({config}, {split}) at {revision} cannot be downloaded "
            f"({_first_line(error)}); check revision and network, or name local copies under sources.{source}.files"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _parent(path: str | Path) -> Path:
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder
