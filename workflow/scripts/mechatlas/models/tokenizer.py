"""Tokenizers of model folders behind one small interface (no torch here)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mechatlas.io import UserError, read_json


class Tokenizer:
    """Text to token ids and back, without special tokens.

    Attributes
    ----------
    bos_id : int
        The token that starts every window.
    vocab_size : int
    hash : str
        SHA-256 of the tokenizer's serialised form and of ``bos_id``.
    """

    def __init__(self, backend: Any, bos_id: int):
        self._backend = backend
        self.bos_id = bos_id
        self.vocab_size = backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with no special token added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Return each token's own text; a part of a multi-byte character shows as U+FFFD."""
        return [self._text(int(i)) for i in ids]

    def id_of(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary given as stored there, or None."""
        return self._backend.token_to_id(token)

    @cached_property
    def hash(self) -> str:
        text = f"{self.bos_id}\n{self._backend.to_str()}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {}

    def _text(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._piece(token)
        return self._pieces[token]

    def _piece(self, token: int) -> str:
        # SentencePiece-style decoders drop a leading space at the start of a text, so a lone token would
        # lose it; decode it after itself and take what it adds.
        alone, pair = self.decode([token]), self.decode([token, token])
        return pair[len(alone) :] if pair.startswith(alone) else alone


def load_tokenizer(folder: str | Path, bos: str | None = None) -> Tokenizer:
    """Load the tokenizer of a Hugging Face model folder.

    Parameters
    ----------
    folder : str or Path
        With ``tokenizer.json``, or any files that transformers' AutoTokenizer converts to it.
    bos : str, optional
        The token that starts windows. By default the tokenizer's BOS token, else its EOS token.

    Raises
    ------
    UserError
        If there is no tokenizer, it is damaged, or the BOS token is unknown.
    """
    folder = Path(folder)
    backend = _backend(folder)
    token = bos or _special(folder, "bos_token") or _special(folder, "eos_token")
    if token is None:
        raise UserError(
            f"{folder}: the tokenizer names neither a bos_token nor an eos_token; "
            "set bos: TOKEN in the model's config entry"
        )
    bos_id = backend.token_to_id(token)
    if bos_id is None:
        raise UserError(
            f"{folder}: the BOS token {token!r} is not in the vocabulary; "
            "set bos: in the model's config entry to a token that is"
        )
    return Tokenizer(backend, bos_id)


def _backend(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer as Backend

        # The library raises a bare Exception on broken files, so parse the JSON first and check its core.
        raw = read_json(path)
        if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
            raise UserError(f"{path} has no tokenizer model; restore or download it again")
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
        backend.no_truncation()
        backend.no_padding()
        return backend
    return _converted(folder)


def _converted(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; correct the model's path in the config")
    try:
        backend = AutoTokenizer.from_pretrained(folder, local_files_only=True)._tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise UserError(
            f"{folder} holds no tokenizer.json and transformers cannot convert what it holds; "
            "save the tokenizer again with save_pretrained"
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special(folder: Path, name: str) -> str | None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / file
        if path.is_file():
            value = read_json(path).get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if value:
                return value
    return None
