"""Download of model folders from the Hugging Face hub."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from mechatlas.io import UserError, atomic_path

logger = logging.getLogger("mechatlas")

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*", "merges.txt",
         "special_tokens_map.json")  # fmt: skip


def fetch_model(hub: str, revision: str, folder: str | Path) -> None:
    """Download config, tokenizer and safetensors weights of a hub repository at one commit.

    Raises
    ------
    UserError
        If the revision is not a full commit hash, the hub cannot be reached, or the repository or revision does not
        exist, is private, or holds no safetensors weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    check_revision(hub, revision)
    logger.info("downloading %s at %s", hub, revision)
    with atomic_path(folder, folder=True) as temporary:
        try:
            snapshot_download(
                hub, revision=revision, local_dir=temporary, allow_patterns=list(FILES)
            )
        except HFValidationError as error:
            raise UserError(
                f"models: hub {hub!r} is not a repository name like owner/name"
            ) from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"models: {hub} at {revision} cannot be downloaded ({str(error).splitlines()[0]}); check name, "
                "revision and network, or give the model as path: FOLDER"
            ) from error
        shutil.rmtree(temporary / ".cache", ignore_errors=True)
        if not list(temporary.glob("*.safetensors")):
            raise UserError(
                f"models: {hub} at {revision} holds no safetensors weights; choose another revision"
            )


def check_revision(hub: str, revision: str) -> None:
    """Raise `UserError` if a revision is not a full commit hash."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"models: revision {revision!r} of {hub} is not a full commit hash; copy the 40 digits from the "
            "repository's history, so that the model cannot change"
        )
