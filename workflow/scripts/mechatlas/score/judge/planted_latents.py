"""Planted latents: made-up latents whose activation a known program computes, so that the truth of their text is known.

They serve as `mechatlas.score.judge.planted` does for heads: ceiling and floor of a judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mechatlas.explain.excerpts import Excerpts
from mechatlas.explain.latents.conditions import Condition, Matches, Near, OfClass, Seen
from mechatlas.explain.latents.data import LatentData
from mechatlas.explain.latents.programs import LatentProgram, Rule
from mechatlas.explain.vocabulary import Vocabulary
from mechatlas.score.judge.baselines import LatentProgramBaseline, TokenLookup
from mechatlas.score.judge.columns import PLANTED
from mechatlas.score.judge.items import UnitName
from mechatlas.score.judge.latents import LatentActivity

#: In the order in which they are used; rules whose English leaves nothing open in any text.
RULES: tuple[tuple[Condition, ...], ...] = (
    (OfClass(name="preposition"),),
    (OfClass(name="article", back=1),),
    (Near(start="sentence"),),
    (Matches(pattern=r"^ ?[A-Z][a-z]+$"),),
    (OfClass(name="comma or colon", back=1),),
    (Matches(pattern=r"ed$"),),
    (Seen(), Matches(pattern=r"^ ")),
    (OfClass(name="sentence end"),),
)


def planted_latent_programs(count: int) -> dict[str, LatentProgram]:
    """Return the programs of the first ``count`` planted latents (at most all of `RULES`) by unit name."""
    return {
        f"{PLANTED}.{number}": LatentProgram(parts=(Rule(conditions=conditions, value=1.0),))
        for number, conditions in enumerate(RULES[:count], 1)
    }


def planted_latent_records(count: int) -> list[dict[str, Any]]:
    """Return explanation records of planted latents: their programs in English."""
    nothing = Vocabulary(["<bos>"], 0)  # these rules name no tokens
    return [
        {
            **{"unit": unit, "layer": -1, "latent": -1, "explainer": PLANTED, "control": "none"},
            **{"text": program.english(nothing), "program": program, "reason": ""},
        }
        for unit, program in planted_latent_programs(count).items()
    ]


def planted_latents(
    data: LatentData, count: int, excerpts: Excerpts, threshold: float, seed: int
) -> list[tuple[UnitName, LatentActivity, Mapping[str, Any]]]:
    """Return name, activity and baselines of planted latents on a source's test windows."""
    programs = planted_latent_programs(count)
    if not programs:
        return []
    test, train = data.view("test"), data.view("train")
    values = np.stack([program.predict(test) for program in programs.values()], axis=1)
    units = []
    for place, (unit, program) in enumerate(programs.items()):
        activity = LatentActivity(data.rows("test"), values, place, excerpts, threshold, seed, unit)
        baselines = {
            "program": LatentProgramBaseline(program, data.tokens, data.vocabulary, 1.0),
            "lookup": TokenLookup(train.tokens, program.predict(train), data.tokens),
        }
        units.append((UnitName(unit), activity, baselines))
    return units
