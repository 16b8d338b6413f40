"""Events of a latent: the tokens that explaining and scoring look at, chosen from all its activations.

A quantile is a part of the latent's activations, sorted by strength, that carries the same share of their sum; the
last one holds the few strongest. A hard negative is a token on which a latent like this one is active and this one is
not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechatlas.capture.draws import hash_of
from mechatlas.capture.reservoirs import rank_within
from mechatlas.corpus.windows import SPLITS, Windows
from mechatlas.dictionaries.code_files import Codes
from mechatlas.dictionaries.latent_statistics import counted_tokens
from mechatlas.io import rng_for, seed_for

NEGATIVES = ("negative_similar", "negative_coactive")
ROLES = ("top", "quantile", "random", *NEGATIVES)


@dataclass(frozen=True)
class EventSettings:
    """How many events of each kind (config: latents, capture)."""

    topk: int
    max_per_document: int
    quantiles: int
    events_per_quantile: int
    random_events: int
    negatives: int
    seed: int


def random_tokens(corpus: Windows, count: int, seed: int) -> np.ndarray:
    """Draw ``count`` tokens of each split uniformly and without repetition, BOS left out: int64 [n, 2], sorted.

    Rows are (window, position). They do not depend on any latent. Where a split holds fewer, all are taken.
    """
    length = corpus.tokens.shape[1] - 1
    rows = []
    for split, total in enumerate(counted_tokens(corpus)):
        windows = np.flatnonzero(corpus.splits == split)
        rng = rng_for(seed, "random tokens", split)
        chosen = np.sort(rng.choice(total, min(count, total), replace=False)) if total else []
        row, at = np.divmod(np.asarray(chosen, np.int64), max(length, 1))
        rows.append(np.stack([windows[row], at + 1], axis=1))
    found = np.concatenate(rows)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def latent_events(
    codes: Codes,
    corpus: Windows,
    random: np.ndarray,
    neighbours: Mapping[str, Sequence[int]],
    read: Callable[[int], Codes],
    settings: EventSettings,
) -> Any:
    """Choose the events of one latent.

    Parameters
    ----------
    codes : Codes
        Of this latent alone.
    corpus : Windows
    random : int [n, 2]
        `random_tokens`.
    neighbours : mapping
        Role of a negative -> latents, nearest first.
    read : callable
        Gives the codes of a neighbour.
    settings : EventSettings

    Returns
    -------
    data frame
        ``window``, ``position``, ``activation``, ``role``, ``quantile`` (-1 where it means nothing), ``weight``
        (number of tokens of the split that a random event, or of active tokens that a quantile event, stands for),
        ``neighbour`` (of a hard negative, else -1).
    """
    import pandas as pd

    frames = [_top(codes, corpus, settings), *_quantiles(codes, corpus, settings)]
    frames.append(_random(codes, corpus, random))
    for role, latents in neighbours.items():
        frames += _negatives(codes, corpus, role, latents, read, settings)
    frame = pd.concat(frames, ignore_index=True)
    split = corpus.splits[frame["window"].to_numpy(np.int64)]
    role = frame["role"].map({name: i for i, name in enumerate(ROLES)})
    order = np.lexsort((frame["position"], frame["window"], -frame["activation"], split, role))
    return frame.iloc[order].reset_index(drop=True)


def activation_at(
    codes: Codes, window: np.ndarray, position: np.ndarray, length: int
) -> np.ndarray:
    """Return a single latent's activation at some tokens, 0 where it is not active: float32 [n]."""
    mine = codes.window.astype(np.int64) * length + codes.position
    asked = np.asarray(window, np.int64) * length + position
    if not len(mine):
        return np.zeros(len(asked), np.float32)
    place = np.minimum(np.searchsorted(mine, asked), len(mine) - 1)
    return np.where(mine[place] == asked, codes.value[place], 0).astype(np.float32)


def _frame(codes: Codes, chosen: np.ndarray, role: str, **columns: Any) -> Any:
    import pandas as pd

    fields = {"window": codes.window[chosen], "position": codes.position[chosen]}
    given = {"quantile": -1, "weight": np.nan, "neighbour": -1, **columns}
    return pd.DataFrame({**fields, "activation": codes.value[chosen], "role": role, **given})


def _strongest(codes: Codes, corpus: Windows, most: int, per_document: int) -> np.ndarray:
    """Return the places of the strongest activations of each split, few from one document."""
    split = corpus.splits[codes.window]
    order = np.lexsort((codes.position, codes.window, -codes.value, split))
    document = split[order] * (corpus.doc_codes.max(initial=0) + 1)
    document = document + corpus.doc_codes[codes.window[order]]
    order = order[rank_within(document) < per_document]
    return order[rank_within(split[order]) < most]


def _top(codes: Codes, corpus: Windows, settings: EventSettings) -> Any:
    chosen = _strongest(codes, corpus, settings.topk, settings.max_per_document)
    return _frame(codes, chosen, "top")


def _quantiles(codes: Codes, corpus: Windows, settings: EventSettings) -> list[Any]:
    seed, frames = seed_for(settings.seed, "latent quantiles"), []
    for split in range(len(SPLITS)):
        mine = np.flatnonzero(corpus.splits[codes.window] == split)
        mine = mine[np.lexsort((codes.position[mine], codes.window[mine], codes.value[mine]))]
        mass = codes.value[mine].astype(np.float64)
        if not len(mine):
            continue
        middle = (np.cumsum(mass) - mass / 2) / mass.sum()
        quantile = np.minimum(
            (middle * settings.quantiles).astype(np.int64), settings.quantiles - 1
        )
        number = hash_of(seed, codes.first, codes.window[mine], codes.position[mine])
        order = np.lexsort((number, quantile))
        kept = np.sort(order[rank_within(quantile[order]) < settings.events_per_quantile])
        members = np.bincount(quantile, minlength=settings.quantiles)
        drawn = np.maximum(np.minimum(members, settings.events_per_quantile), 1)
        weight = (members / drawn)[quantile[kept]]
        frames.append(_frame(codes, mine[kept], "quantile", quantile=quantile[kept], weight=weight))
    return frames


def _random(codes: Codes, corpus: Windows, random: np.ndarray) -> Any:
    import pandas as pd

    window, position = random.T
    split = corpus.splits[window]
    drawn = np.bincount(split, minlength=len(SPLITS))
    return pd.DataFrame(
        {
            **{"window": window, "position": position},
            "activation": activation_at(codes, window, position, corpus.tokens.shape[1]),
            **{"role": "random", "quantile": -1, "neighbour": -1},
            "weight": (counted_tokens(corpus) / np.maximum(drawn, 1))[split],
        }
    )


def _negatives(
    codes: Codes,
    corpus: Windows,
    role: str,
    latents: Sequence[int],
    read: Callable[[int], Codes],
    settings: EventSettings,
) -> list[Any]:
    """Return tokens on which each neighbour is strongly active and this latent is not, the same number of each."""
    frames = []
    share = -(-settings.negatives // max(len(latents), 1))
    for latent in latents:
        theirs = read(latent)
        own = activation_at(codes, theirs.window, theirs.position, corpus.tokens.shape[1])
        quiet = np.flatnonzero(own == 0)
        other = Codes(
            latent,
            np.array([0, len(quiet)]),
            theirs.window[quiet],
            theirs.position[quiet],
            theirs.value[quiet],
        )
        chosen = _strongest(other, corpus, share, settings.max_per_document)
        frame = _frame(other, chosen, role, neighbour=latent)
        frame["activation"] = np.float32(0)
        frames.append(frame)
    return frames
