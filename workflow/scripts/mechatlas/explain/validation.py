"""What explanations are tried on before one of them is kept: validation patterns and pairs of validation documents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mechatlas.explain.dataset import HeadData, Sample
from mechatlas.explain.excerpts import Example
from mechatlas.explain.fit_rules import match, overlap_ratio
from mechatlas.explain.programs import Program
from mechatlas.explain.records import Head
from mechatlas.explain.vocabulary import TokenView

#: Layers whose patterns are kept; heads are worked on in order, some at a time.
LAYERS_KEPT = 2


class Validation:
    """Runs programs on validation documents.

    Parameters
    ----------
    data : HeadData
    """

    def __init__(self, data: HeadData) -> None:
        self.data = data
        self._sample = lru_cache(LAYERS_KEPT)(lambda layer: data.sample("validation", layer))

    def fit(self, head: Head, program: Program) -> tuple[float, float]:
        """Return the intersection over union of a program's prediction with a head's patterns, and their `match`."""
        sample: Sample = self._sample(head[0])
        true = sample.patterns[:, head[1]]
        predicted = program.predict(sample.view)
        return overlap_ratio(predicted[:, 1:], true[:, 1:]), match(predicted, true)

    def predict(self, program: Program, examples: Sequence[Example]) -> list[float]:
        """Return the attention that a program predicts at (query, key) examples."""
        if not examples:
            return []
        windows, row = np.unique([example.window for example in examples], return_inverse=True)
        view = TokenView(self.data.tokens(windows), self.data.vocabulary)
        query, key = np.array([example.place for example in examples]).T
        return program.predict(view)[row, query, key].tolist()
