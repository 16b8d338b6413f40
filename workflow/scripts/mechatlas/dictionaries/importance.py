"""How much each feature of a transcoder writes (no torch here)."""

from __future__ import annotations

import pandas as pd


def importance(features: pd.DataFrame) -> pd.Series:
    """Return the importance of every row of a transcoder's features.parquet.

    What a feature writes on average: the share of tokens on which it is active, times its mean activation there, times
    the norm of all that it writes.
    """
    return features["density"] * features["mean_active"] * features["decoder_norm"]
