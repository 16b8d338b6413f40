"""Encoding of activation shards: what a dictionary makes of them, sparse, one chunk of windows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechatlas.capture.patterns import activation_file
from mechatlas.dictionaries.activations import TopK
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.code_files import code_file
from mechatlas.io import UserError, atomic_path, progress, read_json, write_arrays, write_json

#: Tokens that are encoded at once, rounded to whole windows.
BATCH_TOKENS = 4096


def encode_chunk(
    dictionaries: Iterable[tuple[int, SparseAutoencoder]],
    chunk: str | Path,
    folder: str | Path,
    *,
    dictionary: str,
    facts: Mapping[str, Any],
) -> None:
    """Encode the activation shards of a capture chunk and write the codes of all layers, whole or not at all.

    Parameters
    ----------
    dictionaries : iterable of (layer, dictionary)
        Read when it is their turn. Each says in `about` at which hook point it ``reads``, all the same.
    chunk : path
        Folder of a capture, with ``activations.{point}.layer_{l}.safetensors``.
    folder : path
        Where the codes go; see `mechatlas.dictionaries.code_files`.
    dictionary : str
        Identifies the dictionary, so that codes of different ones are not merged.
    facts : mapping
        Provenance.

    Notes
    -----
    Batches are cut from the windows of the whole run and padded with zeros where they reach beyond the chunk, so that
    a window's codes do not depend on the chunks. Memory is bounded by a batch and the codes of one chunk and layer.

    Raises
    ------
    UserError
        If a shard is missing or damaged, its width is not the dictionary's, or it holds values that are not finite.
    """
    index = read_json(Path(chunk) / "index.json")
    first, stop, length = index["first"], index["stop"], index["window_len"]
    with atomic_path(folder, folder=True) as temporary, torch.inference_mode():
        latents, points, units = {}, set(), {}
        for layer, sae in progress(dictionaries, desc="encode", unit="layers"):
            point = sae.about["reads"]
            points.add(point)
            units |= {key: sae.about[key] for key in ("unit",) if key in sae.about}
            path = Path(chunk) / activation_file(point, layer)
            arrays = _encode_shard(sae, path, first, stop, length)
            latents[str(layer)] = len(arrays["offsets"]) - 1
            write_arrays(temporary / code_file(layer), arrays, facts)
        if len(points) != 1:
            raise UserError(
                f"dictionary {dictionary} reads at {', '.join(sorted(points)) or 'no hook point'}; "
                "layers of one dictionary must read at one point"
            )
        about = {"dictionary": dictionary, "point": points.pop(), "window_len": length}
        about |= {"latents": latents, **units}
        write_json(temporary / "index.json", {"first": first, "stop": stop, **about}, facts)


def _encode_shard(
    sae: SparseAutoencoder, path: Path, first: int, stop: int, length: int
) -> dict[str, np.ndarray]:
    """Return the arrays of a layer's codes."""
    parts = [[np.zeros(0, np.int64)] * 3 + [np.zeros(0, np.float32)]]
    for start, x in _batches(path, first, stop, length):
        row, latent, value = (
            part.cpu().numpy() for part in active_places(sae, x.to(sae.device, sae.dtype))
        )
        window, position = start + row // length, row % length
        kept = (position > 0) & (window >= first) & (window < stop)
        parts.append([latent[kept], window[kept], position[kept], value[kept]])
    latent, window, position, value = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    order = np.argsort(latent, kind="stable")
    counts = np.bincount(latent, minlength=sae.n_latents)
    return {
        "offsets": np.r_[0, np.cumsum(counts)].astype(np.int64),
        "window": window[order].astype(np.int32),
        "position": position[order].astype(np.int32),
        "value": value[order].astype(np.float32),
    }


def active_places(sae: SparseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return token, latent and value of every positive activation of ``x [N, d]``, sorted by token."""
    if not isinstance(sae.activation, TopK):
        return sae.active(x)
    values, latents = sae.encode_topk(x)
    token, place = (values > 0).nonzero(as_tuple=True)
    return token, latents[token, place], values[token, place]


def _batches(path: Path, first: int, stop: int, length: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of the first window of a batch and its activations [n, d], zeros for windows of other chunks."""
    size = max(1, BATCH_TOKENS // length)
    try:
        with safe_open(path, framework="pt") as handle:
            stored = handle.get_slice("activations")
            rows, width = stored.get_shape()
            if rows != (stop - first) * length:
                raise UserError(
                    f"{path} holds {rows} tokens instead of {(stop - first) * length}; delete its folder and rerun"
                )
            for start in range(first // size * size, stop, size):
                inside = range(max(start, first), min(start + size, stop))
                read = stored[(inside.start - first) * length : (inside.stop - first) * length]
                if not torch.isfinite(read).all():
                    raise UserError(
                        f"{path} holds activations that are not finite (windows {inside.start} to "
                        f"{inside.stop - 1}); try dtype: float32, and capture again"
                    )
                x = read.new_zeros(size * length, width)
                x[(inside.start - start) * length :][: len(read)] = read
                yield start, x
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is missing, damaged or truncated ({error}); is its hook point among capture.activations?"
        ) from error
