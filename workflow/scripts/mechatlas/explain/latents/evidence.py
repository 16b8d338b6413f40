"""Evidence about latents: what a language model is shown, and by what explanations are compared.

Evidence comes from train documents only, what explanations are compared by from validation documents only; both are
asserted document by document against windows.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.cases import Case
from mechatlas.explain.evidence import assert_split, stratified
from mechatlas.explain.excerpts import LATENT, Example, Excerpts
from mechatlas.explain.latents.data import Latent, LatentData
from mechatlas.io import read_table, rng_for

NEGATIVES = ("negative_similar", "negative_coactive", "random")
#: Names under which `stratified` knows the columns of events.
AS_HEADS = {"position": "query", "neighbour": "key", "activation": "write_norm"}


@dataclass(frozen=True)
class LatentEvidence:
    """What a language model is shown of a latent.

    Attributes
    ----------
    latent : Latent
    active : tuple of Example
        Train events, strongest first; strengths are shares of the largest train activation.
    inactive : tuple of Example
        Tokens on which latents like this one are active, or any, and this one is not.
    rate : float
        Share of train tokens on which it is active.
    top : float
        Largest train activation.
    """

    latent: Latent
    active: tuple[Example, ...]
    inactive: tuple[Example, ...]
    rate: float
    top: float

    @property
    def unit(self) -> str:
        """Name of the latent."""
        return self.latent.unit

    @property
    def key(self) -> tuple[int, int]:
        """Layer and number."""
        return (self.latent.layer, self.latent.latent)

    @property
    def named(self) -> dict[str, Any]:
        """Fields of a record that say which latent it is about."""
        return self.latent.named


class LatentCases:
    """The latents that a language model is asked about, made as they are asked for.

    Parameters
    ----------
    data : LatentData
    events : path
        raw_events.parquet (test events are not read).
    openai : mapping
        ``explain.openai`` of a completed configuration.
    seed : int
    """

    def __init__(
        self, data: LatentData, events: str | Path, openai: Mapping[str, Any], seed: int
    ) -> None:
        self.data, self.openai, self.seed = data, openai, seed
        self.excerpts = Excerpts(data.tokenizer, openai["context_tokens"])
        known = read_table(events, filters=[("split", "in", ["train", "validation"])])
        self._empty = known.head(0)
        self._groups = dict(iter(known.groupby(["layer", "latent", "split"])))
        self._split_of = dict(zip(data.table["doc"].astype(str), data.table["split"], strict=True))

    def __len__(self) -> int:
        return len(self.data.latents)

    def __iter__(self) -> Iterator[Case]:
        compares = self.openai["candidates"] > 1 or self.openai["revise"]
        for latent in self.data.latents:
            train = self.data.values(latent, "train")
            top, rate = float(train.max()), float((train[:, 1:] > 0).mean())
            active, inactive = self._shown(latent, top)
            pairs: tuple[list[Example], list[Example]] = ([], [])
            if compares:
                pairs = self._comparison(latent, top)
            yield Case(LatentEvidence(latent, active, inactive, rate, top), *pairs)

    def _shown(self, latent: Latent, top: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        events = self._events(latent, "train")
        rng = rng_for(self.seed, "latent evidence", latent.unit)
        chosen = stratified(events.rename(columns=AS_HEADS), self.openai["examples"], rng).index
        active = events.loc[chosen].sort_values(
            ["activation", "window", "position"], ascending=[False, True, True]
        )
        inactive = quiet_events(events, self.openai["negatives"])
        return (
            self._examples(active, True, "train", top),
            self._examples(inactive, False, "train", top),
        )

    def _comparison(self, latent: Latent, top: float) -> tuple[list[Example], list[Example]]:
        """Return two lists of validation tokens of different documents, half of each active."""
        events = self._events(latent, "validation")
        documents = list(dict.fromkeys(events["doc"]))
        count = self.openai["validation_items"] // 2
        parts = []
        for number in range(2):
            mine = events[events["doc"].isin(documents[number::2])]
            active = mine[mine["role"] == "top"].head(count)
            inactive = quiet_events(mine, count)
            size = min(len(active), len(inactive))
            parts.append(
                [
                    *self._examples(active.head(size), True, "validation", top),
                    *self._examples(inactive.head(size), False, "validation", top),
                ]
            )
        return parts[0], parts[1]

    def _events(self, latent: Latent, split: str) -> pd.DataFrame:
        return self._groups.get((latent.layer, latent.latent, split), self._empty)

    def _examples(
        self, rows: pd.DataFrame, label: bool, split: str, top: float
    ) -> tuple[Example, ...]:
        assert_split(rows["doc"], self._split_of, split)
        examples = []
        for number, row in enumerate(rows.itertuples()):
            tokens = self.data.tokens(np.array([row.window]))[0]
            examples.append(
                Example(
                    item=f"{'active' if label else 'inactive'}{number}",
                    pieces=self.excerpts.place(tokens, int(row.position)),
                    marks=LATENT.marks,
                    strength=float(row.activation) / max(top, 1e-12),
                    label=label,
                    doc=str(row.doc),
                    window=int(row.window),
                    place=(int(row.position),),
                    role=str(row.role),
                )
            )
        return tuple(examples)


def quiet_events(events: pd.DataFrame, count: int) -> pd.DataFrame:
    """Choose tokens on which the latent is not active: hard negatives of both kinds and random ones in turn."""
    kinds = [events[(events["role"] == role) & (events["activation"] <= 0)] for role in NEGATIVES]
    taken: dict[tuple[int, int], Any] = {}
    for depth in range(max(map(len, kinds), default=0)):
        for kind in kinds:
            if depth < len(kind) and len(taken) < count:
                row = kind.iloc[depth]
                taken.setdefault((int(row["window"]), int(row["position"])), kind.index[depth])
    return events.loc[list(taken.values())]


class LatentValidation:
    """Runs programs of latents on validation documents (see `mechatlas.explain.validation.Validation`).

    Parameters
    ----------
    data : LatentData
    """

    def __init__(self, data: LatentData) -> None:
        self.data = data
        self._latents = {(latent.layer, latent.latent): latent for latent in data.latents}

    def fit(self, key: tuple[int, int], program: Any) -> tuple[float, float]:
        """Return the correlation of a program's prediction with a latent's activations, as fit and as match."""
        from mechatlas.explain.latents.fit_rules import correlation

        true = self.data.values(self._latents[key], "validation")[:, 1:]
        found = correlation(program.predict(self.data.view("validation"))[:, 1:], true)
        return found, found

    def predict(self, program: Any, examples: list[Example]) -> list[float]:
        """Return what a program predicts at some tokens, as a share of its largest value there."""
        if not examples:
            return []
        from mechatlas.explain.vocabulary import TokenView

        windows, row = np.unique([example.window for example in examples], return_inverse=True)
        view = TokenView(self.data.tokens(windows), self.data.vocabulary)
        place = np.array([example.place[0] for example in examples])
        values = program.predict(view)
        return (values[row, place] / max(float(values.max()), 1e-12)).tolist()
