"""Reading what capture stored: attention patterns and activations of chunk folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mechatlas.capture.shards import read_rows
from mechatlas.io import UserError, read_arrays


def pattern_file(layer: int) -> str:
    """Return the name of a layer's pattern shard in a chunk folder."""
    return f"patterns.layer_{layer}.safetensors"


def activation_file(point: str, layer: int) -> str:
    """Return the name of the activation shard of a hook point in a chunk folder."""
    return f"activations.{point}.layer_{layer}.safetensors"


def read_patterns(
    chunks: Sequence[str | Path], layer: int, windows: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Read attention patterns of windows of the pattern sample.

    Parameters
    ----------
    chunks : sequence of folders
        All chunks among which the windows are.
    layer : int
    windows : sequence of int
        Window numbers, in any order.

    Returns
    -------
    float32 [n, H, T, T]
        In the order of ``windows``. Entries above the diagonal are zero.

    Raises
    ------
    UserError
        If a window is not in the pattern sample of any chunk, or a shard is missing or damaged.
    """
    return _gather([Path(chunk) / pattern_file(layer) for chunk in chunks], "patterns", windows)


def read_activations(
    chunks: Sequence[str | Path], point: str, layer: int, windows: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Read activations of a hook point, float32 ``[n, T, d]`` in the order of ``windows``."""
    paths = [Path(chunk) / activation_file(point, layer) for chunk in chunks]
    return _gather(paths, "activations", windows)


def _gather(paths: Sequence[Path], name: str, windows: Sequence[int] | np.ndarray) -> np.ndarray:
    windows = np.asarray(windows, dtype=np.int64)
    out: np.ndarray | None = None
    found = np.zeros(len(windows), bool)
    for path in paths:
        held = read_arrays(path, ["windows"])["windows"].astype(np.int64)
        here = np.flatnonzero(np.isin(windows, held))
        if len(here) == 0 and out is not None:
            continue
        # Activation shards have a row per token; patterns have a row per window.
        rows, per_window = _rows(path, name, held, windows[here])
        block = read_rows(path, name, rows).reshape(len(here), *per_window)
        if len(here) == len(windows):
            return block
        if out is None:
            out = np.empty((len(windows), *per_window), np.float32)
        out[here] = block
        found[here] = True
    if out is None or not found.all():
        missing = windows[~found][:5].tolist()
        raise UserError(
            f"{paths[0].name if paths else name}: windows {missing} are in none of {len(paths)} chunks; "
            "ask for windows of the pattern sample, or capture again"
        )
    return out


def _rows(
    path: Path, name: str, held: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as handle:
        shape = tuple(handle.get_slice(name).get_shape())
    order = np.argsort(held)
    place = order[np.searchsorted(held, wanted, sorter=order)]
    if name == "patterns":
        return place, shape[1:]
    length = shape[0] // len(held) if len(held) else 0
    return (place[:, None] * length + np.arange(length)).ravel(), (length, *shape[1:])
