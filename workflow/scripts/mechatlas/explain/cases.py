"""The heads that a language model is asked about, with what it is shown, the same for asking and forecasting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.evidence import HeadEvents
from mechatlas.explain.excerpts import Example
from mechatlas.explain.selection import heads_to_explain
from mechatlas.io import read_table


@dataclass(frozen=True)
class Case:
    """A unit to be explained.

    Attributes
    ----------
    evidence : Evidence or LatentEvidence
    compare, probe : sequence of Example
        Validation pairs of different documents: candidates are compared by the first, failures for a revision are
        looked for among the second. Empty if there is nothing to compare.
    """

    evidence: Any
    compare: Sequence[Example] = ()
    probe: Sequence[Example] = ()


class Cases:
    """The cases of one model and source, made as they are asked for.

    Parameters
    ----------
    data : HeadData
    events, head_stats : path
        raw_events.parquet (test events are not read), head_stats.parquet.
    openai : mapping
        ``explain.openai`` of a completed configuration.
    max_heads, seed : int
        ``explain.max_heads`` and ``seed``.
    """

    def __init__(
        self,
        data: HeadData,
        events: str | Path,
        head_stats: str | Path,
        openai: Mapping[str, Any],
        max_heads: int,
        seed: int,
    ) -> None:
        statistics = read_table(head_stats)
        known = read_table(events, filters=[("split", "in", ["train", "validation"])])
        self.heads = heads_to_explain(statistics, max_heads)
        self.openai = openai
        self._source = HeadEvents(data, known, statistics, openai["context_tokens"], seed)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Case]:
        compares = self.openai["candidates"] > 1 or self.openai["revise"]
        for head in self.heads:
            pairs: tuple[Sequence[Example], Sequence[Example]] = ((), ())
            if compares:
                pairs = self._source.comparison(head, self.openai["validation_items"])
            shown = self._source.evidence(head, self.openai["examples"], self.openai["negatives"])
            yield Case(shown, *pairs)
