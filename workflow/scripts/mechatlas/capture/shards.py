"""Arrays on disk that are written row by row and read row by row, so that they never have to fit in memory.

The files are ordinary safetensors files (header of 8 bytes, JSON, then the data).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.io import UserError
from mechatlas.io.artefacts import PROVENANCE_KEY

CODES = {"float16": "F16", "float32": "F32", "int32": "I32"}


class ShardWriter:
    """Write a safetensors file of arrays whose shapes are known, a few rows at a time.

    Parameters
    ----------
    path : str or Path
        In a folder that is itself written atomically.
    arrays : mapping
        Name to (dtype name, shape).
    facts : mapping
        Provenance.
    """

    def __init__(
        self,
        path: str | Path,
        arrays: Mapping[str, tuple[str, Sequence[int]]],
        facts: Mapping[str, Any],
    ):
        header: dict[str, Any] = {
            "__metadata__": {PROVENANCE_KEY: json.dumps(facts, allow_nan=False)}
        }
        end = 0
        self._next: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._dtypes = {name: np.dtype(dtype) for name, (dtype, _) in arrays.items()}
        for name, (dtype, shape) in arrays.items():
            start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            header[name] = {
                "dtype": CODES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            self._next[name], self._ends[name] = start, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, rows: np.ndarray) -> None:
        """Append rows to an array."""
        rows = np.ascontiguousarray(rows, dtype=self._dtypes[name])
        self._file.seek(self._data + self._next[name])
        self._file.write(rows.data)
        self._next[name] += rows.nbytes

    def close(self) -> None:
        """Finish the file; every array must have got all its rows."""
        self._file.close()
        assert self._next == self._ends, "an array of a shard has rows that were never written"


class ShardReader:
    """Read ranges of rows of one array of a safetensors file that `ShardWriter` wrote, by plain reads.

    Unlike a mapped file, what was read does not stay in the memory of the process.

    Parameters
    ----------
    path : str or Path
    name : str
        The array.

    Attributes
    ----------
    shape : tuple of int

    Raises
    ------
    UserError
        If the file is missing, truncated or damaged, or has no such array.
    """

    def __init__(self, path: str | Path, name: str):
        self.path = Path(path)
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (closed with the reader)
            length = int.from_bytes(self._file.read(8), "little")
            entry = json.loads(self._file.read(length))[name]
            start, end = entry["data_offsets"]
            self._dtype = np.dtype({code: dtype for dtype, code in CODES.items()}[entry["dtype"]])
            self.shape = tuple(entry["shape"])
            self._start = 8 + length + start
            self._row = int(np.prod(self.shape[1:], dtype=np.int64)) * self._dtype.itemsize
            if (
                self.path.stat().st_size < 8 + length + end
                or end - start != self.shape[0] * self._row
            ):
                raise ValueError("it is shorter than its header says")
        except (OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise self._damaged(error) from error

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return rows ``first`` to ``stop`` (exclusive) in the dtype of the file."""
        self._file.seek(self._start + first * self._row)
        raw = self._file.read((stop - first) * self._row)
        if len(raw) < (stop - first) * self._row:
            raise self._damaged(ValueError("it has become shorter"))
        return np.frombuffer(raw, self._dtype).reshape(stop - first, *self.shape[1:])

    def _damaged(self, error: Exception) -> UserError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UserError(
            f"{self.path} is missing, damaged or truncated ({reason}); delete its folder and run snakemake again"
        )


def read_rows(path: str | Path, name: str, rows: np.ndarray) -> np.ndarray:
    """Read some rows of an array of a safetensors file, as float32.

    Raises
    ------
    UserError
        If the file is missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            stored = handle.get_slice(name)
            if len(rows) == stored.get_shape()[0] and np.array_equal(rows, np.arange(len(rows))):
                return handle.get_tensor(name).astype(np.float32)
            out = np.empty((len(rows), *stored.get_shape()[1:]), np.float32)
            for place, row in enumerate(rows.tolist()):
                out[place] = stored[row : row + 1][0]
            return out
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is missing, damaged or truncated ({error}); delete its folder and run snakemake again"
        ) from error
