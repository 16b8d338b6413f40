"""Test items of the heads of a model and of the planted units, from the files of a capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.excerpts import Excerpts
from mechatlas.explain.programs import Program
from mechatlas.score.judge.baselines import Baseline, PairCodes, PairLookup, ProgramBaseline
from mechatlas.score.judge.heads import HeadActivity
from mechatlas.score.judge.items import ItemSettings, UnitName, unit_items
from mechatlas.score.judge.planted import planted_units


def planted_items(
    data: HeadData,
    count: int,
    scorers: Sequence[str],
    settings: ItemSettings,
    active_attention: float,
) -> pd.DataFrame:
    """Return the items of the first ``count`` planted units, at least one."""
    excerpts = Excerpts(data.tokenizer, settings.context_tokens)
    units = planted_units(data, count, excerpts, active_attention, settings.seed)
    frames = [
        unit_items(name, activity, scorers, settings, baselines)
        for name, activity, baselines in units
    ]
    return pd.concat(frames, ignore_index=True)


def layer_items(
    data: HeadData,
    layer: int,
    programs: Mapping[int, Program | None],
    events: pd.DataFrame,
    scorers: Sequence[str],
    settings: ItemSettings,
    active_attention: float,
) -> pd.DataFrame:
    """Return the items of the heads of one layer.

    Parameters
    ----------
    data : HeadData
    layer : int
    programs : mapping
        The heads that are wanted, at least one, each with the program to compare with, or None.
    events : data frame
        Test events of the layer.
    scorers, settings, active_attention
        See `mechatlas.score.judge.items.unit_items` and `mechatlas.score.judge.heads.HeadActivity`.
    """
    excerpts = Excerpts(data.tokenizer, settings.context_tokens)
    sample, train = data.sample("test", layer), data.sample("train", layer)
    windows = data.table[data.table["split"] == "test"]
    numbers = data.pattern_windows("test")["window"].to_numpy()
    pairs = PairCodes(train.view.tokens)
    by_head = dict(iter(events.groupby("head")))
    frames = []
    for head, program in programs.items():
        unit = f"L{layer}.H{head}"
        activity = HeadActivity(
            windows, numbers, sample.patterns, head, by_head.get(head, events.head(0)),
            excerpts, active_attention, settings.seed, unit,
        )  # fmt: skip
        lookup = PairLookup(pairs, train.patterns[:, head], data.tokens)
        baselines: dict[str, Baseline] = {"lookup": lookup}
        if program is not None:
            baselines["program"] = ProgramBaseline(program, data.tokens, data.vocabulary)
        name = UnitName(unit, layer, head)
        frames.append(unit_items(name, activity, scorers, settings, baselines))
    return pd.concat(frames, ignore_index=True)
