"""Made-up captures for tests of latents: windows, activation shards cut into chunks, and dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mechatlas.capture.patterns import activation_file
from mechatlas.capture.shards import ShardWriter
from mechatlas.corpus.windows import Windows, write_windows
from mechatlas.io import write_json

POINT = "resid_mid"


def make_windows(count: int = 40, length: int = 12, vocabulary: int = 30, seed: int = 0) -> Windows:
    """Return windows of random tokens, two to a document, splits by document."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, vocabulary, (count, length)).astype(np.int32)
    tokens[:, 0] = 0
    documents = np.arange(count) // 2
    splits = np.array([0, 1, 2, 0, 2])[documents % 5].astype(np.int8)
    docs = np.array([f"doc{d}" for d in documents], dtype=object)
    return Windows(tokens, docs, splits, np.zeros(count, np.int32), np.zeros(count, bool))


def write_capture(
    folder: Path, windows: Windows, layers: Sequence[np.ndarray], chunks: int
) -> tuple[Path, list[Path]]:
    """Write windows.parquet and capture chunks that hold ``layers`` (float32 [W, T, d] each)."""
    path = folder / "windows.parquet"
    write_windows(path, windows)
    edges = np.linspace(0, len(windows), chunks + 1).astype(int)
    length, folders = windows.tokens.shape[1], []
    for number, (first, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        chunk = folder / f"{number:04d}"
        chunk.mkdir(parents=True)
        index = {"first": int(first), "stop": int(stop), "window_len": length}
        write_json(chunk / "index.json", index, {})
        for layer, values in enumerate(layers):
            rows = values[first:stop].reshape(-1, values.shape[-1])
            arrays = {
                "activations": ("float32", rows.shape),
                "windows": ("int32", (int(stop - first),)),
            }
            shard = ShardWriter(chunk / activation_file(POINT, layer), arrays, {})
            shard.write("activations", rows)
            shard.write("windows", np.arange(first, stop))
            shard.close()
        folders.append(chunk)
    return path, folders
