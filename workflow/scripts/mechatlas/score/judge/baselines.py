"""What can be predicted at test items without a language model: by a program, and by looking tokens up.

The look-up is what a score has to beat before an explanation can claim to say more than which tokens occur. It is
fitted on train documents only and backs off in steps: the mean over a pair of tokens is drawn towards the mean over
the key's token, and that towards the mean over everything, by `PSEUDO` made-up observations each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from mechatlas.explain.vocabulary import TokenView, Vocabulary

if TYPE_CHECKING:  # pages without a judge import this and need no programs
    from mechatlas.explain.latents.programs import LatentProgram
    from mechatlas.explain.programs import Program

PSEUDO = 5.0
#: Windows predicted at once are bounded by this many attention entries (float32).
ENTRIES_PER_BATCH = 2**20
#: The scorer whose items are queries rather than pairs.
BY_QUERY = "detection"


class Baseline(Protocol):
    """Anything that predicts activity at items."""

    def predict(self, scorer: str, items: pd.DataFrame) -> np.ndarray:
        """Return predicted activity: float [n], for rows with window, query and key."""
        ...


class ProgramBaseline:
    """The attention that a program predicts: at the pair, or (detection) the largest of the row off BOS.

    Parameters
    ----------
    program : Program
    tokens : callable
        Maps window numbers int [n] to their tokens int [n, T].
    vocabulary : Vocabulary
    """

    def __init__(
        self, program: Program, tokens: Callable[[np.ndarray], np.ndarray], vocabulary: Vocabulary
    ) -> None:
        self.program = program
        self.tokens = tokens
        self.vocabulary = vocabulary

    def predict(self, scorer: str, items: pd.DataFrame) -> np.ndarray:
        """Return predicted attention of items."""
        out = np.full(len(items), np.nan)
        window, query = items["window"].to_numpy(), items["query"].to_numpy()
        key = items["key"].to_numpy()
        numbers = np.unique(window)
        length = self.tokens(numbers[:1]).shape[1] if len(numbers) else 1
        size = max(1, ENTRIES_PER_BATCH // length**2)
        for batch in (numbers[i : i + size] for i in range(0, len(numbers), size)):
            pattern = self.program.predict(TokenView(self.tokens(batch), self.vocabulary))
            inside = np.flatnonzero(np.isin(window, batch))
            row = np.searchsorted(batch, window[inside])
            if scorer == BY_QUERY:
                out[inside] = pattern[row, query[inside], 1:].max(-1)
            else:
                out[inside] = pattern[row, query[inside], key[inside]]
        return out


class PairCodes:
    """The pairs of tokens in train windows; one serves all heads.

    Parameters
    ----------
    tokens : int [W, T]
    """

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.size = int(tokens.max()) + 1
        causal = np.tril(np.ones((tokens.shape[1],) * 2, dtype=bool))
        causal[:, 0] = False
        self.query, self.key = np.nonzero(causal)
        self.key_tokens = self.tokens[:, self.key].ravel()
        codes = self.tokens[:, self.query].ravel() * self.size + self.key_tokens
        self.codes, place = np.unique(codes, return_inverse=True)
        self.place = place.ravel()


class PairLookup:
    """Mean train attention of a head by (query token, key token); in detection by the query's token.

    Parameters
    ----------
    pairs : PairCodes
        Of the train windows.
    pattern : float32 [W, T, T]
        The head's patterns on them.
    test_tokens : callable
        Maps window numbers int [n] to their tokens int [n, T], for prediction.
    """

    def __init__(
        self,
        pairs: PairCodes,
        pattern: np.ndarray,
        test_tokens: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.test_tokens = test_tokens
        self.size, self.codes = pairs.size, pairs.codes
        values = pattern[:, pairs.query, pairs.key].ravel().astype(np.float64)
        self.mean = float(values.mean())
        self.by_key = _shrunk(pairs.key_tokens, values, np.full(self.size, self.mean))
        self.by_pair = _shrunk(pairs.place, values, self.by_key[self.codes % self.size])
        strongest = pattern[:, 1:, 1:].max(-1).ravel().astype(np.float64)
        self.row_mean = float(strongest.mean())
        start = np.full(self.size, self.row_mean)
        self.by_query = _shrunk(pairs.tokens[:, 1:].ravel(), strongest, start)

    def predict(self, scorer: str, items: pd.DataFrame) -> np.ndarray:
        """Return the look-up's attention of items."""
        windows, row = np.unique(items["window"].to_numpy(), return_inverse=True)
        tokens = self.test_tokens(windows)
        query = tokens[row, items["query"].to_numpy()]
        if scorer == BY_QUERY:
            return self._known(self.by_query, query, self.row_mean)
        return self.pairs(query, tokens[row, items["key"].to_numpy()])

    def pairs(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Return the look-up's attention of pairs of tokens: float64 [n]."""
        codes = query.astype(np.int64) * self.size + key
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        seen = (self.codes[place] == codes) & (query < self.size) & (key < self.size)
        return np.where(seen, self.by_pair[place], self._known(self.by_key, key, self.mean))

    def _known(self, table: np.ndarray, tokens: np.ndarray, otherwise: float) -> np.ndarray:
        known = tokens < self.size
        return np.where(known, table[np.where(known, tokens, 0)], otherwise)


class LatentProgramBaseline:
    """The activation that a latent's program predicts, relative to a largest activation.

    Parameters
    ----------
    program : LatentProgram
    tokens, vocabulary
        See `ProgramBaseline`.
    top : float
        The latent's largest train activation.
    """

    def __init__(
        self,
        program: LatentProgram,
        tokens: Callable[[np.ndarray], np.ndarray],
        vocabulary: Vocabulary,
        top: float,
    ) -> None:
        self.program, self.tokens, self.vocabulary = program, tokens, vocabulary
        self.top = max(top, 1e-12)

    def predict(self, scorer: str, items: pd.DataFrame) -> np.ndarray:
        """Return predicted activation of items."""
        windows, row = np.unique(items["window"].to_numpy(), return_inverse=True)
        values = self.program.predict(TokenView(self.tokens(windows), self.vocabulary))
        return values[row, items["query"].to_numpy()] / self.top


class TokenLookup:
    """Mean train activation of a latent by token.

    Parameters
    ----------
    tokens : int [W, T]
    activations : float [W, T]
    test_tokens : callable
        See `PairLookup`.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        activations: np.ndarray,
        test_tokens: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.test_tokens = test_tokens
        values = activations[:, 1:].ravel().astype(np.float64)
        self.mean = float(values.mean())
        start = np.full(int(tokens.max()) + 1, self.mean)
        self.by_token = _shrunk(tokens[:, 1:].ravel().astype(np.int64), values, start)

    def predict(self, scorer: str, items: pd.DataFrame) -> np.ndarray:
        """Return the look-up's activation of items."""
        windows, row = np.unique(items["window"].to_numpy(), return_inverse=True)
        tokens = self.test_tokens(windows)[row, items["query"].to_numpy()]
        known = tokens < len(self.by_token)
        return np.where(known, self.by_token[np.where(known, tokens, 0)], self.mean)


def _shrunk(codes: np.ndarray, values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Mean of values by code, drawn towards ``start`` by `PSEUDO` observations."""
    sums = np.bincount(codes, values, minlength=len(start))
    counts = np.bincount(codes, minlength=len(start))
    return (sums + PSEUDO * start) / (counts + PSEUDO)
