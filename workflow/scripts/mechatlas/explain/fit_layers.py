"""The explainer `programs` on some of a model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.fit import FitSettings, explain_layer, shuffled_sample
from mechatlas.explain.records import Head
from mechatlas.io import progress


def explain_layers(
    data: HeadData,
    layers: range,
    wanted: Sequence[Head],
    settings: FitSettings,
    *,
    controls: Sequence[str],
    seed: int,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Explain heads layer by layer; what a layer gives does not depend on the others.

    Parameters
    ----------
    data : HeadData
    layers : range
    wanted : sequence of (layer, head)
        Which heads, of any layers.
    settings : FitSettings
    controls : sequence of str
        "shuffled" among them asks for explanations of shuffled patterns, too.
    seed : int
        Of the shuffling.
    device : str

    Returns
    -------
    list of dict
        Explanation records (see docs/files.md): of each layer the heads, then the heads with shuffled patterns.
    """
    records: list[dict[str, Any]] = []
    for layer in progress(layers, desc="explain layers", unit="layer"):
        heads = [head for at, head in wanted if at == layer]
        train, validation = data.sample("train", layer), data.sample("validation", layer)
        records += explain_layer(layer, train, validation, settings, device=device, heads=heads)
        if "shuffled" in controls:
            shuffled = shuffled_sample(train, seed, layer)
            records += explain_layer(
                *(layer, shuffled, validation, settings),
                control="shuffled",
                device=device,
                heads=heads,
            )
    return records
