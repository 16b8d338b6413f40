"""Planted units: made-up heads whose attention a known program computes, so that the truth of their text is known.

Judged with their own text they show what a judge can reach at best (its ceiling); with the text of another planted
unit, what it gives to wrong explanations (its floor).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.excerpts import Excerpts
from mechatlas.explain.forms import (
    Delimiter,
    Duplicate,
    Form,
    Induction,
    Opener,
    Previous,
    SameWord,
    Start,
)
from mechatlas.explain.programs import Part, Program
from mechatlas.explain.render import render
from mechatlas.explain.vocabulary import TokenView
from mechatlas.score.judge.baselines import PairCodes, PairLookup, ProgramBaseline
from mechatlas.score.judge.columns import PLANTED
from mechatlas.score.judge.heads import HeadActivity
from mechatlas.score.judge.items import UnitName

SHARE = 0.9
#: In the order in which they are used; sharp rules whose English leaves nothing open.
FORMS: tuple[Form, ...] = (
    Duplicate(pick="last"),
    Opener(),
    Delimiter(),
    Previous(),
    # Active at the same queries as the first, so detection cannot tell the two apart.
    Induction(pick="last"),
    Start(of="sentence"),
    SameWord(pick="last"),
    Previous(offset=2),
)


def planted_programs(count: int) -> dict[str, Program]:
    """Return the programs of the first ``count`` planted units (at most all of `FORMS`) by unit name."""
    return {
        f"{PLANTED}.{number}": Program(parts=(Part(share=SHARE, form=form),))
        for number, form in enumerate(FORMS[:count], 1)
    }


def planted_records(count: int) -> list[dict[str, Any]]:
    """Return explanation records of planted units: their programs in English."""
    nothing = TokenView(np.zeros((0, 1), dtype=np.int64), vocabulary=None)  # type: ignore[arg-type]
    return [
        {
            **{"unit": unit, "layer": -1, "head": -1, "explainer": PLANTED, "control": "none"},
            # Symbolic forms are rendered without looking at any text.
            **{"text": render(program, nothing), "program": program, "reason": ""},
        }
        for unit, program in planted_programs(count).items()
    ]


def planted_units(
    data: HeadData, count: int, excerpts: Excerpts, threshold: float, seed: int
) -> list[tuple[UnitName, HeadActivity, Mapping[str, Any]]]:
    """Return name, activity and baselines of planted units, computed on the pattern windows of a source.

    Parameters
    ----------
    data : HeadData
        Gives the windows; captured patterns are not read.
    count : int
    excerpts : Excerpts
    threshold : float
        Attention from which a pair is active.
    seed : int
    """
    programs = planted_programs(count)
    if not programs:
        return []
    windows, train = data.pattern_windows("test"), data.pattern_windows("train")
    view = TokenView(np.stack(windows["tokens"].to_list()), data.vocabulary)
    train_view = TokenView(np.stack(train["tokens"].to_list()), data.vocabulary)
    patterns = np.stack([program.predict(view) for program in programs.values()], axis=1)
    pairs = PairCodes(train_view.tokens)
    sample = windows["window"].to_numpy()
    units = []
    for place, (unit, program) in enumerate(programs.items()):
        activity = HeadActivity(
            windows, sample, patterns, place, None, excerpts, threshold, seed, unit
        )
        baselines = {
            "program": ProgramBaseline(program, data.tokens, data.vocabulary),
            "lookup": PairLookup(pairs, program.predict(train_view), data.tokens),
        }
        units.append((UnitName(unit), activity, baselines))
    return units
