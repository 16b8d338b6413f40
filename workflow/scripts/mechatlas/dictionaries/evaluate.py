"""How well a dictionary reconstructs, how sparse it is, and what the model loses when it runs on the reconstruction.

Everything is summed by document of the test split, BOS left out, so that intervals are over documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechatlas.capture.patterns import read_activations
from mechatlas.corpus.windows import SPLITS, read_windows
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.collection import INDEX, layers_of, read_dictionary
from mechatlas.dictionaries.hooks import Hooks, replace_by_reconstruction
from mechatlas.io import progress, provenance, read_json, read_provenance, rng_for, write_table
from mechatlas.models.transformer import LOGITS_PER_CHUNK, Transformer
from mechatlas.stats.bootstrap import document_weights, interval, replicate

#: What the model runs on in place of the activation.
VARIANTS = ("model", "reconstruction", "zero", "mean")
COLUMNS = ("layer", "metric", "value", "low", "high", "denominator", "documents", "tokens")
#: Windows of shards that are read at once, and latents of them that are held (256 MiB of float32).
WINDOWS_AT_ONCE = 8
LATENTS_AT_ONCE = 2**26

#: A metric: its name, the columns of sums it needs, how they combine, and what it is relative to.
Metric = tuple[str, tuple[str, ...], Callable[..., np.ndarray], str]

SHARD_METRICS: tuple[Metric, ...] = (
    (
        "fvu",
        ("error", "variance"),
        lambda e, v: e / v,
        "variance around the mean of the test tokens",
    ),
    ("l0", ("active", "tokens"), lambda a, t: a / t, "tokens"),
)
MODEL_METRICS: tuple[Metric, ...] = (
    *(
        (f"loss_{name}", (f"loss_{name}", "predicted"), lambda a, t: a / t, "predicted tokens")
        for name in VARIANTS
    ),
    (
        "loss_recovered_zero",
        ("loss_model", "loss_reconstruction", "loss_zero"),
        lambda m, r, z: (z - r) / (z - m),
        "loss added by zero ablation",
    ),
    (
        "loss_recovered_mean",
        ("loss_model", "loss_reconstruction", "loss_mean"),
        lambda m, r, z: (z - r) / (z - m),
        "loss added by mean ablation",
    ),
    ("kl", ("kl", "predicted"), lambda a, t: a / t, "predicted tokens"),
    ("top1_agreement", ("agree", "predicted"), lambda a, t: a / t, "predicted tokens"),
)


class ShardSums:
    """Sums over the shards of test windows for one dictionary.

    Parameters
    ----------
    sae : SparseAutoencoder
    chunks : sequence of folders
    windows : int64 [W]
        Test windows.
    documents : [W]
        Document of each.

    Attributes
    ----------
    table : DataFrame
        A row per document: ``error``, ``variance``, ``active``, ``tokens``.
    latents : DataFrame
        A row per latent: ``density`` (share of tokens on which it is active), ``mean_active`` and ``max`` of its
        activation.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        chunks: Sequence[str | Path],
        windows: np.ndarray,
        documents: np.ndarray,
    ) -> None:
        self.sae, self.chunks = sae, chunks
        self._window_len = int(read_json(Path(chunks[0]) / "index.json")["window_len"])
        reads, writes = sae.about["reads"], sae.about.get("writes") or sae.about["reads"]
        mean = self._mean(writes, windows)
        count = torch.zeros(sae.n_latents, dtype=torch.float64)
        total, largest = count.clone(), count.clone()
        rows: list[np.ndarray] = []
        for x, y in self._batches(windows, reads, writes):
            flat = x.flatten(0, 1)
            z = sae.encode(flat)
            error = (y - sae.decode(z, flat).view(y.shape)).double().square().sum((1, 2))
            variance = (y.double() - mean).square().sum((1, 2))
            active = z > 0
            per_window = active.sum(-1).view(x.shape[:2]).sum(1)
            count += active.sum(0).double().cpu()
            total += z.sum(0).double().cpu()
            largest = torch.maximum(largest, z.max(0).values.double().cpu())
            tokens = torch.full_like(variance, x.shape[1])
            columns = [error, variance, per_window.double(), tokens]
            rows.append(torch.stack(columns, dim=1).cpu().numpy())
        sums = pd.DataFrame(np.concatenate(rows), columns=["error", "variance", "active", "tokens"])
        self.table = sums.groupby(np.asarray(documents), sort=True).sum()
        seen = count.clamp_min(1)
        self.latents = pd.DataFrame(
            {
                "latent": np.arange(sae.n_latents, dtype=np.int32),
                "density": (count / self.table["tokens"].sum()).numpy(),
                "mean_active": (total / seen).numpy(),
                "max": largest.numpy(),
            }
        )

    def _batches(self, windows: np.ndarray, *points: str):
        per_window = self.sae.n_latents * self._window_len
        size = max(1, min(WINDOWS_AT_ONCE, LATENTS_AT_ONCE // per_window))
        for first in range(0, len(windows), size):
            part = windows[first : first + size]
            read = {point: self._read(point, part) for point in {*points}}
            yield tuple(read[point] for point in points)

    def _read(self, point: str, windows: np.ndarray) -> Tensor:
        values = read_activations(self.chunks, point, self.sae.about["layer"], windows)[:, 1:]
        return torch.from_numpy(values).to(self.sae.device, self.sae.dtype)

    def _mean(self, point: str, windows: np.ndarray) -> Tensor:
        total, tokens = 0.0, 0
        for (x,) in self._batches(windows, point):
            total = total + x.double().sum((0, 1))
            tokens += x.shape[0] * x.shape[1]
        return total / tokens


@torch.inference_mode()
def run_sums(
    sae: SparseAutoencoder,
    model: Transformer,
    tokens: np.ndarray,
    documents: np.ndarray,
    mean: Tensor,
    batch_windows: int,
) -> pd.DataFrame:
    """Run the model on its own activation, the reconstruction, zero and the mean.

    Parameters
    ----------
    sae : SparseAutoencoder
    model : Transformer
    tokens : int [W, T]
        Test windows.
    documents : [W]
    mean : Tensor [d_out]
        Mean train activation of what the dictionary writes.
    batch_windows : int

    Returns
    -------
    DataFrame
        A row per document: ``loss_{variant}`` of `VARIANTS` and ``kl`` (of the model's prediction from that on the
        reconstruction), summed over predicted tokens, in nats; ``agree``: predicted tokens with the same most likely
        token; ``predicted``: their number.
    """
    hooks = _variants(sae, mean)
    rows: list[dict[str, np.ndarray]] = []
    for first in range(0, len(tokens), batch_windows):
        batch = torch.from_numpy(tokens[first : first + batch_windows].astype(np.int64))
        batch = batch.to(model.device)
        start: dict[int, Tensor] = {}
        base = model.forward(
            batch, {"resid_pre": lambda x, at, s=start: s.update({at: x})}, logits=False
        )
        resume = (sae.about["layer"], start[sae.about["layer"]])
        finals = {"model": base}
        for name, given in hooks.items():
            finals[name] = model.forward(batch, given, logits=False, resume=resume)
        rows.append(compare_runs(model, finals, batch[:, 1:]))
    table = pd.DataFrame({key: np.concatenate([row[key] for row in rows]) for key in rows[0]})
    return table.groupby(np.asarray(documents), sort=True).sum()


def evaluation_table(
    sums: pd.DataFrame,
    metrics: Sequence[Metric],
    layer: int,
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Return one row per metric with a percentile interval over documents (see `COLUMNS`)."""
    weights = document_weights(len(sums), bootstrap, rng_for(seed, "evaluate dictionary", layer))
    tokens = int(sums["tokens" if "tokens" in sums else "predicted"].sum())
    rows = []
    for name, needed, combine, denominator in metrics:
        values = replicate(
            sums[list(needed)].to_numpy(np.float64), weights, lambda t, c=combine: c(*t.T)
        )
        low, high = interval(values, confidence)
        rows.append((layer, name, values[0], low, high, denominator, len(sums), tokens))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def dead_share(latents: pd.DataFrame, layer: int, documents: int, tokens: int) -> pd.DataFrame:
    """Return the row of the share of latents that no test token activates; it has no interval."""
    value = float((latents["density"] == 0).mean())
    row = (layer, "dead_share", value, np.nan, np.nan, "latents", documents, tokens)
    return pd.DataFrame([row], columns=list(COLUMNS))


def _variants(sae: SparseAutoencoder, mean: Tensor) -> dict[str, Hooks]:
    layer, writes = sae.about["layer"], sae.about.get("writes") or sae.about["reads"]

    def constant(value: Tensor) -> Hooks:
        def write(x: Tensor, at: int) -> Tensor | None:
            if at != layer:
                return None
            x = x.clone()
            x[:, 1:] = value.to(x.dtype).view(x.shape[2:])
            return x

        return {writes: write}

    return {
        "reconstruction": replace_by_reconstruction(sae),
        "zero": constant(torch.zeros_like(mean)),
        "mean": constant(mean),
    }


def compare_runs(
    model: Transformer, finals: dict[str, Tensor], targets: Tensor
) -> dict[str, np.ndarray]:
    """Return sums per window, a bounded number of vocabulary rows at a time."""
    flat = {name: x[:, :-1].flatten(0, 1) for name, x in finals.items()}
    size = max(1, LOGITS_PER_CHUNK // model.config.vocab_size)
    wanted = targets.flatten()
    parts: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        parts.setdefault(name, []).append(values.double())

    for first in range(0, len(wanted), size):
        piece = slice(first, first + size)
        logs = {n: model.unembed(x[piece]).float().log_softmax(-1) for n, x in flat.items()}
        for name, log in logs.items():
            add(f"loss_{name}", -log.gather(1, wanted[piece, None])[:, 0])
        base, other = logs["model"], logs["reconstruction"]
        add("kl", (base.exp() * (base - other)).sum(-1))
        add("agree", base.argmax(-1) == other.argmax(-1))
    sums = {n: torch.cat(v).view(targets.shape).sum(1).cpu().numpy() for n, v in parts.items()}
    return sums | {"predicted": np.full(len(targets), targets.shape[1], np.float64)}


def mean_activation(
    chunks: Sequence[str | Path], point: str, layer: int, windows: np.ndarray
) -> Tensor:
    """Return the mean over windows and positions (BOS left out) of an activation, float64 ``[d]``."""
    total, tokens = 0.0, 0
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        part = read_activations(chunks, point, layer, windows[first : first + WINDOWS_AT_ONCE])[
            :, 1:
        ]
        total = total + part.astype(np.float64).sum((0, 1))
        tokens += part.shape[0] * part.shape[1]
    return torch.from_numpy(total / tokens)


def evaluate(
    sae: SparseAutoencoder,
    model: Transformer,
    chunks: Sequence[str | Path],
    windows: dict[str, np.ndarray],
    causal_tokens: np.ndarray,
    documents: dict[str, np.ndarray],
    *,
    batch_windows: int,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluate one dictionary: the table of metrics and the table of latents.

    Parameters
    ----------
    windows : dict
        ``train`` (for the mean activation) and ``test`` windows.
    causal_tokens : int [W, T]
        Test windows that the model runs on.
    documents : dict
        Document of each ``test`` window and of each ``causal`` one.
    """
    options: dict[str, Any] = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    layer, writes = sae.about["layer"], sae.about.get("writes") or sae.about["reads"]
    shards = ShardSums(sae, chunks, windows["test"], documents["test"])
    mean = mean_activation(chunks, writes, layer, windows["train"]).to(model.device, model.dtype)
    runs = run_sums(sae, model, causal_tokens, documents["causal"], mean, batch_windows)
    tokens = int(shards.table["tokens"].sum())
    table = pd.concat(
        [
            evaluation_table(shards.table, SHARD_METRICS, layer, **options),
            dead_share(shards.latents, layer, len(shards.table), tokens),
            evaluation_table(runs, MODEL_METRICS, layer, **options),
        ],
        ignore_index=True,
    )
    return table, shards.latents.assign(layer=np.int32(layer))


def evaluate_layers(
    weights: str | Path,
    model: Transformer,
    windows: str | Path,
    chunks: Sequence[str | Path],
    *,
    dictionary: str,
    causal_windows: int,
    batch_windows: int,
    bootstrap: int,
    confidence: float,
    seed: int,
    evaluation: str | Path,
    latents: str | Path,
) -> None:
    """Evaluate every layer of a folder of dictionaries and write both tables (see `evaluate`)."""
    table = read_windows(windows)
    split = {name: np.flatnonzero(table.splits == SPLITS.index(name)) for name in SPLITS}
    causal = split["test"][:causal_windows]
    documents = {"test": table.docs[split["test"]], "causal": table.docs[causal]}
    parts = []
    for layer in progress(layers_of(weights), desc="evaluate", unit="layers"):
        sae = read_dictionary(
            weights, layer, config=model.config, device=str(model.device), dtype=model.dtype
        )
        parts.append(
            evaluate(
                sae, model, chunks, split, table.tokens[causal], documents,
                batch_windows=batch_windows, bootstrap=bootstrap, confidence=confidence, seed=seed,
            )
        )  # fmt: skip
    facts = provenance(
        dictionary=dictionary,
        weights=read_provenance(Path(weights) / INDEX),
        model_hash=model.hash,
        causal_windows=len(causal),
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
    )
    write_table(evaluation, pd.concat([t for t, _ in parts], ignore_index=True), facts)
    write_table(latents, pd.concat([t for _, t in parts], ignore_index=True), facts)
