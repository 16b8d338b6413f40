"""Codes in the format of delphi (EleutherAI): ``latents/{hookpoint}/{start}_{end}.safetensors``, end included.

Each file holds the activations of some latents: ``locations`` [n, 3] (row, position, latent counted from start; uint16
where that suffices, else uint32), ``activations`` float16 [n] and ``tokens`` int64 [rows, length], the same in every
file. Rows are windows without their BOS token, so a position there is ours less one. ``config.json`` stands beside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.dictionaries.code_files import Codes, read_codes, read_offsets
from mechatlas.io import UserError, atomic_path, read_arrays, write_arrays, write_json

FILE = re.compile(r"(\d+)_(\d+)\.safetensors")


def write_delphi(
    folder: str | Path,
    chunks: Sequence[str | Path],
    layer: int,
    tokens: np.ndarray,
    *,
    splits: int = 5,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the codes of a layer as delphi reads them; the folder appears whole.

    Parameters
    ----------
    folder : path
        ``latents/{hookpoint}``.
    chunks : sequence of folders
        Of codes (`mechatlas.dictionaries.code_files`).
    layer : int
    tokens : int [W, T]
        Of all windows, BOS first.
    splits : int
        Files among which the latents are divided.
    about : mapping, optional
        Further entries of config.json, such as ``model_name``.
    """
    offsets = read_offsets(chunks, layer)
    edges = np.linspace(0, offsets.shape[1] - 1, splits + 1).astype(int)
    with atomic_path(folder, folder=True) as temporary:
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            if start == stop:
                continue
            codes = read_codes(chunks, layer, int(start), int(stop), offsets)
            place = np.stack([codes.window, codes.position - 1, codes.latents], axis=1)
            order = np.lexsort(place.T[::-1])
            dtype = np.uint16 if place.max(initial=0) < 2**16 else np.uint32
            arrays = {
                "locations": place[order].astype(dtype),
                "activations": codes.value[order].astype(np.float16),
                "tokens": np.asarray(tokens)[:, 1:].astype(np.int64),
            }
            write_arrays(temporary / f"{start}_{stop - 1}.safetensors", arrays, {})
        length = int(tokens.shape[1] - 1)
        config = {"cache_ctx_len": length, "n_tokens": length * len(tokens), "n_splits": splits}
        write_json(temporary / "config.json", {**config, **(about or {})}, {})


def read_delphi(folder: str | Path) -> Iterator[tuple[Codes, np.ndarray]]:
    """Yield the codes of each file of a delphi cache, and its tokens int64 [rows, length + 1] with -1 for BOS.

    Raises
    ------
    UserError
        If there are no such files, one is damaged or lacks an array, or its locations do not fit its tokens.
    """
    folder = Path(folder)
    found = {FILE.fullmatch(path.name): path for path in folder.glob("*_*.safetensors")}
    files = sorted((int(m[1]), int(m[2]), path) for m, path in found.items() if m)
    if not files:
        raise UserError(
            f"{folder} holds no files such as 0_26213.safetensors; give the folder of one hookpoint"
        )
    for start, end, path in files:
        arrays = read_arrays(path, ["locations", "activations", "tokens"])
        yield _codes(arrays, start, end, path)


def _codes(
    arrays: Mapping[str, np.ndarray], start: int, end: int, path: Path
) -> tuple[Codes, np.ndarray]:
    place, tokens = arrays["locations"].astype(np.int64), arrays["tokens"]
    if place.ndim != 2 or place.shape[1] != 3 or len(place) != len(arrays["activations"]):
        raise UserError(f"{path}: locations and activations do not belong together; cache again")
    limits = (*tokens.shape, end - start + 1)
    if (place < 0).any() or (place >= limits).any():
        raise UserError(
            f"{path}: locations reach beyond its {limits[0]} rows, {limits[1]} tokens or {limits[2]} latents; "
            "cache again"
        )
    window, position, latent = place.T
    order = np.lexsort((position, window, latent))
    counts = np.bincount(latent, minlength=limits[2])
    codes = Codes(
        start,
        np.r_[0, np.cumsum(counts)],
        window[order].astype(np.int32),
        position[order].astype(np.int32) + 1,
        arrays["activations"][order].astype(np.float32),
    )
    bos = np.full((len(tokens), 1), -1, dtype=np.int64)
    return codes, np.concatenate([bos, tokens], axis=1)
