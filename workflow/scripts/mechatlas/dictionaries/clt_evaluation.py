"""How well a cross-layer transcoder reconstructs, how sparse it is, and what the model loses when it runs on it alone.

Everything is summed by document of the test split, BOS left out, so that intervals are over documents. Metrics have the
names and definitions of `mechatlas.dictionaries.evaluate`; there, one layer is replaced, here all MLPs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.capture.patterns import read_activations
from mechatlas.corpus.windows import SPLITS, read_windows
from mechatlas.dictionaries.clt import CrossLayerTranscoder, check_model
from mechatlas.dictionaries.clt_formats import load_clt
from mechatlas.dictionaries.clt_replacement import reconstruction_errors, replacement_hooks
from mechatlas.dictionaries.evaluate import (
    COLUMNS,
    MODEL_METRICS,
    SHARD_METRICS,
    compare_runs,
    dead_share,
    evaluation_table,
    mean_activation,
)
from mechatlas.io import UserError, progress, provenance, read_provenance, write_table
from mechatlas.models.transformer import Transformer

WHOLE = -1  # the layer of rows about all layers together
WINDOWS_AT_ONCE = 8
EXAMPLES = 6  # strongest activations that are kept of a feature, at most one for each window


class LayerSums:
    """Sums over test windows of all layers.

    Attributes
    ----------
    tables : list of DataFrame
        For each layer a row per document: ``error``, ``variance``, ``active``, ``tokens``.
    features : DataFrame
        A row per feature: ``layer``, ``feature``, ``density`` (share of tokens on which it is active), ``mean_active``
        and ``max`` of its activation, ``decoder_norm``.
    examples : DataFrame
        The strongest activations: ``layer``, ``feature``, ``rank``, ``window``, ``position``, ``activation``.
    means : list of Tensor [d]
        Mean MLP output of each layer on these windows, for the variance.
    """

    def __init__(
        self,
        clt: CrossLayerTranscoder,
        chunks: Sequence[str | Path],
        windows: np.ndarray,
        documents: np.ndarray,
    ) -> None:
        self.clt, self.chunks, self.windows = clt, chunks, windows
        layers = range(clt.n_layers)
        self.means = self._means()
        rows: list[list[Tensor]] = [[] for _ in layers]
        count, total = ([torch.zeros(n, dtype=torch.float64) for n in clt.n_features] for _ in "ab")
        best = [_Best(n) for n in clt.n_features]
        for part, inputs, outputs in self._batches():
            shape = inputs[0].shape[:2]
            features = [clt.encode(x.flatten(0, 1), i) for i, x in enumerate(inputs)]
            written = clt.decode(features)
            for i in layers:
                y, z = outputs[i], features[i]
                skip = clt.skipped(inputs[i].flatten(0, 1), i)
                yhat = (written[i] if skip is None else written[i] + skip).view_as(y)
                columns = [
                    (y - yhat).double().square().sum((1, 2)),
                    (y - self.means[i]).double().square().sum((1, 2)),
                    (z > 0).sum(-1).view(shape).sum(1).double(),
                    torch.full((shape[0],), float(shape[1]), dtype=torch.float64),
                ]
                rows[i].append(torch.stack([column.cpu() for column in columns], 1))
                count[i] += (z > 0).sum(0).double().cpu()
                total[i] += z.sum(0).double().cpu()
                best[i].add(z.view(*shape, -1), part)
        names = ["error", "variance", "active", "tokens"]
        self.tables = [
            pd.DataFrame(torch.cat(part).numpy(), columns=names).groupby(documents, sort=True).sum()
            for part in rows
        ]
        tokens = float(self.tables[0]["tokens"].sum())
        self.features = pd.concat(
            [
                pd.DataFrame(
                    {
                        "layer": np.int32(i),
                        "feature": np.arange(len(count[i]), dtype=np.int32),
                        "density": (count[i] / tokens).numpy(),
                        "mean_active": (total[i] / count[i].clamp_min(1)).numpy(),
                        "max": best[i].values[:, 0].double().numpy(),
                        "decoder_norm": clt.decoder_norms(i).double().cpu().numpy(),
                    }
                )
                for i in layers
            ],
            ignore_index=True,
        )
        self.examples = pd.concat([best[i].table(i) for i in layers], ignore_index=True)

    def _batches(self) -> Iterator[tuple[np.ndarray, list[Tensor], list[Tensor]]]:
        """Yield windows, inputs and outputs of all layers, ``[n, T - 1, d]`` (BOS left out)."""
        starts = range(0, len(self.windows), WINDOWS_AT_ONCE)
        for first in progress(starts, desc="evaluate", unit="batches"):
            part = self.windows[first : first + WINDOWS_AT_ONCE]
            yield part, self._read(self.clt.reads, part), self._read("mlp_out", part)

    def _read(self, point: str, windows: np.ndarray) -> list[Tensor]:
        layers = range(self.clt.n_layers)
        read = (read_activations(self.chunks, point, i, windows)[:, 1:] for i in layers)
        return [torch.from_numpy(x).to(self.clt.device, self.clt.dtype) for x in read]

    def _means(self) -> list[Tensor]:
        total, tokens = [0.0] * self.clt.n_layers, 0
        for first in range(0, len(self.windows), WINDOWS_AT_ONCE):
            parts = self._read("mlp_out", self.windows[first : first + WINDOWS_AT_ONCE])
            total = [t + x.double().sum((0, 1)) for t, x in zip(total, parts, strict=True)]
            tokens += parts[0].shape[0] * parts[0].shape[1]
        return [(t / tokens).to(self.clt.dtype) for t in total]


class _Best:
    """The strongest activation of each feature in the windows seen so far, the `EXAMPLES` strongest of these."""

    def __init__(self, n_features: int):
        self.values = torch.zeros(n_features, EXAMPLES)
        self.windows = torch.full((n_features, EXAMPLES), -1)
        self.positions = torch.full((n_features, EXAMPLES), -1)

    def add(self, z: Tensor, windows: np.ndarray) -> None:
        """Take over features ``[n, T - 1, F]`` of windows."""
        values, positions = z.float().cpu().max(1)
        places = torch.from_numpy(windows)[:, None].expand_as(values)
        columns = ((self.values, values), (self.windows, places), (self.positions, positions + 1))
        joined = [torch.cat([old, new.mT], 1) for old, new in columns]
        self.values, order = joined[0].sort(dim=1, descending=True, stable=True)
        self.values, order = self.values[:, :EXAMPLES], order[:, :EXAMPLES]
        self.windows, self.positions = (x.gather(1, order) for x in joined[1:])

    def table(self, layer: int) -> pd.DataFrame:
        """Return the examples as a table."""
        feature, rank = (self.values > 0).nonzero(as_tuple=True)
        columns = {"window": self.windows, "position": self.positions}
        return pd.DataFrame(
            {
                "layer": np.int32(layer),
                "feature": feature.int().numpy(),
                "rank": rank.int().numpy(),
                **{name: x[feature, rank].int().numpy() for name, x in columns.items()},
                "activation": self.values[feature, rank].numpy(),
            }
        )


@torch.inference_mode()
def replacement_sums(
    clt: CrossLayerTranscoder,
    model: Transformer,
    tokens: np.ndarray,
    documents: np.ndarray,
    means: Sequence[Tensor],
    batch_windows: int,
) -> tuple[pd.DataFrame, float]:
    """Run the model on the transcoder in place of all MLPs, and on zeros and mean train outputs in their place.

    Returns
    -------
    DataFrame
        A row per document, as `evaluate.run_sums` (``reconstruction`` is the replacement model), and ``logit_square``:
        the squared difference of the logits, mean over the vocabulary, summed over predicted tokens.
    float
        Largest difference of a logit between the model and the replacement model with error terms, relative to the
        largest logit: rounding alone, if all is well.
    """

    def constant(values: Sequence[Tensor]) -> dict[str, Any]:
        def write(x: Tensor, layer: int) -> Tensor:
            x = x.clone()
            x[:, 1:] = values[layer]
            return x

        return {"mlp_out": write}

    means = [mean.to(model.device, model.dtype) for mean in means]
    hooks = {"zero": constant([torch.zeros_like(m) for m in means]), "mean": constant(means)}
    rows, gap = [], 0.0
    for first in range(0, len(tokens), batch_windows):
        batch = torch.from_numpy(tokens[first : first + batch_windows].astype(np.int64))
        batch = batch.to(model.device)
        finals = {"model": model.forward(batch, logits=False)}
        finals["reconstruction"] = model.forward(batch, replacement_hooks(clt), logits=False)
        finals |= {name: model.forward(batch, given, logits=False) for name, given in hooks.items()}
        # The difference of logits is the unembedding of the difference: |W d|^2 = d' (W'W) d.
        d = (finals["reconstruction"] - finals["model"])[:, :-1].double()
        square = torch.einsum("btd,de,bte->b", d, _gram(model), d) / model.config.vocab_size
        rows.append(
            compare_runs(model, finals, batch[:, 1:]) | {"logit_square": square.cpu().numpy()}
        )
        if first == 0:
            errors = reconstruction_errors(model, clt, batch)
            with_errors = model.forward(batch, replacement_hooks(clt, errors=errors))
            plain = model.forward(batch)
            gap = float((with_errors - plain).abs().max() / plain.abs().max())
    table = pd.DataFrame({key: np.concatenate([row[key] for row in rows]) for key in rows[0]})
    return table.groupby(np.asarray(documents), sort=True).sum(), gap


def measure_clt(
    clt: CrossLayerTranscoder,
    model: Transformer,
    windows: str | Path,
    chunks: Sequence[str | Path],
    *,
    causal_windows: int,
    batch_windows: int,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> tuple[pd.DataFrame, LayerSums]:
    """Measure a transcoder on test windows.

    Returns
    -------
    DataFrame
        Rows are by layer, those of layer -1 about all layers: ``fvu`` and ``l0`` (means over layers), the metrics of
        the replacement model, ``logit_mse``, and ``logit_gap_with_errors`` (see `replacement_sums`).
    LayerSums

    Raises
    ------
    UserError
        If files are missing or damaged, the transcoder is of another model, or there is no train or test window.
    """
    check_model(clt, model.config.n_layers, model.config.d_model, model.hash)
    table = read_windows(windows)
    train, test = (np.flatnonzero(table.splits == SPLITS.index(name)) for name in ("train", "test"))
    for name, found in (("train", train), ("test", test)):
        if not len(found):
            raise UserError(f"{windows} has no window of a {name} document; change sampling.split")
    sums = LayerSums(clt, chunks, test, np.asarray(table.docs[test]))
    causal = test[:causal_windows]
    # The reference is a mean that knows no test document, as for dictionaries.
    means = [mean_activation(chunks, "mlp_out", i, train) for i in range(clt.n_layers)]
    runs, gap = replacement_sums(
        clt, model, table.tokens[causal], table.docs[causal], means, batch_windows
    )
    options: dict[str, Any] = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    parts = []
    for layer, part in enumerate(sums.tables):
        here = sums.features[sums.features["layer"] == layer]
        size = len(part), int(part["tokens"].sum())
        parts.append(evaluation_table(part, SHARD_METRICS, layer, **options))
        parts.append(dead_share(here, layer, *size))
    parts.append(_whole(sums.tables, options))
    metrics = (
        *MODEL_METRICS,
        ("logit_mse", ("logit_square", "predicted"), lambda a, t: a / t, "logits"),
    )
    parts.append(evaluation_table(runs, metrics, WHOLE, **options))
    row = (WHOLE, "logit_gap_with_errors", gap, np.nan, np.nan, "largest logit", np.nan, np.nan)
    parts.append(pd.DataFrame([row], columns=list(COLUMNS)))
    return pd.concat(parts, ignore_index=True), sums


def evaluate_clt(
    clt: str | Path,
    model: Transformer,
    windows: str | Path,
    chunks: Sequence[str | Path],
    *,
    evaluation: str | Path,
    features: str | Path,
    examples: str | Path,
    **options: Any,
) -> None:
    """Measure a transcoder file with the ``options`` of `measure_clt` and write three tables."""
    loaded = load_clt(clt, device=str(model.device), dtype=model.dtype)
    table, sums = measure_clt(loaded, model, windows, chunks, **options)
    facts = provenance(clt=read_provenance(clt).get("clt"), model_hash=model.hash, **options)
    write_table(evaluation, table, facts)
    write_table(features, sums.features, facts)
    write_table(examples, sums.examples, facts)


def _whole(tables: Sequence[pd.DataFrame], options: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of the mean over layers of fvu and l0; documents are drawn for all layers together."""
    n = len(tables)
    joined = pd.concat([part.add_suffix(f".{i}") for i, part in enumerate(tables)], axis=1)
    joined["tokens"] = tables[0]["tokens"]

    def columns(*names: str) -> tuple[str, ...]:
        return tuple(f"{name}.{i}" for name in names for i in range(n))

    def mean_ratio(*sums: np.ndarray) -> np.ndarray:
        parts = np.stack(sums)
        return (parts[:n] / parts[n:]).mean(0)

    metrics = (
        ("fvu", columns("error", "variance"), mean_ratio, "mean over layers"),
        ("l0", columns("active", "tokens"), mean_ratio, "tokens and layers"),
    )
    return evaluation_table(joined, metrics, WHOLE, **options)


def _gram(model: Transformer) -> Tensor:
    w = model.weights.unembedding.double()
    return w.mT @ w
