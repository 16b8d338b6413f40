"""Directions of latents, and random ones, which stand in for latents as a control that no dictionary has learned.

A control is a random unit vector u of the activations' space, active where ``x u`` exceeds the threshold at which it
fires on as many train tokens as the latent that it is matched to; its activation is the excess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from mechatlas.capture.draws import hash_of
from mechatlas.capture.patterns import activation_file
from mechatlas.corpus.windows import SPLITS, Windows
from mechatlas.dictionaries.code_files import Codes
from mechatlas.io import read_arrays, read_json, read_provenance, rng_for, seed_for

#: Train windows from which thresholds are taken.
THRESHOLD_WINDOWS = 1000
#: Windows that are read at once.
WINDOWS_PER_READ = 256


def decoder_directions(weights: str | Path, layer: int) -> np.ndarray:
    """Return the decoder of a layer's dictionary, a row for each latent; without torch if it is in our own format.

    Parameters
    ----------
    weights : path
        Folder of dictionaries (`mechatlas.dictionaries.collection`).
    layer : int
    """
    path = Path(weights) / f"layer_{layer}.safetensors"
    if path.exists():
        said = read_provenance(path)["dictionary"]
        name = "encoder" if said["tied"] else "decoder"
        return read_arrays(path, [name])[name]
    from mechatlas.dictionaries.collection import read_dictionary

    return read_dictionary(weights, layer).decoder.float().numpy()


def random_directions(layer: int, count: int, width: int, seed: int) -> np.ndarray:
    """Return ``count`` random unit vectors of a layer, float32 [count, width]."""
    vectors = rng_for(seed, "random directions", layer).standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def direction_codes(
    chunks: Sequence[str | Path],
    point: str,
    layer: int,
    corpus: Windows,
    latents: Sequence[int],
    rates: Sequence[float],
    seed: int,
) -> list[Codes]:
    """Return the activations of one random direction for each of some latents, which gives it its number.

    Parameters
    ----------
    chunks : sequence of folders
        The capture.
    point, layer
        Where the latents' dictionary reads.
    corpus : Windows
    latents : sequence of int
    rates : sequence of float
        Their firing rates on train tokens, which the directions are given too.
    seed : int
    """
    if not len(latents):
        return []
    directions, thresholds, found = None, None, []
    for start, x in _activations(chunks, point, layer):
        if directions is None:
            directions = random_directions(layer, len(latents), x.shape[-1], seed)
            thresholds = _thresholds(chunks, point, layer, corpus, directions, rates, seed)
        # Latent by latent in the order of windows, as codes are sorted.
        excess = np.moveaxis(_project(x, directions) - thresholds, -1, 0)
        excess[:, :, 0] = 0
        line, window, position = np.nonzero(excess > 0)
        found.append((line, window + start, position, excess[line, window, position]))
    line, window, position, value = (np.concatenate(column) for column in zip(*found, strict=True))
    parts = []
    for place, latent in enumerate(latents):
        mine = line == place
        offsets = np.array([0, int(mine.sum())])
        fields = (window[mine].astype(np.int32), position[mine].astype(np.int32))
        parts.append(Codes(latent, offsets, *fields, value[mine].astype(np.float32)))
    return parts


def _project(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    # In double precision and window by window, so that the result does not depend on what is read together.
    return np.stack([window @ directions.T.astype(np.float64) for window in x.astype(np.float64)])


def _thresholds(
    chunks: Sequence[str | Path],
    point: str,
    layer: int,
    corpus: Windows,
    directions: np.ndarray,
    rates: Sequence[float],
    seed: int,
) -> np.ndarray:
    train = np.flatnonzero(corpus.splits == SPLITS.index("train"))
    order = np.argsort(hash_of(seed_for(seed, "threshold windows"), train), kind="stable")
    wanted = np.sort(train[order[:THRESHOLD_WINDOWS]])
    parts = []
    for start, x in _activations(chunks, point, layer):
        here = wanted[(wanted >= start) & (wanted < start + len(x))] - start
        parts.append(_project(x[here], directions)[:, 1:].reshape(-1, len(directions)))
    known = np.concatenate(parts)
    return np.array([np.quantile(known[:, i], 1 - min(1.0, rate)) for i, rate in enumerate(rates)])


def _activations(
    chunks: Sequence[str | Path], point: str, layer: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of a first window and the activations of it and the next ones, float32 [n, T, d]."""
    for chunk in chunks:
        index = read_json(Path(chunk) / "index.json")
        first, stop, length = index["first"], index["stop"], index["window_len"]
        with safe_open(Path(chunk) / activation_file(point, layer), framework="numpy") as handle:
            stored = handle.get_slice("activations")
            for start in range(first, stop, WINDOWS_PER_READ):
                end = min(start + WINDOWS_PER_READ, stop)
                rows = stored[(start - first) * length : (end - first) * length]
                yield start, rows.reshape(end - start, length, -1)
