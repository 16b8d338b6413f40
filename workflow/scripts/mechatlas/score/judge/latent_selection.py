"""Test items of the explained latents of a dictionary and of planted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mechatlas.explain.excerpts import Excerpts
from mechatlas.explain.latents.data import Latent, LatentData
from mechatlas.explain.latents.programs import LatentProgram
from mechatlas.score.judge.baselines import Baseline, LatentProgramBaseline, TokenLookup
from mechatlas.score.judge.items import ItemSettings, UnitName, unit_items
from mechatlas.score.judge.latents import LatentActivity
from mechatlas.score.judge.planted_latents import planted_latents


def planted_latent_items(
    data: LatentData,
    count: int,
    scorers: Sequence[str],
    settings: ItemSettings,
    active_share: float,
) -> pd.DataFrame:
    """Return the items of the first ``count`` planted latents, at least one."""
    excerpts = Excerpts(data.tokenizer, settings.context_tokens)
    units = planted_latents(data, count, excerpts, active_share, settings.seed)
    frames = [unit_items(name, one, scorers, settings, known) for name, one, known in units]
    return pd.concat(frames, ignore_index=True)


def layer_latent_items(
    data: LatentData,
    latents: Sequence[Latent],
    programs: Mapping[tuple[int, int], LatentProgram],
    scorers: Sequence[str],
    settings: ItemSettings,
    active_share: float,
) -> pd.DataFrame:
    """Return the items of the latents of one layer, at least one.

    Parameters
    ----------
    data : LatentData
    latents : sequence of Latent
    programs : mapping
        (layer, latent) -> program to compare with, as far as there are any.
    scorers, settings
        See `mechatlas.score.judge.items.unit_items`.
    active_share : float
        Share of the largest activation from which a latent counts as active.
    """
    excerpts = Excerpts(data.tokenizer, settings.context_tokens)
    rows = data.rows("test")
    values = np.stack([data.values(latent, "test") for latent in latents], axis=1)
    train_tokens = data.view("train").tokens
    frames = []
    for place, latent in enumerate(latents):
        activity = LatentActivity(
            rows, values, place, excerpts, active_share, settings.seed, latent.unit
        )
        train = data.values(latent, "train")
        top = max(float(train.max()), 1e-12)
        baselines: dict[str, Baseline] = {
            "lookup": TokenLookup(train_tokens, train / top, data.tokens)
        }
        program = programs.get((latent.layer, latent.latent))
        if program is not None:
            baselines["program"] = LatentProgramBaseline(program, data.tokens, data.vocabulary, top)
        name = UnitName(latent.unit, latent.layer, latent.latent)
        frames.append(unit_items(name, activity, scorers, settings, baselines))
    return pd.concat(frames, ignore_index=True)
