"""Codes: the activations of a dictionary's latents on a corpus, kept sparse and sorted by latent.

A chunk of windows has one safetensors file for each layer: ``offsets`` int64 [n_latents + 1], and for every positive
activation ``window`` int32, ``position`` int32 and ``value`` float32, sorted by latent, window and position. Position 0
(BOS) never counts. Chunks follow one another in windows, so what is known of one latent on the whole corpus is a slice
of each chunk's file, and nothing that is computed from it depends on how windows were cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechatlas.io import UserError, read_arrays, read_json

DTYPES = {"window": np.int32, "position": np.int32, "value": np.float32}
FIELDS = tuple(DTYPES)
#: Activations held at once where all latents are gone through, unless one latent alone has more.
ACTIVATIONS_PER_BLOCK = 2**22


def code_file(layer: int) -> str:
    """Return the name of a layer's codes in a chunk folder."""
    return f"codes.layer_{layer}.safetensors"


@dataclass(frozen=True)
class Codes:
    """Activations of the latents ``first`` to ``first + len(offsets) - 2``, sorted by latent, window and position.

    Attributes
    ----------
    first : int
    offsets : int64 [k + 1]
        Where each latent's activations begin.
    window, position : int32 [n]
    value : float32 [n]
        Positive.
    """

    first: int
    offsets: np.ndarray
    window: np.ndarray
    position: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def latents(self) -> np.ndarray:
        """Latent of every activation, counted from ``first``: int64 [n]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def of(self, latent: int) -> Codes:
        """Return the activations of one latent."""
        place = latent - self.first
        start, stop = self.offsets[place : place + 2]
        part = slice(start, stop)
        return Codes(
            latent,
            np.array([0, stop - start]),
            self.window[part],
            self.position[part],
            self.value[part],
        )


def read_index(chunks: Sequence[str | Path], windows: int) -> dict:
    """Return what the chunks' ``index.json`` agree in: ``dictionary``, ``point``, ``window_len``, ``latents`` by layer.

    Raises
    ------
    UserError
        If chunks are missing, do not cover the windows in order, or were encoded with different dictionaries.
    """
    if not chunks:
        raise UserError("no codes to merge; run capture_latents first")
    indices = [read_json(Path(chunk) / "index.json") for chunk in chunks]
    edges = [0, *(index["stop"] for index in indices)]
    if [index["first"] for index in indices] != edges[:-1] or edges[-1] != windows:
        raise UserError(
            f"{Path(chunks[0]).parent}: the codes cover windows up to {edges[-1]} of {windows}, or not in order; "
            "delete the folder and run again"
        )
    common = [{k: v for k, v in i.items() if k not in ("first", "stop")} for i in indices]
    for chunk, settings in zip(chunks, common, strict=True):
        if settings != common[0]:
            raise UserError(
                f"{chunk} was encoded with another dictionary than {chunks[0]}; delete it and run again"
            )
    return common[0]


def read_offsets(chunks: Sequence[str | Path], layer: int) -> np.ndarray:
    """Return the offsets of all latents in every chunk's file, int64 [chunks, n_latents + 1].

    Raises
    ------
    UserError
        If a file is missing or damaged, or the files hold different numbers of latents.
    """
    found = [read_arrays(Path(c) / code_file(layer), ["offsets"])["offsets"] for c in chunks]
    for chunk, offsets in zip(chunks, found, strict=True):
        if len(offsets) != len(found[0]):
            raise UserError(
                f"{chunk} holds {len(offsets) - 1} latents of layer {layer}, {chunks[0]} holds {len(found[0]) - 1}; "
                "delete the folder of codes and run again"
            )
    return np.stack(found)


def read_codes(
    chunks: Sequence[str | Path],
    layer: int,
    first: int,
    stop: int,
    offsets: np.ndarray | None = None,
) -> Codes:
    """Read the activations of the latents ``first`` to ``stop`` (exclusive) on all windows.

    Parameters
    ----------
    chunks : sequence of folders
        In the order of their windows.
    layer, first, stop : int
    offsets : int64 [chunks, n_latents + 1], optional
        What `read_offsets` gives, lest it be read again.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """
    offsets = read_offsets(chunks, layer) if offsets is None else offsets
    parts = [
        _slice(Path(chunk) / code_file(layer), *edges[[first, stop]])
        for chunk, edges in zip(chunks, offsets, strict=True)
    ]
    counts = np.diff(offsets[:, first : stop + 1], axis=1)
    fields = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
    if len(parts) > 1:
        latent = np.concatenate([np.repeat(np.arange(stop - first), row) for row in counts])
        order = np.argsort(latent, kind="stable")
        fields = {name: values[order] for name, values in fields.items()}
    return Codes(first, np.r_[0, np.cumsum(counts.sum(0))], **fields)


def blocks(
    chunks: Sequence[str | Path], layer: int, limit: int = ACTIVATIONS_PER_BLOCK
) -> Iterator[Codes]:
    """Yield the activations of all latents, some latents at a time: at most ``limit`` unless one has more."""
    offsets = read_offsets(chunks, layer)
    ends = offsets.sum(0)
    first, latents = 0, len(ends) - 1
    while first < latents:
        stop = int(np.searchsorted(ends, ends[first] + limit, side="right")) - 1
        stop = min(max(stop, first + 1), latents)
        yield read_codes(chunks, layer, first, stop, offsets)
        first = stop


def _slice(path: Path, start: int, stop: int) -> dict[str, np.ndarray]:
    if start == stop:
        return {name: np.zeros(0, DTYPES[name]) for name in FIELDS}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            return {name: handle.get_slice(name)[int(start) : int(stop)] for name in FIELDS}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is missing, damaged or truncated ({error}); delete its folder and run snakemake again"
        ) from error
