"""Capture shards of activations made from a known sparse dictionary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mechatlas.capture.patterns import activation_file
from mechatlas.capture.shards import ShardWriter

WINDOW_LEN = 17


def directions(latents: int, d: int, seed: int = 0) -> np.ndarray:
    """Return random unit rows [latents, d]."""
    rows = np.random.default_rng(seed).normal(size=(latents, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(
    planted_rows: np.ndarray, tokens: int, active: int, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return activations [tokens, d] and their codes [tokens, latents]: ``active`` latents each, plus an offset."""
    rng = np.random.default_rng(seed)
    latents, d = planted_rows.shape
    chosen = np.argsort(rng.random((tokens, latents)), axis=1)[:, :active]
    codes = np.zeros((tokens, latents))
    np.put_along_axis(codes, chosen, rng.uniform(1.0, 2.0, chosen.shape), axis=1)
    offset = np.random.default_rng(9).normal(size=d)
    return (3 * (codes @ planted_rows) + offset).astype(np.float32), codes


def write_chunk(
    folder: Path,
    places: dict[tuple[str, int], np.ndarray],
    first: int = 0,
    window_len: int = WINDOW_LEN,
) -> Path:
    """Write one chunk with activations [windows * window_len, d] for each place."""
    folder.mkdir(parents=True, exist_ok=True)
    for (point, layer), rows in places.items():
        windows = np.arange(first, first + len(rows) // window_len, dtype=np.int32)
        arrays = {"activations": ("float32", rows.shape), "windows": ("int32", windows.shape)}
        shard = ShardWriter(folder / activation_file(point, layer), arrays, {})
        shard.write("activations", rows)
        shard.write("windows", windows)
        shard.close()
    return folder
