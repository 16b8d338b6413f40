"""Evidence: the events of a head that a language model is shown, and the pairs by which explanations are compared.

Evidence comes from train documents only, what explanations are compared by from validation documents only; both are
asserted document by document against windows.parquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.excerpts import HEAD, Example, Excerpts
from mechatlas.explain.records import Head
from mechatlas.io import UserError, rng_for

NEGATIVES = ("negative_same_query", "negative_same_key", "negative_same_distance")
#: Share of the evidence that are a head's strongest events; the rest is spread over the strata of strength.
TOP_SHARE = 0.25
PLACE = ["window", "query", "key"]


@dataclass(frozen=True)
class Evidence:
    """What a language model is shown of a head.

    Attributes
    ----------
    layer, head : int
    active : tuple of Example
        Train events, strongest first.
    inactive : tuple of Example
        Pairs matched to strong events, each with less than a tenth of its event's write norm.
    sink, itself : float
        Mean attention to BOS and to the query, over train windows.
    """

    layer: int
    head: int
    active: tuple[Example, ...]
    inactive: tuple[Example, ...]
    sink: float
    itself: float

    @property
    def unit(self) -> str:
        """Name of the head."""
        return f"L{self.layer}.H{self.head}"

    @property
    def key(self) -> Head:
        """Layer and number."""
        return (self.layer, self.head)

    @property
    def named(self) -> dict[str, Any]:
        """Fields of a record that say which head it is about."""
        return {"unit": self.unit, "layer": self.layer, "head": self.head}


class HeadEvents:
    """Draws examples of heads from the captured events.

    Parameters
    ----------
    data : HeadData
    events : data frame
        raw_events.parquet (test events may be left out).
    statistics : data frame
        head_stats.parquet.
    context_tokens : int
        See `Excerpts`.
    seed : int
    """

    def __init__(
        self,
        data: HeadData,
        events: pd.DataFrame,
        statistics: pd.DataFrame,
        context_tokens: int,
        seed: int,
    ) -> None:
        self.data = data
        self.excerpts = Excerpts(data.tokenizer, context_tokens)
        self.seed = seed
        self._groups: Mapping[Any, pd.DataFrame] = {
            key: group for key, group in events.groupby(["layer", "head", "split"], observed=True)
        }
        train = statistics[statistics["split"] == "train"].set_index(["layer", "head"])
        self._means = train[["attention_bos", "attention_self"]]
        self._split_of = dict(zip(data.table["doc"].astype(str), data.table["split"], strict=True))

    def evidence(self, head: Head, active: int, inactive: int) -> Evidence:
        """Return the evidence about one head: up to so many active and inactive examples."""
        events = self._of(head, "train")
        chosen = stratified(events, active, rng_for(self.seed, "evidence", *head))
        shown = chosen[chosen["role"] == "top"]
        others = matched_negatives(events, shown, inactive)
        sink, itself = self._means.loc[head] if head in self._means.index else (0.0, 0.0)
        order = chosen.sort_values(["attention", *PLACE], ascending=[False, True, True, True])
        return Evidence(
            *head,
            self._examples(order, True, "train"),
            self._examples(others, False, "train"),
            float(sink),
            float(itself),
        )

    def comparison(self, head: Head, count: int) -> tuple[list[Example], list[Example]]:
        """Return two lists of validation pairs, of different documents: to compare by, and to look for failures in.

        Each has up to ``count`` pairs, half of them strong events, half matched negatives.
        """
        events = self._of(head, "validation")
        top = _strongest(events)
        documents = list(dict.fromkeys(top["doc"]))
        parts = []
        for number in range(2):
            mine = events[events["doc"].isin(documents[number::2])]
            active = _one_per_document(_strongest(mine), count // 2)
            inactive = matched_negatives(mine, active, count // 2)
            # As many of each, so that a rating of everything as active earns nothing.
            size = min(len(active), len(inactive))
            parts.append(
                [
                    *self._examples(active.head(size), True, "validation"),
                    *self._examples(inactive.head(size), False, "validation"),
                ]
            )
        return parts[0], parts[1]

    def _of(self, head: Head, split: str) -> pd.DataFrame:
        empty = next(iter(self._groups.values())).head(0) if self._groups else pd.DataFrame()
        return self._groups.get((*head, split), empty)

    def _examples(self, rows: pd.DataFrame, label: bool, split: str) -> tuple[Example, ...]:
        assert_split(rows["doc"], self._split_of, split)
        examples = []
        for number, row in enumerate(rows.itertuples()):
            tokens = self.data.tokens(np.array([row.window]))[0]
            pieces = self.excerpts.pair(tokens, int(row.query), int(row.key))
            examples.append(
                Example(
                    item=f"{'active' if label else 'inactive'}{number}",
                    pieces=pieces,
                    marks=HEAD.marks,
                    strength=float(row.attention),
                    label=label,
                    doc=str(row.doc),
                    window=int(row.window),
                    place=(int(row.query), int(row.key)),
                    role=str(row.role),
                )
            )
        return tuple(examples)


def assert_split(documents: Iterable[Any], split_of: Mapping[str, str], split: str) -> None:
    """Make sure that documents are of one split.

    Raises
    ------
    UserError
        Naming the first that is not: an explanation would know what it is tested on.
    """
    for document in documents:
        found = split_of.get(str(document))
        if found != split:
            raise UserError(
                f"raw_events.parquet: document {document} is of the split {found} in windows.parquet, but its events "
                f"are to serve as {split}; delete raw_events.parquet and run again"
            )


def stratified(events: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Choose events spread over strengths, at most one per document while that is possible.

    Parameters
    ----------
    events : data frame
        Events of one head and split: the roles "top" and "quantile" are used.
    count : int
    rng : numpy.random.Generator

    Returns
    -------
    data frame
        At most ``count`` rows, no pair twice: a `TOP_SHARE` of the strongest, then the strata in turn, the strongest
        first.
    """
    quantile = events[events["role"] == "quantile"]
    quantile = quantile.iloc[rng.permutation(len(quantile))]
    strata = [_strongest(events)]
    strata += [quantile[quantile["quantile"] == q] for q in sorted(set(quantile["quantile"]))[::-1]]
    strata = [stratum for stratum in strata if len(stratum)]
    picker = _Picker(strata)
    if strata:
        for _ in range(max(1, round(TOP_SHARE * count))):
            picker.take(0)
    picker.fill(count)
    return picker.chosen(events)


class _Picker:
    """Takes rows from strata in turn; a document is taken from again only when no other is left."""

    def __init__(self, strata: Sequence[pd.DataFrame]) -> None:
        self.rows = [list(stratum.itertuples()) for stratum in strata]
        self.taken: list[Any] = []
        self.places: set[tuple[int, int, int]] = set()
        self.documents: set[str] = set()

    def take(self, stratum: int, *, again: bool = False) -> bool:
        """Take the first row of a stratum that may be taken; return whether there was one."""
        for row in self.rows[stratum]:
            place = (row.window, row.query, row.key)
            if place not in self.places and (again or row.doc not in self.documents):
                self.taken.append(row.Index)
                self.places.add(place)
                self.documents.add(row.doc)
                return True
        return False

    def fill(self, count: int) -> None:
        """Take from the strata in turn, the first last, until there are ``count`` rows or no more."""
        order = [*range(1, len(self.rows)), 0][: len(self.rows)]
        for again in (False, True):
            more = True
            while more and len(self.taken) < count:
                more = False
                for stratum in order:
                    if len(self.taken) < count:
                        more |= self.take(stratum, again=again)

    def chosen(self, events: pd.DataFrame) -> pd.DataFrame:
        """Return the rows taken."""
        return events.loc[self.taken]


def matched_negatives(events: pd.DataFrame, anchors: pd.DataFrame, count: int) -> pd.DataFrame:
    """Choose matched negatives: one for each anchor in turn, the kinds alternating, then those of other top events.

    Parameters
    ----------
    events : data frame
        Events of one head and split.
    anchors : data frame
        Top events whose negatives come first.
    count : int
    """
    negatives = events[events["role"].isin(NEGATIVES)]
    by_anchor: dict[Any, dict[str, Any]] = {}
    for row in negatives.itertuples():
        by_anchor.setdefault((row.window, row.anchor_query, row.anchor_key), {})[row.role] = row
    ordered = dict.fromkeys(map(tuple, pd.concat([anchors, _strongest(events)])[PLACE].to_numpy()))
    taken: dict[tuple[int, int, int], int] = {}
    for turn in range(len(NEGATIVES)):
        for number, anchor in enumerate(ordered):
            if len(taken) == count:
                break
            kind = NEGATIVES[(number + turn) % len(NEGATIVES)]
            row = by_anchor.get(anchor, {}).get(kind)
            if row is not None:
                taken.setdefault((row.window, row.query, row.key), row.Index)
    return events.loc[list(taken.values())]


def _strongest(events: pd.DataFrame) -> pd.DataFrame:
    top = events[events["role"] == "top"]
    return top.sort_values(["write_norm", *PLACE], ascending=[False, True, True, True])


def _one_per_document(events: pd.DataFrame, count: int) -> pd.DataFrame:
    picker = _Picker([events])
    picker.fill(count)
    return picker.chosen(events)
