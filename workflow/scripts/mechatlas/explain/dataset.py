"""What explaining and scoring read of one model and source: windows, vocabulary, patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.capture.patterns import read_patterns
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.io import UserError, read_provenance, read_table
from mechatlas.models.config import read_config
from mechatlas.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Sample:
    """Windows and the attention patterns of one layer on them (float32 [W, H, T, T])."""

    view: TokenView
    patterns: np.ndarray


class SourceData:
    """Windows and vocabulary of one model and source.

    Parameters
    ----------
    windows : path
        windows.parquet.
    model : path
        Model folder; its configuration and tokenizer are read, its weights are not.
    bos : str, optional
        BOS token, as in the config.
    """

    def __init__(self, windows: str | Path, model: str | Path, bos: str | None) -> None:
        self.table = read_table(windows)
        self.config = read_config(model)
        self.tokenizer = tokenizer = load_tokenizer(model, bos)
        self.vocabulary = Vocabulary(
            tokenizer.strings(range(tokenizer.vocab_size)), tokenizer.bos_id
        )
        self.facts: dict[str, Any] = {
            "windows": read_provenance(windows),
            "tokenizer": tokenizer.hash,
        }

    def tokens(self, windows: np.ndarray) -> np.ndarray:
        """Tokens of windows by their numbers: int64 [n, T]."""
        rows = self._place.loc[windows].to_numpy()
        return np.stack(self.table["tokens"].iloc[rows].to_list()).astype(np.int64)

    @cached_property
    def _place(self) -> pd.Series:
        return pd.Series(np.arange(len(self.table)), index=self.table["window"].to_numpy())


class HeadData(SourceData):
    """Windows and captured patterns of one model and source.

    Parameters
    ----------
    windows, model, bos
        See `SourceData`.
    chunks : sequence of folders
        The capture chunks.
    """

    def __init__(
        self, windows: str | Path, chunks: Sequence[str | Path], model: str | Path, bos: str | None
    ) -> None:
        super().__init__(windows, model, bos)
        self.chunks = list(chunks)

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return self.config.n_layers

    def pattern_windows(self, split: str) -> pd.DataFrame:
        """Rows of windows.parquet whose patterns were kept, of one split.

        Raises
        ------
        UserError
            If there are none.
        """
        table = self.table[self.table["pattern_sample"] & (self.table["split"] == split)]
        if table.empty:
            raise UserError(
                f"no attention patterns were kept for the {split} split; "
                "raise sampling.windows or sampling.pattern_windows"
            )
        return table

    def sample(self, split: str, layer: int) -> Sample:
        """Token view and patterns of the pattern sample of one split and layer."""
        windows = self.pattern_windows(split)
        view = self._view(split)
        return Sample(view, read_patterns(self.chunks, layer, windows["window"].to_numpy()))

    def _view(self, split: str) -> TokenView:
        # One view per split: what it has computed about the tokens serves every layer.
        if split not in self._views:
            tokens = np.stack(self.pattern_windows(split)["tokens"].to_list())
            self._views[split] = TokenView(tokens, self.vocabulary)
        return self._views[split]

    @cached_property
    def _views(self) -> dict[str, TokenView]:
        return {}
