"""Compiled parts of the direct reader: one call a patch, without the GIL, on addresses.

Importing this module imports numba and compiles or loads from its cache (0.5 s), so it is imported when the first
volume is read. The cache lies beside this file, else in the user's cache folder, as numba decides
(NUMBA_CACHE_DIR overrules); where neither can be written, each process compiles anew.

Nothing here trusts a byte of the shard: `ranges` were checked against its size when it was opened (direct.py), and
a Blosc header is checked against the chunk's own facts before Blosc sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import int32, int64, njit, uint32
from numba.core import cgutils
from numba.extending import intrinsic

NEVER, FIRST, ALWAYS = 0, 1, 2
"""When a chunk's crc32c is computed."""
RAW = -1
"""In place of a Blosc format: chunks are not compressed."""
VERIFIED = np.uint8(1)
CRC_WRONG, HEADER_WRONG, NOT_DECODED = 1, 2, 3
FAULTS = 8
"""A failed call returns chunk x FAULTS + fault, a good one 0."""
CRC_BYTES, HEADER_BYTES = 4, 16
_SHUFFLE, _MEMCPY, _FORMAT_SHIFT = 0x01, 0x02, 5
_KNOWN_FLAGS = 0xF3
"""Flags of a Blosc-1 chunk without bit shuffle and delta (c-blosc, README_CHUNK_FORMAT.rst)."""
_FULL_ROW = 128
"""Bytes along x of a full 64-voxel row of 16 bits; a copy of known length is a handful of instructions."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_BYTE = ir.IntType(8)
_POINTER = _BYTE.as_pointer()


def _compiled(signature: Any) -> Callable[[_Function], _Function]:
    """Compile without the GIL; cached on disk where any place for that can be written."""

    def decorate(function: _Function) -> _Function:
        try:
            compiled: _Function = njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):
            compiled = njit(signature, nogil=True)(function)
        return compiled

    return decorate


# --- what numba has no words for --------------------------------------------------------------------------------


@intrinsic  # type: ignore[untyped-decorator]
def _copy(_: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes from address to address; they do not overlap."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        to, of = (builder.inttoptr(argument, _POINTER) for argument in arguments[:2])
        cgutils.raw_memcpy(builder, to, of, arguments[2], 1)
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_full_row(_: Any, target: Any, source: Any) -> Any:
    """Copy `_FULL_ROW` bytes from address to address."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        to, of = (builder.inttoptr(argument, _POINTER) for argument in arguments)
        cgutils.raw_memcpy(builder, to, of, ir.Constant(ir.IntType(64), _FULL_ROW), 1)
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _clear(_: Any, target: Any, size: Any) -> Any:
    """Set `size` bytes at an address to 0."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(arguments[0], _POINTER), arguments[1], 0)
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _load32(_: Any, address: Any) -> Any:
    """The little-endian uint32 at an address of any alignment."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.load(pointer, align=1)

    return uint32(int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call_getitem(_: Any, function: Any, source: Any, size: Any, start: Any, items: Any, target: Any, room: Any) -> Any:
    """Call `blosc2_getitem` by address; see native.py."""
    word = ir.IntType(32)
    kind = ir.FunctionType(word, [_POINTER, word, word, word, _POINTER, word])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of, to = (builder.inttoptr(arguments[i], _POINTER) for i in (1, 5))
        counts = [builder.trunc(arguments[i], word) for i in (2, 3, 4, 6)]
        return builder.call(call, [of, *counts[:3], to, counts[3]])

    return int32(*[int64] * 7), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call_crc32c(_: Any, function: Any, address: Any, size: Any) -> Any:
    """Call `crc32c_extend` by address; see native.py."""
    word, long = ir.IntType(32), ir.IntType(64)
    kind = ir.FunctionType(word, [word, _POINTER, long])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of = builder.inttoptr(arguments[1], _POINTER)
        return builder.call(call, [ir.Constant(word, 0), of, arguments[2]])

    return uint32(int64, int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call_page_function(_: Any, function: Any, address: Any, size: Any, last: Any) -> Any:
    """Call `madvise` by address; see native.py."""
    word, long = ir.IntType(32), ir.IntType(64)
    kind = ir.FunctionType(word, [_POINTER, long, word])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of = builder.inttoptr(arguments[1], _POINTER)
        return builder.call(call, [of, arguments[2], builder.trunc(arguments[3], word)])

    return int32(int64, int64, int64, int64), generate


# --- crc32c -----------------------------------------------------------------------------------------------------


def _crc_tables() -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Tables for 8 bytes a step (Kounavis and Berry 2005, slicing-by-8) of the polynomial of RFC 3720, reflected."""
    tables = np.zeros((8, 256), dtype=np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        tables[0, byte] = crc
    for step in range(1, 8):
        tables[step] = (tables[step - 1] >> 8) ^ tables[0, tables[step - 1] & 0xFF]
    return tables


_TABLES = _crc_tables().astype(np.int64)  # numba turns mixed signs into floats


@_compiled(int64(int64, int64))
def _crc32c_by_table(address: int, size: int) -> Any:
    crc = int64(0xFFFFFFFF)
    at, end = address, address + size
    while at + 8 <= end:
        low, high = int64(_load32(at)) ^ crc, int64(_load32(at + 4))
        crc = _TABLES[7, low & 0xFF] ^ _TABLES[6, (low >> 8) & 0xFF]
        crc ^= _TABLES[5, (low >> 16) & 0xFF] ^ _TABLES[4, low >> 24]
        crc ^= _TABLES[3, high & 0xFF] ^ _TABLES[2, (high >> 8) & 0xFF]
        crc ^= _TABLES[1, (high >> 16) & 0xFF] ^ _TABLES[0, high >> 24]
        at += 8
    while at < end:
        # Of the four bytes only the first is used; what follows the data of a shard is its crc, so they exist.
        crc = _TABLES[0, (crc ^ int64(_load32(at))) & 0xFF] ^ (crc >> 8)
        at += 1
    return crc ^ 0xFFFFFFFF


@_compiled(int64(int64, int64, int64))
def crc32c(address: int, size: int, function: int) -> Any:
    """crc32c of `size` bytes that four more follow: by the C `function`, by a table where it is 0."""
    if function != 0:
        return int64(_call_crc32c(function, address, size))
    return _crc32c_by_table(address, size)


# --- reading ----------------------------------------------------------------------------------------------------


@_compiled("int64(int64, int64, int64, int64, int64)")
def _header_fits(payload: int, size: int, chunk_bytes: int, item_bytes: int, blosc_format: int) -> Any:
    """Whether a Blosc-1 header says what the array says: nothing else reaches the decoder."""
    if size < HEADER_BYTES:
        return 0
    word = int64(_load32(payload))
    flags, item = (word >> 16) & 0xFF, word >> 24
    decoded, block, packed = int64(_load32(payload + 4)), int64(_load32(payload + 8)), int64(_load32(payload + 12))
    if item != item_bytes or decoded != chunk_bytes or packed != size or flags & ~_KNOWN_FLAGS:
        return 0
    if block < item_bytes or block > decoded or block % item_bytes:
        return 0
    if flags & _MEMCPY:
        return 1 if packed == decoded + HEADER_BYTES else 0
    blocks = (decoded + block - 1) // block
    return 1 if flags >> _FORMAT_SHIFT == blosc_format and HEADER_BYTES + 4 * blocks <= packed else 0


@_compiled("int64(int64, int64, int64, int64, int64, UniTuple(int64, 2), int64, int64)")
def _copy_box(source: int, target: int, depth: int, rows: int, row: int, strides: Any, plane: int, line: int) -> Any:
    """Copy `depth` x `rows` rows of `row` bytes; `strides` (z, y) of the target, `plane` and `line` of the source."""
    for z in range(depth):
        of, to = source + z * plane, target + z * strides[0]
        if row == _FULL_ROW:
            for _ in range(rows):
                _copy_full_row(to, of)
                of += line
                to += strides[1]
        else:
            for _ in range(rows):
                _copy(to, of, row)
                of += line
                to += strides[1]
    return 0


@_compiled(
    "int64(int64, int64[:,::1], uint8[::1], int64[::1], UniTuple(int64, 6), UniTuple(int64, 8), int64, "
    "UniTuple(int64, 2), int64, int64, int64, int64)"
)
def read_box(
    shard: int,
    ranges: Any,
    state: Any,
    held: Any,
    box: Any,
    facts: Any,
    target: int,
    strides: Any,
    scratch: int,
    getitem: int,
    crc_function: int,
    mode: int,
) -> Any:
    """Fill a box of voxels from the chunks that it touches.

    Parameters
    ----------
    shard
        Address of the mapped shard.
    ranges
        `(chunks, 2)` offset and bytes of each chunk with its crc32c, checked; offset -1 where it is missing.
    state
        `(chunks,)` what is known of each chunk: VERIFIED.
    held
        `(chunks,)` address of each decoded chunk in a cache, or 0.
    box
        z0, z1, y0, y1, x0, x1 in voxels.
    facts
        Chunk shape zyx, chunks along zyx, bytes a voxel, Blosc format or RAW.
    target
        Address of the first voxel of the box.
    strides
        z, y in bytes.
    scratch
        Address of room for one decoded chunk; used by this call alone.
    getitem, crc_function
        Addresses; see native.py.
    mode
        NEVER, FIRST or ALWAYS.

    Returns
    -------
    0, or chunk x FAULTS + CRC_WRONG, HEADER_WRONG or NOT_DECODED.
    """
    size_z, size_y, size_x, _, grid_y, grid_x, item, blosc_format = facts
    line, plane = size_x * item, size_y * size_x * item
    chunk_bytes = size_z * plane
    for k in range(box[0] // size_z, (box[1] - 1) // size_z + 1):
        z0, z1 = max(box[0] - k * size_z, 0), min(box[1] - k * size_z, size_z)
        for j in range(box[2] // size_y, (box[3] - 1) // size_y + 1):
            y0, y1 = max(box[2] - j * size_y, 0), min(box[3] - j * size_y, size_y)
            for i in range(box[4] // size_x, (box[5] - 1) // size_x + 1):
                x0, x1 = max(box[4] - i * size_x, 0), min(box[5] - i * size_x, size_x)
                chunk = (k * grid_y + j) * grid_x + i
                row = (x1 - x0) * item
                to = target + (k * size_z + z0 - box[0]) * strides[0] + (j * size_y + y0 - box[2]) * strides[1]
                to += (i * size_x + x0 - box[4]) * item
                offset, stored = ranges[chunk, 0], ranges[chunk, 1]
                if offset < 0:
                    for z in range(z1 - z0):
                        for y in range(y1 - y0):
                            _clear(to + z * strides[0] + y * strides[1], row)
                    continue
                first = z0 * plane + y0 * line
                if held[chunk] != 0:
                    _copy_box(held[chunk] + first + x0 * item, to, z1 - z0, y1 - y0, row, strides, plane, line)
                    continue
                payload, size = shard + offset, stored - CRC_BYTES
                if mode == ALWAYS or (mode == FIRST and not state[chunk] & VERIFIED):
                    if crc32c(payload, size, crc_function) != int64(_load32(payload + size)):
                        return chunk * FAULTS + CRC_WRONG
                    state[chunk] |= VERIFIED
                of = payload + first
                if blosc_format != RAW:
                    if not _header_fits(payload, size, chunk_bytes, item, blosc_format):
                        return chunk * FAULTS + HEADER_WRONG
                    of = scratch
                    needed = (z1 - 1) * plane + y1 * line - first
                    got = _call_getitem(getitem, payload, size, first // item, needed // item, scratch, needed)
                    if got != needed:
                        return chunk * FAULTS + NOT_DECODED
                _copy_box(of + x0 * item, to, z1 - z0, y1 - y0, row, strides, plane, line)
    return 0


@_compiled("int64(int64, int64[:,::1], UniTuple(int64, 6), UniTuple(int64, 8), int64, int64, int64)")
def advise_box(shard: int, ranges: Any, box: Any, facts: Any, madvise: int, advice: int, page: int) -> Any:
    """Give `madvise` the pages of the chunks that a box touches; see `read_box`. Returns their bytes."""
    total = int64(0)
    for k in range(box[0] // facts[0], (box[1] - 1) // facts[0] + 1):
        for j in range(box[2] // facts[1], (box[3] - 1) // facts[1] + 1):
            for i in range(box[4] // facts[2], (box[5] - 1) // facts[2] + 1):
                chunk = (k * facts[4] + j) * facts[5] + i
                offset, stored = ranges[chunk, 0], ranges[chunk, 1]
                if offset < 0:
                    continue
                total += stored
                if madvise != 0:
                    start, end = offset // page * page, offset + stored
                    while start < end:
                        # The kernel reads at most one readahead window a call (mm/readahead.c).
                        step = min(end - start, 131072)
                        _call_page_function(madvise, shard + start, step, advice)
                        start += step
    return total
