"""Activations from capture shards in a shuffled order, in bounded memory, for training.

The stream is a fixed sequence of tokens that depends on the seed alone: in each epoch the windows come in a new order,
``buffer_windows`` of them at a time are read, and the tokens of these are shuffled together. Batch i is the i-th piece
of this sequence. To go on after an interruption nothing has to be restored but the number of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechatlas.capture.patterns import activation_file
from mechatlas.capture.shards import ShardReader
from mechatlas.io import UserError, read_arrays, rng_for
from mechatlas.models.transfer import staging, to_device

#: A hook point and a layer.
Place = tuple[str, int]


@dataclass(frozen=True)
class _Shards:
    """The open files of one chunk, and where its windows are in them."""

    readers: dict[Place, ShardReader]
    paths: dict[Place, Path]
    windows: np.ndarray


class ActivationStream:
    """Batches of the activations of the same tokens at one or several places.

    Parameters
    ----------
    chunks : sequence of folders
        Chunk folders of `mechatlas.capture.sweep.capture_chunk`.
    places : sequence of (point, layer)
        All must be among the captured points.
    windows : sequence of int
        Windows that are used, such as those of train documents.
    batch_tokens : int
    buffer_windows : int
        Windows whose tokens are shuffled together; with ``batch_tokens`` this bounds the memory.
    seed : int
    first_position : int
        Positions before it are left out; 1 leaves out BOS.
    device : str or torch.device

    Raises
    ------
    UserError
        If no window is left, or a shard is missing or damaged, lacks a window or has another window length.
    """

    def __init__(
        self,
        chunks: Sequence[str | Path],
        places: Sequence[Place],
        windows: Sequence[int] | np.ndarray,
        *,
        batch_tokens: int,
        buffer_windows: int = 256,
        seed: int = 0,
        first_position: int = 1,
        device: Any = "cpu",
    ) -> None:
        self.places = tuple(places)
        self.batch_tokens, self.seed, self.device = batch_tokens, seed, device
        self.first_position = first_position
        self._shards = [_open(chunk, self.places) for chunk in chunks]
        self._home = _locate(self._shards, np.asarray(windows, np.int64))
        self.buffer_windows = min(buffer_windows, len(self._home))
        self.widths, self.window_len = self._shapes()
        #: Tokens of a window that are used.
        self.tokens_per_window = self.window_len - first_position
        if self.tokens_per_window < 1:
            raise UserError(
                f"windows of {self.window_len} tokens leave none after the first {first_position}"
            )
        #: Bytes of activations that were read from disk.
        self.bytes_read = 0
        self._block: tuple[int, dict[Place, Tensor]] | None = None

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens that the stream holds once."""
        return len(self._home) * self.tokens_per_window

    def batch(self, step: int) -> dict[Place, Tensor]:
        """Return batch ``step`` (from 0, without end), ``[batch_tokens, d]`` float32 for each place.

        Raises
        ------
        UserError
            If an activation is not finite, or a shard cannot be read.
        """
        start, stop = step * self.batch_tokens, (step + 1) * self.batch_tokens
        parts: dict[Place, list[Tensor]] = {place: [] for place in self.places}
        while start < stop:
            number, offset = self._find(start)
            block = self._read(number)
            length = len(next(iter(block.values())))
            take = min(stop - start, length - offset)
            for place in self.places:
                parts[place].append(block[place][offset : offset + take])
            start += take
        return {place: p[0] if len(p) == 1 else torch.cat(p) for place, p in parts.items()}

    def _find(self, token: int) -> tuple[int, int]:
        """Return the block that holds a token of the sequence, counted over all epochs, and its offset there."""
        epoch, rest = divmod(token, self.tokens_per_epoch)
        block, offset = divmod(rest, self.buffer_windows * self.tokens_per_window)
        return epoch * self._blocks_per_epoch + block, offset

    @property
    def _blocks_per_epoch(self) -> int:
        return -(-len(self._home) // self.buffer_windows)

    def _read(self, number: int) -> dict[Place, Tensor]:
        if self._block is None or self._block[0] != number:
            # The old block goes first, so that there are never two.
            self._block = None
            self._block = number, self._load(number)
        return self._block[1]

    def _load(self, number: int) -> dict[Place, Tensor]:
        epoch, block = divmod(number, self._blocks_per_epoch)
        order = rng_for(self.seed, "window order", epoch).permutation(len(self._home))
        chosen = order[block * self.buffer_windows : (block + 1) * self.buffer_windows]
        # In the order of the files; the tokens are shuffled anyway.
        chosen = np.sort(chosen)
        tokens = len(chosen) * self.tokens_per_window
        shuffle = rng_for(self.seed, "token order", epoch, block).permutation(tokens)
        return {place: self._gather(place, chosen, shuffle) for place in self.places}

    def _gather(self, place: Place, chosen: np.ndarray, shuffle: np.ndarray) -> Tensor:
        per_window, width = self.tokens_per_window, self.widths[place]
        held = staging((len(shuffle), width), torch.float32, self.device)
        rows = held.numpy()
        for i, (chunk, row) in enumerate(self._home[chosen].tolist()):
            shards = self._shards[chunk]
            first = row * self.window_len + self.first_position
            part = shards.readers[place].rows(first, first + per_window)
            self.bytes_read += part.nbytes
            where = shuffle[i * per_window : (i + 1) * per_window]
            rows[where] = part
        if not np.isfinite(rows).all():
            paths = ", ".join(
                str(self._shards[chunk].paths[place]) for chunk in {*self._home[chosen, 0].tolist()}
            )
            raise UserError(
                f"activations are not finite (NaN or infinite) in {paths}; capture again with another dtype"
            )
        return to_device(held, self.device)

    def _shapes(self) -> tuple[dict[Place, int], int]:
        widths: dict[Place, int] = {}
        lengths: set[int] = set()
        for shards in self._shards:
            for place, reader in shards.readers.items():
                rows, width = reader.shape
                if widths.setdefault(place, width) != width or rows % max(1, len(shards.windows)):
                    raise UserError(
                        f"{shards.paths[place]} has another shape than the shards before it; capture again"
                    )
                if len(shards.windows):
                    lengths.add(rows // len(shards.windows))
        if len(lengths) != 1:
            raise UserError("the chunks hold windows of different lengths; capture them again")
        return widths, lengths.pop()


def _open(chunk: str | Path, places: Sequence[Place]) -> _Shards:
    paths = {place: Path(chunk) / activation_file(*place) for place in places}
    readers, windows = {}, None
    for place, path in paths.items():
        if not path.is_file():
            raise UserError(
                f"{path} does not exist; add {place[0]} to capture.activations and capture again"
            )
        readers[place] = ShardReader(path, "activations")
        held = read_arrays(path, ["windows"])["windows"].astype(np.int64)
        if windows is not None and not np.array_equal(windows, held):
            raise UserError(f"{path} holds other windows than the shards beside it; capture again")
        windows = held
    return _Shards(readers, paths, windows)


def _locate(shards: Sequence[_Shards], wanted: np.ndarray) -> np.ndarray:
    """Return (chunk, row in the chunk) of each wanted window, int64 [n, 2], in order of the windows' numbers."""
    if len(wanted) == 0:
        raise UserError(
            "there is no window to train on; use more documents or another sampling.split"
        )
    found = {
        int(window): (chunk, row)
        for chunk, part in enumerate(shards)
        for row, window in enumerate(part.windows)
    }
    missing = [window for window in wanted.tolist() if window not in found]
    if missing:
        raise UserError(
            f"windows {missing[:5]} are in none of {len(shards)} chunks; capture them first"
        )
    return np.array([found[window] for window in sorted(set(wanted.tolist()))], np.int64)
