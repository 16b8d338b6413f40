"""Zip archives read entry by entry in bounded memory.

The standard library keeps a record of every entry, which takes gigabytes for the millions of questions of one large
StackExchange site; and it keeps one entry of each name, where an archive that was appended to twice holds two.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# PKWARE's APPNOTE, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
LONGEST_COMMENT = 2**16
FULL, UTF8, ENCRYPTED = 0xFFFFFFFF, 0x800, 0x1
STORED, DEFLATED = 0, 8


class DamagedZip(Exception):
    """The archive, or one entry of it, cannot be read."""


def zip_entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every file in an archive, in the archive's order, equal names as often as they occur.

    Raises
    ------
    DamagedZip
        If the archive has no directory (as after a killed run), an entry is damaged or is stored in a way that this
        does not read (only stored and deflated entries without a password are).
    """
    try:
        with open(path, "rb") as directory, open(path, "rb") as data:
            start, count = _directory(directory)
            directory.seek(start)
            for _ in range(count):
                name, method, sizes, checksum, offset = _central(directory)
                if not name.endswith("/"):
                    yield name, _content(data, offset, method, sizes, checksum)
    except (struct.error, OSError, UnicodeDecodeError) as error:
        raise DamagedZip(str(error)) from error


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Return where the central directory begins and how many entries it lists."""
    size = file.seek(0, os.SEEK_END)
    tail_start = max(0, size - END.size - LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise DamagedZip("it has no directory, as if its writing was cut short")
    *_, count, _, start, _ = END.unpack_from(tail, place)
    if count == 0xFFFF or start == FULL:
        file.seek(max(0, tail_start + place - LOCATOR64.size))
        mark, _, end, _ = LOCATOR64.unpack(file.read(LOCATOR64.size))
        if mark == b"PK\6\7":
            file.seek(end)
            *_, count, _, start = END64.unpack(file.read(END64.size))
    return start, count


def _central(file: BinaryIO) -> tuple[str, int, tuple[int, int], int, int]:
    """Read one entry of the directory: name, method, (stored size, size), CRC-32, offset of its local header."""
    fields = CENTRAL.unpack(file.read(CENTRAL.size))
    mark, flags, method, checksum = fields[0], fields[3], fields[4], fields[7]
    stored, size, name_length, extra_length, comment_length = fields[8:13]
    offset = fields[-1]
    if mark != b"PK\1\2":
        raise DamagedZip("its directory is damaged")
    if flags & ENCRYPTED:
        raise DamagedZip("its entries are encrypted")
    name = file.read(name_length).decode("utf-8" if flags & UTF8 else "cp437")
    extra = file.read(extra_length)
    file.seek(comment_length, os.SEEK_CUR)
    size, stored, offset = _long_sizes(extra, [size, stored, offset])
    return name, method, (stored, size), checksum, offset


def _long_sizes(extra: bytes, values: list[int]) -> list[int]:
    """Replace the values that do not fit 32 bits by those of the zip64 field, where they stand in this order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            longer = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return [next(longer, value) if value == FULL else value for value in values]
        extra = extra[4 + length :]
    return values


def _content(
    file: BinaryIO, offset: int, method: int, sizes: tuple[int, int], checksum: int
) -> bytes:
    file.seek(offset)
    fields = LOCAL.unpack(file.read(LOCAL.size))
    if fields[0] != b"PK\3\4":
        raise DamagedZip("an entry is not where the directory says")
    file.seek(fields[-2] + fields[-1], os.SEEK_CUR)
    raw = file.read(sizes[0])
    if method == DEFLATED:
        try:
            raw = zlib.decompress(raw, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise DamagedZip(f"an entry is damaged ({error})") from error
    elif method != STORED:
        raise DamagedZip(f"an entry is compressed by method {method}, which is not read")
    if len(raw) != sizes[1] or zlib.crc32(raw) != checksum:
        raise DamagedZip("an entry is damaged (its checksum differs)")
    return raw
