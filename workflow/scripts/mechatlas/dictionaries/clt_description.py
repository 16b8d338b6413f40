"""What the features of a transcoder do on text: tables behind the figures of its page.

Moments are over the tokens of test windows, BOS left out, of the most important features of each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.capture.patterns import read_activations
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.dictionaries.importance import importance
from mechatlas.io import progress
from mechatlas.models.transformer import Transformer

WINDOWS_AT_ONCE = 8
#: Features of each layer between which moments and virtual weights are measured, and those in the figures.
MEASURED, SHOWN = 200, 10
#: Pairs of features that are listed, by weight and by expected effect.
PAIRS = 200
#: Features of each layer whose activations on a text are listed.
OF_TEXT = 5


def most_important(features: pd.DataFrame, count: int) -> list[Tensor]:
    """Return for each layer the indices of its ``count`` most important features, the first ones the most."""
    ranked = features.assign(importance=importance(features)).sort_values(
        ["layer", "importance", "feature"], ascending=[True, False, True]
    )
    return [
        torch.tensor(part["feature"].to_numpy(np.int64)[:count])
        for _, part in ranked.groupby("layer")
    ]


@dataclass(frozen=True)
class Moments:
    """Of N features over ``tokens``: ``first`` E[a], float64 [N], and ``second`` E[a a'], [N, N]."""

    first: np.ndarray
    second: np.ndarray
    tokens: int

    def correlation(self) -> np.ndarray:
        """Return Pearson's correlation of every pair, [N, N]; NaN for features that do not vary."""
        covariance = self.second - np.outer(self.first, self.first)
        scale = np.sqrt(np.clip(np.diag(covariance), 0, None))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.outer(scale, scale) > 0, covariance / np.outer(scale, scale), np.nan)


@torch.inference_mode()
def feature_moments(
    clt: CrossLayerTranscoder,
    chunks: Sequence[str | Path],
    windows: np.ndarray,
    chosen: Sequence[Tensor],
) -> Moments:
    """Measure moments of chosen features (indices by layer) on windows of capture shards."""
    size = sum(map(len, chosen))
    first, second = (torch.zeros(*shape, dtype=torch.float64) for shape in ((size,), (size, size)))
    tokens = 0
    for start in progress(range(0, len(windows), WINDOWS_AT_ONCE), desc="moments", unit="batches"):
        part, found = windows[start : start + WINDOWS_AT_ONCE], []
        for layer, index in enumerate(chosen):
            x = torch.from_numpy(read_activations(chunks, clt.reads, layer, part)[:, 1:])
            z = clt.encode(x.to(clt.dtype).flatten(0, 1), layer)
            found.append(z[:, index])
        a = torch.cat(found, 1)
        first += a.double().sum(0)
        second += (a.mT @ a).double()
        tokens += len(a)
    return Moments((first / tokens).numpy(), (second / tokens).numpy(), tokens)


def _names(chosen: Sequence[Tensor]) -> pd.DataFrame:
    layers = np.repeat(np.arange(len(chosen)), [len(index) for index in chosen])
    return pd.DataFrame({"layer": layers, "feature": torch.cat(list(chosen)).numpy()})


def correlation_table(moments: Moments, chosen: Sequence[Tensor], shown: int) -> pd.DataFrame:
    """Return the correlations of the first ``shown`` features of each layer with each other.

    Columns: ``layer``, ``feature``, ``other_layer``, ``other_feature``, ``correlation``, ``tokens``.
    """
    names, matrix = _names(chosen), moments.correlation()
    kept = names.index[names.groupby("layer").cumcount() < shown].to_numpy()
    row, column = (x.ravel() for x in np.meshgrid(kept, kept, indexing="ij"))
    return pd.DataFrame(
        {
            **{name: names[name].to_numpy()[row] for name in ("layer", "feature")},
            **{f"other_{name}": names[name].to_numpy()[column] for name in ("layer", "feature")},
            **{"correlation": matrix[row, column], "tokens": moments.tokens},
        }
    )


@torch.inference_mode()
def virtual_weights(
    clt: CrossLayerTranscoder, model: Transformer, source: int, target: int, rows: Any, columns: Any
) -> Tensor:
    """Return by how much features of a layer raise pre-activations of a later one, directly, per unit of activation.

    What the sources write to layers before the target's is read by the targets' encoders from the residual stream, on
    any text alike: nothing of a prompt enters. Attention moves it too, which is left out. With ``reads: mlp_in`` the
    norm is taken with scale 1.

    Parameters
    ----------
    source, target : int
        Layers, source < target.
    rows, columns : int64 Tensor
        Features of the target and of the source.

    Returns
    -------
    Tensor [targets, sources]
    """
    layers = [layer for layer in clt.targets(source) if layer < target]
    written = torch.stack([clt.decoder_rows(source, layer, columns) for layer in layers]).sum(0)
    encoder = clt.encoder[target][rows]
    if clt.reads == "mlp_in":
        encoder = encoder * model.weights.layers[target].norm2
        if model.config.architecture == "gpt2":
            encoder = encoder - encoder.mean(1, keepdim=True)
    return encoder @ written.mT


def weight_table(
    clt: CrossLayerTranscoder, model: Transformer, chosen: Sequence[Tensor], moments: Moments
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the strongest virtual weights, and a summary of all of them by pair of layers.

    Returns
    -------
    DataFrame
        ``layer``, ``feature`` (source), ``target_layer``, ``target_feature``, ``weight``, ``expected``: the weight
        times E[a_s a_t] / E[a_t], the effect where the target is active (Ameisen et al. 2025, "target-weighted expected
        residual attribution"). Kept are the `PAIRS` strongest by ``weight`` and by ``expected``.
    DataFrame
        ``layer``, ``target_layer``, ``pairs``, ``mean_weight`` and ``mean_expected`` (of absolute values).
    """
    starts = np.cumsum([0, *map(len, chosen)])
    parts, summary = [], []
    for source in range(clt.n_layers):
        for target in range(source + 1, clt.n_layers):
            rows, columns = chosen[target], chosen[source]
            weight = virtual_weights(clt, model, source, target, rows, columns).double().numpy()
            t, s = (slice(starts[i], starts[i + 1]) for i in (target, source))
            active = np.maximum(moments.first[t, None], 1e-30)
            expected = weight * moments.second[t, s] / active
            sizes = [float(np.abs(x).mean()) for x in (weight, expected)]
            summary.append((source, target, weight.size, *sizes))
            parts.append(_strongest(weight, expected, source, target, rows, columns))
    names = ["layer", "target_layer", "pairs", "mean_weight", "mean_expected"]
    columns = ["layer", "feature", "target_layer", "target_feature", "weight", "expected"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    order = table["expected"].abs().sort_values(ascending=False, kind="stable").index
    best = [table[by].abs().nlargest(PAIRS, keep="first").index for by in ("weight", "expected")]
    kept = order[order.isin(best[0].union(best[1]))]
    return table.loc[kept].reset_index(drop=True), pd.DataFrame(summary, columns=names)


def _strongest(
    weight: np.ndarray,
    expected: np.ndarray,
    source: int,
    target: int,
    rows: Tensor,
    columns: Tensor,
) -> pd.DataFrame:
    flat = [np.argsort(-np.abs(x).ravel(), kind="stable")[:PAIRS] for x in (weight, expected)]
    place = np.unique(np.concatenate(flat))
    row, column = np.unravel_index(place, weight.shape)
    return pd.DataFrame(
        {
            **{"layer": source, "feature": columns.numpy()[column]},
            **{"target_layer": target, "target_feature": rows.numpy()[row]},
            **{"weight": weight[row, column], "expected": expected[row, column]},
        }
    )


@torch.inference_mode()
def text_features(
    model: Transformer, clt: CrossLayerTranscoder, tokens: np.ndarray, bos: int
) -> list[Tensor]:
    """Return the features of one text, ``[T, F]`` for each layer, 0 at leading BOS positions."""
    kept: list[Tensor] = []
    given = torch.from_numpy(tokens.astype(np.int64))[None].to(model.device)
    model.forward(given, {clt.reads: lambda x, layer: kept.append(x[0])}, logits=False)
    features = [clt.encode(x, layer) for layer, x in enumerate(kept)]
    for z in features:
        z[:bos] = 0
    return features


def text_tables(
    model: Transformer,
    clt: CrossLayerTranscoder,
    texts: Mapping[str, Sequence[np.ndarray]],
    bos: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what features do on single texts, and maps of all texts.

    Parameters
    ----------
    texts : mapping
        Name of a group, such as a task, to its texts, int [T] each.

    Returns
    -------
    DataFrame
        Of the first text of each group the `OF_TEXT` features of each layer with the largest sum: ``group``, ``layer``,
        ``feature``, ``rank``, ``position``, ``token``, ``activation`` (all positions).
    DataFrame
        A row per text, layer and method (``pca``, ``tsne``): ``group``, ``text``, ``layer``, ``method``, ``x``, ``y``.
        A text is the mean of its features over tokens.
    """
    rows, vectors, groups = [], [], []
    for group, members in progress(list(texts.items()), desc="texts", unit="groups"):
        for number, tokens in enumerate(members):
            features = text_features(model, clt, tokens, bos)
            vectors.append([z[bos:].mean(0).double().numpy() for z in features])
            groups.append((group, number))
            if number == 0:
                rows += [_listed(group, layer, z, tokens) for layer, z in enumerate(features)]
    maps = []
    for layer in range(clt.n_layers):
        points = np.stack([one[layer] for one in vectors])
        for method, place in flat_maps(points, seed).items():
            frame = pd.DataFrame(groups, columns=["group", "text"])
            maps.append(frame.assign(layer=layer, method=method, x=place[:, 0], y=place[:, 1]))
    return pd.concat(rows, ignore_index=True), pd.concat(maps, ignore_index=True)


def _listed(group: str, layer: int, z: Tensor, tokens: np.ndarray) -> pd.DataFrame:
    best = torch.argsort(z.sum(0), descending=True, stable=True)[:OF_TEXT]
    best = best[z.sum(0)[best] > 0]
    length = len(tokens)
    return pd.DataFrame(
        {
            **{"group": group, "layer": layer},
            "feature": np.repeat(best.numpy(), length),
            "rank": np.repeat(np.arange(len(best)), length),
            "position": np.tile(np.arange(length), len(best)),
            "token": np.tile(tokens.astype(np.int64), len(best)),
            "activation": z[:, best].mT.flatten().float().numpy(),
        }
    )


def flat_maps(points: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return points ``[n, d]`` in two dimensions, ``[n, 2]``: principal components, and t-SNE of at least six points.

    The sign of a component is such that its largest loading is positive.
    """
    centred = points - points.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(1)])[:, None]
    found = {"pca": centred @ axes.T}
    if found["pca"].shape[1] < 2:
        return {"pca": np.pad(found["pca"], ((0, 0), (0, 1)))}
    if len(points) > 5 and centred.any():
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        found["tsne"] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
            points
        )
    return found
