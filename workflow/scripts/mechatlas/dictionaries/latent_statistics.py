"""How often, how strongly and on which tokens each latent of a dictionary is active, by split."""

from __future__ import annotations

from typing import Any

import numpy as np

from mechatlas.corpus.windows import SPLITS, Windows
from mechatlas.dictionaries.code_files import Codes

#: Share of a latent's total activation on one token from which it counts as a single-token latent.
SINGLE_TOKEN = 0.95


def counted_tokens(corpus: Windows) -> np.ndarray:
    """Return the number of tokens of each split that count, BOS left out: int64 [splits]."""
    windows = np.bincount(corpus.splits, minlength=len(SPLITS))
    return windows * (corpus.tokens.shape[1] - 1)


def latent_statistics(
    codes: Codes, corpus: Windows, layer: int, decoder_norms: np.ndarray, dense_rate: float
) -> Any:
    """Return statistics of the latents of ``codes``, one row per latent and split.

    Parameters
    ----------
    codes : Codes
    corpus : Windows
    layer : int
    decoder_norms : float [n_latents]
        Of all latents of the layer.
    dense_rate : float
        Firing rate from which a latent counts as dense.

    Returns
    -------
    data frame
        ``layer``, ``latent``, ``split``, ``tokens`` (the denominator: tokens of the split without BOS), ``fires``
        (tokens on which the latent is active), ``firing_rate``, ``documents`` (with such tokens),
        ``mean_activation`` (over these tokens), ``max_activation``, ``importance`` (mean over all tokens of activation
        times decoder norm: how much the latent writes), ``top_token`` (on which most of its activation falls; -1 for a
        dead latent), ``top_token_share`` (of its total activation), and the flags ``dead``, ``dense``,
        ``single_token``.
    """
    import pandas as pd

    size, splits = len(codes), len(SPLITS)
    group = codes.latents * splits + corpus.splits[codes.window]
    value = codes.value.astype(np.float64)
    fires = np.bincount(group, minlength=size * splits)
    total = np.bincount(group, value, minlength=size * splits)
    largest = np.zeros(size * splits)
    np.maximum.at(largest, group, value)
    token, mass = _top_tokens(group, corpus.tokens[codes.window, codes.position], value, len(fires))
    latent, split = np.divmod(np.arange(size * splits), splits)
    tokens = counted_tokens(corpus)[split]
    share = np.divide(mass, total, out=np.zeros_like(total), where=total > 0)
    rate = fires / np.maximum(tokens, 1)
    frame = pd.DataFrame(
        {
            **{"layer": layer, "latent": codes.first + latent, "split": np.array(SPLITS)[split]},
            **{"tokens": tokens, "fires": fires, "firing_rate": rate},
            "documents": _documents(group, corpus.doc_codes[codes.window], len(fires)),
            "mean_activation": total / np.maximum(fires, 1),
            "max_activation": largest,
            "importance": total * decoder_norms[codes.first + latent] / np.maximum(tokens, 1),
            **{"top_token": token, "top_token_share": share},
            **{
                "dead": fires == 0,
                "dense": rate >= dense_rate,
                "single_token": share >= SINGLE_TOKEN,
            },
        }
    )
    return frame[frame["tokens"] > 0].reset_index(drop=True)


def _top_tokens(
    group: np.ndarray, token: np.ndarray, value: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each group the token with the largest sum of values, and that sum; of equals the first token."""
    size = int(token.max(initial=0)) + 1
    codes, place = np.unique(group * size + token, return_inverse=True)
    mass = np.bincount(place, value)
    owner = codes // size
    order = np.lexsort((codes, -mass, owner))
    first = order[np.r_[True, owner[order][1:] != owner[order][:-1]]] if len(order) else order
    top, most = np.full(groups, -1), np.zeros(groups)
    top[owner[first]], most[owner[first]] = codes[first] % size, mass[first]
    return top, most


def _documents(group: np.ndarray, document: np.ndarray, groups: int) -> np.ndarray:
    size = int(document.max(initial=0)) + 1
    return np.bincount(np.unique(group * size + document) // size, minlength=groups)


def latents_to_explain(statistics: Any, layer: int, most: int) -> list[int]:
    """Return the latents of a layer with the largest importance on train windows, most important first.

    Dead latents are never among them; of equals the first goes before.
    """
    train = statistics[(statistics["layer"] == layer) & (statistics["split"] == "train")]
    train = train[~train["dead"]].sort_values(["importance", "latent"], ascending=[False, True])
    return train["latent"].head(most).tolist()
