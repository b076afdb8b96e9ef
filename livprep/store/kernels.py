"""Compiled parts of the direct reader: one call a patch, without the GIL, on addresses.

Importing this module imports numba and compiles or loads from its cache (0.5 s), so it is imported when the first
volume is read. The cache lies beside this file, else in the user's cache folder, as numba decides
(NUMBA_CACHE_DIR overrules); where neither can be written, each process compiles anew.

Nothing here trusts a byte of the shard: `ranges` were checked against its size when it was opened (direct.py), and
a Blosc header is checked against the array's own facts before anything is decoded.

LZ4 chunks are taken apart here, block by block, with LZ4 itself doing the decoding: only the blocks and rows that are
wanted are unshuffled, straight to where they belong, which takes 0.6 of the time of `blosc2_getitem` and a copy. That
function decodes everything else: zstd, and blocks that do not divide into rows.

All in one file, but for the primitives: numba's cache watches the file of a function, not those of what it calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, int64

from livprep.store.primitives import (
    LANES,
    call_crc32c,
    call_getitem,
    call_lz4,
    call_madvise,
    clear,
    compiled,
    copy8,
    copy16,
    copy32,
    copy64,
    copy_byte,
    inlined,
    join_lanes,
    load32,
    stream32,
)

NEVER, FIRST, ALWAYS = 0, 1, 2
"""When a chunk's crc32c is computed."""
RAW = -1
"""In place of a Blosc format: chunks are not compressed."""
VERIFIED, ADVISED = np.uint8(1), np.uint8(2)
"""Bits of what is known of a chunk: its crc32c was right; the system was asked to read it."""
CRC_WRONG, HEADER_WRONG, NOT_DECODED, UNUSUAL = 1, 2, 3, 4
FAULTS = 8
"""A failed call returns chunk x FAULTS + fault, a good one 0; UNUSUAL is what `blosc2_getitem` has to decode."""
CRC_BYTES, HEADER_BYTES = 4, 16
LZ4_FORMAT = 1
_SHUFFLE, _MEMCPY, _WHOLE_BLOCKS, _FORMAT_SHIFT = 0x01, 0x02, 0x10, 5
_KNOWN_FLAGS = 0xF3
"""Flags of a Blosc-1 chunk without bit shuffle and delta (c-blosc, README_CHUNK_FORMAT.rst)."""
_MIN_STREAM = 128
"""Blosc splits no block into shorter streams (c-blosc, MIN_BUFFERSIZE)."""
_FULL_ROW = 128
"""Bytes along x of a chunk of 64 16-bit voxels."""
_ADVICE_BYTES = 131072
"""The kernel reads at most the larger of readahead and request size a call; 128 KiB is its default (mm/readahead.c)."""
_BAND = 8
"""Rows that are copied from one chunk before the next along x: their targets lie in the first cache then."""
_STREAMED = 32
"""Bytes that are written past the caches at once."""


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


@compiled(int64(int64, int64))
def _crc32c_by_table(address: int, size: int) -> Any:
    crc = int64(0xFFFFFFFF)
    at, end = address, address + size
    while at + 8 <= end:
        low, high = int64(load32(at)) ^ crc, int64(load32(at + 4))
        crc = _TABLES[7, low & 0xFF] ^ _TABLES[6, (low >> 8) & 0xFF]
        crc ^= _TABLES[5, (low >> 16) & 0xFF] ^ _TABLES[4, low >> 24]
        crc ^= _TABLES[3, high & 0xFF] ^ _TABLES[2, (high >> 8) & 0xFF]
        crc ^= _TABLES[1, (high >> 16) & 0xFF] ^ _TABLES[0, high >> 24]
        at += 8
    while at < end:
        # Of the four bytes only the first is used; what follows the data of a shard is its crc, so they exist.
        crc = _TABLES[0, (crc ^ int64(load32(at))) & 0xFF] ^ (crc >> 8)
        at += 1
    return crc ^ 0xFFFFFFFF


@compiled(int64(int64, int64, int64))
def crc32c(address: int, size: int, function: int) -> Any:
    """crc32c of `size` bytes that four more follow: by the C `function`, by a table where it is 0."""
    if function != 0:
        return int64(call_crc32c(function, address, size))
    return _crc32c_by_table(address, size)


# --- reading ----------------------------------------------------------------------------------------------------


@compiled("int64(int64, int64, int64, int64, int64)")
def _header_fits(payload: int, size: int, chunk_bytes: int, item: int, blosc_format: int) -> Any:
    """Whether a Blosc-1 header says what the array says; nothing else is decoded."""
    if size < HEADER_BYTES:
        return 0
    word = int64(load32(payload))
    flags = (word >> 16) & 0xFF
    decoded, block, packed = int64(load32(payload + 4)), int64(load32(payload + 8)), int64(load32(payload + 12))
    if word >> 24 != item or decoded != chunk_bytes or packed != size or flags & ~_KNOWN_FLAGS:
        return 0
    if block < item or block > decoded or block % item:
        return 0
    if flags & _MEMCPY:
        return 1 if packed == decoded + HEADER_BYTES else 0
    blocks = (decoded + block - 1) // block
    return 1 if flags >> _FORMAT_SHIFT == blosc_format and HEADER_BYTES + 4 * blocks <= packed else 0


@inlined
def _copy_row(to: int, of: int, size: int) -> None:
    """Copy 1 to some hundred bytes; the last copy of a kind overlaps the one before."""
    if size == _FULL_ROW:
        copy64(to, of)
        copy64(to + 64, of + 64)
    elif size >= 32:
        at = 0
        while at + 32 <= size:
            copy32(to + at, of + at)
            at += 32
        copy32(to + size - 32, of + size - 32)
    elif size >= 16:
        copy16(to, of)
        copy16(to + size - 16, of + size - 16)
    elif size >= 8:
        copy8(to, of)
        copy8(to + size - 8, of + size - 8)
    else:
        for byte in range(size):
            copy_byte(to + byte, of + byte)


@inlined
def _join_row(to: int, low: int, high: int, voxels: int) -> None:
    """Write a row of 16-bit voxels from their low and high bytes."""
    if voxels >= LANES:
        at = 0
        while at + LANES <= voxels:
            join_lanes(to + 2 * at, low + at, high + at)
            at += LANES
        at = voxels - LANES
        join_lanes(to + 2 * at, low + at, high + at)
    else:
        for voxel in range(voxels):
            copy_byte(to + 2 * voxel, low + voxel)
            copy_byte(to + 2 * voxel + 1, high + voxel)


@compiled("int64(int64, int64, int64, int64, int64, int64, int64)")
def _stream(payload: int, size: int, lowest: int, at: int, stream_bytes: int, scratch: int, lz4: int) -> Any:
    """Address of the decoded bytes of a stream that begins at `at`, or -fault."""
    if at < lowest or at + 4 > size:
        return -NOT_DECODED
    packed = int64(int32(load32(payload + at)))
    if packed <= 0:
        return -UNUSUAL  # a run of one byte, which Blosc 2 may write
    at += 4
    if packed > size - at:
        return -NOT_DECODED
    if packed == stream_bytes:
        return payload + at  # noise is not compressed
    if call_lz4(lz4, payload + at, scratch, packed, stream_bytes) != stream_bytes:
        return -NOT_DECODED
    return scratch


@compiled("int64(int64, int64, UniTuple(int64, 6), UniTuple(int64, 8), int64, UniTuple(int64, 2), int64, int64)")
def _read_lz4(payload: int, size: int, part: Any, facts: Any, to: int, strides: Any, scratch: int, lz4: int) -> Any:
    """Decode a part (z0, z1, y0, y1, x0, x1) of an LZ4 chunk whose header fits; 0 or a fault."""
    size_y, size_x, item = facts[1], facts[2], facts[6]
    line = size_x * item
    flags, block = (int64(load32(payload)) >> 16) & 0xFF, int64(load32(payload + 8))
    decoded, lowest = facts[0] * size_y * line, HEADER_BYTES + 4 * (facts[0] * size_y * line // block)
    streams = int64(1) if flags & _WHOLE_BLOCKS else item
    shuffled = item == 2 and flags & _SHUFFLE
    if block % line or decoded % block or (item > 1 and not shuffled) or block // streams < _MIN_STREAM:
        return UNUSUAL
    rows, voxels, half = block // line, part[5] - part[4], block // item
    low, high, loaded = int64(0), int64(0), int64(-1)
    for z in range(part[0], part[1]):
        y = part[2]
        while y < part[3]:
            row = z * size_y + y
            if row // rows != loaded:  # else the block of the plane before holds this one too
                loaded = row // rows
                at = int64(int32(load32(payload + HEADER_BYTES + 4 * loaded)))
                low = _stream(payload, size, lowest, at, block // streams, scratch, lz4)
                if low < 0:
                    return -low
                high = low + half
                if streams == 2:
                    at += 4 + int64(load32(payload + at))
                    high = _stream(payload, size, lowest, at, half, scratch + half, lz4)
                    if high < 0:
                        return -high
            end = min(part[3], y + rows - row % rows)
            skipped = row % rows * size_x + part[4]
            target = to + (z - part[0]) * strides[0] + (y - part[2]) * strides[1]
            for k in range(end - y):
                if shuffled:
                    _join_row(target, low + skipped + k * size_x, high + skipped + k * size_x, voxels)
                else:
                    _copy_row(target, low + skipped + k * size_x, voxels)
                target += strides[1]
            y = end
    return 0


@compiled(
    "int64(int64, int64, UniTuple(int64, 6), UniTuple(int64, 8), int64, UniTuple(int64, 2), int64, UniTuple(int64, 6))"
)
def _read_blosc(
    payload: int, size: int, part: Any, facts: Any, to: int, strides: Any, scratch: int, functions: Any
) -> Any:
    """Decode a part (z0, z1, y0, y1, x0, x1) of a Blosc chunk whose header fits; 0 or a fault."""
    size_y, size_x, item = facts[1], facts[2], facts[6]
    line, plane = size_x * item, size_y * size_x * item
    if facts[7] == LZ4_FORMAT and functions[1] != 0:
        fault = _read_lz4(payload, size, part, facts, to, strides, scratch, functions[1])
        if fault != UNUSUAL:
            return fault
    first = part[0] * plane + part[2] * line
    needed = (part[1] - 1) * plane + part[3] * line - first
    got = call_getitem(functions[0], payload, size, first // item, needed // item, scratch, needed)
    if got != needed:
        return NOT_DECODED
    for z in range(part[1] - part[0]):
        for y in range(part[3] - part[2]):
            of = scratch + z * plane + y * line + part[4] * item
            _copy_row(to + z * strides[0] + y * strides[1], of, (part[5] - part[4]) * item)
    return 0


@compiled("int64(int64, UniTuple(int64, 6), int64, UniTuple(int64, 2))")
def _clear_part(item: int, part: Any, to: int, strides: Any) -> Any:
    """Fill with 0 what a missing chunk would have given."""
    for z in range(part[1] - part[0]):
        for y in range(part[3] - part[2]):
            clear(to + z * strides[0] + y * strides[1], (part[5] - part[4]) * item)
    return 0


@compiled("int64(int64, int64[:,::1], uint8[::1], int64, UniTuple(int64, 8), int64, int64)")
def _checked(shard: int, ranges: Any, state: Any, chunk: int, facts: Any, crc_function: int, mode: int) -> Any:
    """Whether a chunk may be decoded: 0 or a fault."""
    payload, size = shard + ranges[chunk, 0], ranges[chunk, 1] - CRC_BYTES
    if mode == ALWAYS or (mode == FIRST and not state[chunk] & VERIFIED):
        if crc32c(payload, size, crc_function) != int64(load32(payload + size)):
            return CRC_WRONG
        state[chunk] |= VERIFIED
    if facts[7] == RAW:
        return 0
    chunk_bytes = facts[0] * facts[1] * facts[2] * facts[6]
    return 0 if _header_fits(payload, size, chunk_bytes, facts[6], facts[7]) else HEADER_WRONG


@compiled("int64(int64[::1], UniTuple(int64, 6), UniTuple(int64, 8), int64, UniTuple(int64, 2), int64)")
def _copy_chunks(sources: Any, part: Any, facts: Any, to: int, strides: Any, scratch: int) -> Any:
    """Copy what is wanted of uncompressed chunks that lie side by side along x.

    `part` is z0, z1, y0, y1 in each chunk and x0, x1 counted from the first chunk; a source of 0 is passed over. Rows
    are put together in `scratch`, which the first cache holds, and leave it past the caches: a third less memory is
    moved, for what is overwritten is not fetched before. Rows that cannot be are copied to their place at once.
    """
    size_x, item = facts[2], facts[6]
    line, plane = size_x * item, facts[1] * size_x * item
    width = (part[5] - part[4]) * item
    streamed = (width | to | strides[0] | strides[1]) % _STREAMED == 0 and _BAND * width <= facts[0] * plane
    for i in range(len(sources)):
        streamed = streamed and sources[i] != 0
    for z in range(part[0], part[1]):
        for y0 in range(part[2], part[3], _BAND):
            y1 = min(y0 + _BAND, part[3])
            final = to + (z - part[0]) * strides[0] + (y0 - part[2]) * strides[1]
            first, pitch = (scratch, width) if streamed else (final, strides[1])
            for i in range(len(sources)):
                x0, x1 = max(part[4] - i * size_x, 0), min(part[5] - i * size_x, size_x)
                if sources[i] == 0:
                    continue
                row = (x1 - x0) * item
                of = sources[i] + z * plane + y0 * line + x0 * item
                target = first + (i * size_x + x0 - part[4]) * item
                for _ in range(y1 - y0):
                    _copy_row(target, of, row)
                    of += line
                    target += pitch
            if streamed:
                for y in range(y1 - y0):
                    for at in range(0, width, _STREAMED):
                        stream32(final + y * strides[1] + at, scratch + y * width + at)
    return 0


@compiled(
    "int64(int64, int64[:,::1], uint8[::1], int64[::1], UniTuple(int64, 6), UniTuple(int64, 8), UniTuple(int64, 6), "
    "int64)"
)
def advise_box(shard: int, ranges: Any, state: Any, held: Any, box: Any, facts: Any, functions: Any, again: int) -> Any:
    """Ask the system to read the chunks that a box touches; see `read_box`. Returns their bytes in the shard.

    Chunks for which it was asked before are left out unless `again`. Without this each missing page would be read
    with what lies around it, three times what is wanted.
    """
    madvise, advice, page = functions[3], functions[4], functions[5]
    total = int64(0)
    for k in range(box[0] // facts[0], (box[1] - 1) // facts[0] + 1):
        for j in range(box[2] // facts[1], (box[3] - 1) // facts[1] + 1):
            for i in range(box[4] // facts[2], (box[5] - 1) // facts[2] + 1):
                chunk = (k * facts[4] + j) * facts[5] + i
                offset, stored = ranges[chunk, 0], ranges[chunk, 1]
                if offset < 0:
                    continue
                total += stored
                if madvise == 0 or held[chunk] != 0 or (state[chunk] & ADVISED and not again):
                    continue
                start, end = offset // page * page, offset + stored
                while start < end:
                    size = min(end - start, _ADVICE_BYTES)
                    call_madvise(madvise, shard + start, size, advice)
                    start += size
                state[chunk] |= ADVISED
    return total


@compiled(
    "int64(int64, int64[:,::1], uint8[::1], int64[::1], UniTuple(int64, 6), UniTuple(int64, 8), int64, "
    "UniTuple(int64, 2), int64, UniTuple(int64, 6), int64)"
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
    functions: Any,
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
        `(chunks,)` what is known of each chunk: VERIFIED, ADVISED.
    held
        `(chunks,)` address of each decoded chunk in a cache, or 0.
    box
        z0, z1, y0, y1, x0, x1 in voxels; not empty.
    facts
        Chunk shape zyx, chunks along zyx, bytes a voxel, Blosc format or RAW.
    target
        Address of the first voxel of the box.
    strides
        z, y in bytes.
    scratch
        Address of room for one decoded chunk; used by this call alone.
    functions
        Addresses of `blosc2_getitem`, `LZ4_decompress_safe` (or 0), `crc32c_extend` (or 0) and `madvise` (or 0),
        its advice, and the bytes of a page.
    mode
        NEVER, FIRST or ALWAYS.

    Returns
    -------
    0, or chunk x FAULTS + CRC_WRONG, HEADER_WRONG or NOT_DECODED.
    """
    size_z, size_y, size_x, _, grid_y, grid_x, item, blosc_format = facts
    advise_box(shard, ranges, state, held, box, facts, functions, 0)
    first_x, last_x = box[4] // size_x, (box[5] - 1) // size_x
    sources = np.zeros(last_x + 1 - first_x, dtype=np.int64)
    for k in range(box[0] // size_z, (box[1] - 1) // size_z + 1):
        z0, z1 = max(box[0] - k * size_z, 0), min(box[1] - k * size_z, size_z)
        for j in range(box[2] // size_y, (box[3] - 1) // size_y + 1):
            y0, y1 = max(box[2] - j * size_y, 0), min(box[3] - j * size_y, size_y)
            to = target + (k * size_z + z0 - box[0]) * strides[0] + (j * size_y + y0 - box[2]) * strides[1]
            for i in range(first_x, last_x + 1):
                chunk = (k * grid_y + j) * grid_x + i
                sources[i - first_x] = held[chunk]
                if held[chunk] != 0:
                    continue
                x0, x1 = max(box[4] - i * size_x, 0), min(box[5] - i * size_x, size_x)
                part, at = (z0, z1, y0, y1, x0, x1), to + (i * size_x + x0 - box[4]) * item
                if ranges[chunk, 0] < 0:
                    _clear_part(item, part, at, strides)
                    continue
                payload, size = shard + ranges[chunk, 0], ranges[chunk, 1] - CRC_BYTES
                fault = _checked(shard, ranges, state, chunk, facts, functions[2], mode)
                if fault == 0 and blosc_format == RAW:
                    sources[i - first_x] = payload
                elif fault == 0 and (int64(load32(payload)) >> 16) & _MEMCPY:
                    sources[i - first_x] = payload + HEADER_BYTES
                elif fault == 0:
                    fault = _read_blosc(payload, size, part, facts, at, strides, scratch, functions)
                if fault != 0:
                    return chunk * FAULTS + fault
            x0, x1 = box[4] - first_x * size_x, box[5] - first_x * size_x
            _copy_chunks(sources, (z0, z1, y0, y1, x0, x1), facts, to, strides, scratch)
    return 0
