"""The replacement curve from losses per document: perplexity ratios with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.score.summary import SummarySettings, weights_of
from mechatlas.stats.bootstrap import interval, replicate

#: Columns of replacement.parquet.
CURVE_COLUMNS = ["explainer", "order", "share", "heads", "perplexity", "ratio", "low", "high"]


def summarise_curve(losses: pd.DataFrame, settings: SummarySettings) -> pd.DataFrame:
    """Turn losses of the replacement curves into perplexity ratios with intervals.

    Parameters
    ----------
    losses : data frame
        explainer, order, repeat, share, heads, doc, loss, tokens; order "model" is the untouched model.
    settings : SummarySettings

    Returns
    -------
    data frame
        `CURVE_COLUMNS`; ``ratio`` is to the untouched model. Random orders are averaged (geometric mean of
        perplexities).
    """
    rows = [
        {"explainer": explainer, **row}
        for explainer, own in losses.groupby("explainer", sort=False)
        for row in _curve_rows(own, settings)
    ]
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _curve_rows(losses: pd.DataFrame, settings: SummarySettings) -> Iterable[dict[str, Any]]:
    names, weights = weights_of(losses, settings, "curve")
    losses = losses.assign(doc=losses["doc"].astype(str))
    base_group = losses[losses["order"] == "model"].set_index("doc").loc[names]
    base, tokens = base_group["loss"].to_numpy(), base_group["tokens"].to_numpy()
    replaced = losses[losses["order"] != "model"]
    for (order, share), group in replaced.groupby(["order", "share"], sort=True):
        mean = group.groupby("doc")["loss"].mean().loc[names].to_numpy()
        sums = np.stack([mean, base, tokens.astype(np.float64)], axis=1)
        per_token = replicate(sums, weights, lambda t: t[:, 0] / t[:, 2])
        ratio = replicate(sums, weights, lambda t: np.exp((t[:, 0] - t[:, 1]) / t[:, 2]))
        low, high = interval(ratio, settings.confidence)
        yield {
            **{"order": order, "share": share, "heads": int(group["heads"].iloc[0])},
            **{"perplexity": float(np.exp(per_token[0])), "ratio": ratio[0]},
            **{"low": low, "high": high},
        }
