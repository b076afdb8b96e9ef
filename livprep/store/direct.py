"""Read the arrays that this package writes, without zarr: a mapped shard, decoded straight into the caller's array.

Zarr's own reading costs five times the decoding itself (streaming.md, B). What is accepted is exactly the subset that
`livprep.store` writes: one shard, regular chunks, little-endian bytes, Blosc (lz4, lz4hc or zstd) or nothing, crc32c
last, an index with crc32c at the end. Anything else is read by zarr-python, which is also the oracle of the tests.

A published shard is never changed in place, only replaced by rename; its map stays valid when it is removed. A shard
that another program truncates while it is mapped ends the process, as with every mapped file.

Fork: maps and what is known of chunks are inherited and stay usable; there are no threads of our own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import mmap
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from livprep.store.chunk_cache import ChunkCache
from livprep.store.mapping import MappedFile
from livprep.store.native import Native, native
from livprep.store.shard_format import ShardFormat, read_shard_format

Check = Literal["always", "first", "never"]
"""When the crc32c of a chunk is computed: at each reading, when it is first read here, never."""
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and end voxel along z, y, x."""

_INDEX_ENTRY, _CRC_BYTES = 16, 4
_MISSING = 2**64 - 1
_FAULTS = {
    1: "its crc32c is not that of its bytes",
    2: "its Blosc header does not fit the array",
    3: "Blosc cannot decode it",
}
_scratch = threading.local()


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled part, imported late because that costs half a second; None where it cannot be had."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("livprep.store.kernels")
    except Exception as error:  # a numba that this code does not know may raise anything
        warnings.warn(f"volumes are read by zarr-python, five times slower: {error}", RuntimeWarning, stacklevel=2)
        return None


def open_direct(folder: Path) -> DirectArray | None:
    """Open an array for direct reading; None where zarr-python has to read it.

    Raises
    ------
    OSError, ValueError
        The shard is damaged: what and where is in the text.
    """
    found = read_shard_format(folder)
    if found is None or sys.byteorder != "little":
        return None
    functions, kernels = native(), compiled()
    if kernels is None or (found.blosc_format is not None and functions.getitem == 0):
        return None
    return DirectArray(folder / "c" / "0" / "0" / "0", found, functions, kernels)


class DirectArray:
    """One mapped shard; `read` may be called from several threads at once.

    No file stays open: the map alone keeps the shard, and goes with the last reference to this object.
    """

    def __init__(self, shard: Path, form: ShardFormat, functions: Native, kernels: ModuleType) -> None:
        self.form = form
        self._functions, self._kernels = functions, kernels
        chunks = math.prod(form.grid_zyx)
        self._facts = (
            *form.chunk_zyx,
            *form.grid_zyx,
            form.dtype.itemsize,
            kernels.RAW if form.blosc_format is None else form.blosc_format,
        )
        try:
            self._file: MappedFile | None = MappedFile(shard, chunks * _INDEX_ENTRY + _CRC_BYTES)
        except FileNotFoundError:
            # Nothing but the fill value was written; that a written shard is there is the manifest's concern.
            self._file, self._address, self._ranges = None, 0, np.full((chunks, 2), -1, dtype=np.int64)
        else:
            self._address = self._file.address
            self._ranges = self._checked_index(self._file, chunks)
        self._calls = (
            *(functions.getitem, functions.lz4, functions.crc32c, functions.madvise),
            *(getattr(mmap, "MADV_WILLNEED", 0), mmap.ALLOCATIONGRANULARITY),
        )
        self._state = np.zeros(chunks, dtype=np.uint8)
        self._held = np.zeros(chunks, dtype=np.int64)
        self._cache: ChunkCache | None = None
        self._key: tuple[int, ...] = ()

    def _checked_index(self, file: MappedFile, chunks: int) -> npt.NDArray[np.int64]:
        """Offset and bytes of each chunk, `(chunks, 2)`, all inside the shard; -1 where a chunk is missing."""
        index_bytes = chunks * _INDEX_ENTRY
        end = file.size - index_bytes - _CRC_BYTES
        index = np.frombuffer(file.tail, dtype=np.uint8)
        crc = self._kernels.crc32c(index.ctypes.data, index_bytes, self._functions.crc32c)
        if crc != int.from_bytes(file.tail[-_CRC_BYTES:], "little"):
            raise ValueError("the crc32c of the shard's index is not that of its bytes")
        entries = index[:index_bytes].view("<u8").reshape(chunks, 2)
        missing = (entries == _MISSING).all(axis=1)
        raw = self.form.blosc_format is None
        low, high = (self.form.chunk_bytes + _CRC_BYTES,) * 2 if raw else (_INDEX_ENTRY + _CRC_BYTES, end)
        offsets, lengths = entries[:, 0], entries[:, 1]
        # Lengths up to `end` first, so that `end - length` cannot wrap.
        inside = (lengths >= low) & (lengths <= min(high, end))
        inside &= offsets <= np.uint64(end) - np.where(inside, lengths, np.uint64(0))
        if not (inside | missing).all():
            chunk = int(np.flatnonzero(~(inside | missing))[0])
            raise ValueError(f"{self._name(chunk)} is said to lie outside the shard or to have an impossible size")
        return np.ascontiguousarray(np.where(missing[:, None], np.int64(-1), entries.astype(np.int64)))

    def _name(self, chunk: int) -> str:
        z, y, x = np.unravel_index(chunk, self.form.grid_zyx)
        return f"chunk ({z}, {y}, {x})"

    def use_cache(self, cache: ChunkCache | None) -> None:
        """Keep decoded chunks in `cache`; they are checked once, when they enter it."""
        if self.form.blosc_format is None or self._file is None:
            return
        self._cache, self._key = cache, self._file.identity
        chunks = len(self._ranges)
        self._held = np.zeros(chunks, dtype=np.int64) if cache is None else cache.addresses(self._key, chunks)

    def read(self, box: Box, out: npt.NDArray[Any], check: Check = "first") -> None:
        """Fill `out`, an array of the box's shape whose last axis is contiguous.

        Raises
        ------
        ValueError
            A chunk is damaged; the text names it.
        """
        if 0 in out.shape:
            return
        if self._cache is not None and not self._cache.full:
            self._fill_cache(self._cache, box, check)
        self._decode(self._held, box, out.ctypes.data, (out.strides[0], out.strides[1]), check)

    def _decode(
        self, held: npt.NDArray[np.int64], box: Box, target: int, strides: tuple[int, int], check: Check
    ) -> None:
        result = self._kernels.read_box(
            self._address,
            self._ranges,
            self._state,
            held,
            (*box[0], *box[1], *box[2]),
            self._facts,
            target,
            strides,
            _scratch_address(self.form.chunk_bytes),
            self._calls,
            {"never": self._kernels.NEVER, "first": self._kernels.FIRST, "always": self._kernels.ALWAYS}[check],
        )
        if result:
            chunk, fault = divmod(result, self._kernels.FAULTS)
            raise ValueError(f"{self._name(chunk)}: {_FAULTS[fault]}")

    def _fill_cache(self, cache: ChunkCache, box: Box, check: Check) -> None:
        """Decode the chunks of a box that the cache has room for."""
        size, chunk_zyx = self.form.chunk_bytes, self.form.chunk_zyx
        strides = (size // chunk_zyx[0], chunk_zyx[2] * self.form.dtype.itemsize)
        for place in self._touched(box):
            chunk = int(np.ravel_multi_index(place, self.form.grid_zyx))
            if self._held[chunk] or self._ranges[chunk, 0] < 0:
                continue
            room = cache.reserve(self._key, chunk, size)
            if room is None:
                continue
            z, y, x = ((k * length, (k + 1) * length) for k, length in zip(place, chunk_zyx, strict=True))
            try:
                self._decode(np.zeros_like(self._held), (z, y, x), room.ctypes.data, strides, check)
            except BaseException:
                cache.cancel(self._key, chunk)
                raise
            cache.publish(self._key, chunk)

    def _touched(self, box: Box) -> list[tuple[int, int, int]]:
        z, y, x = (
            range(first // length, (end - 1) // length + 1)
            for (first, end), length in zip(box, self.form.chunk_zyx, strict=True)
        )
        return [(k, j, i) for k in z for j in y for i in x]

    def chunk_ranges(self, box: Box) -> dict[int, tuple[int, int]]:
        """Chunk -> offset and bytes in the shard, of the chunks that a box touches and that hold anything."""
        places = [int(np.ravel_multi_index(place, self.form.grid_zyx)) for place in self._touched(box)]
        return {k: (int(self._ranges[k, 0]), int(self._ranges[k, 1])) for k in places if self._ranges[k, 0] >= 0}

    def will_need(self, box: Box) -> None:
        """Ask the system to read the chunks of a box from disk ahead of their use."""
        self._advise(box, self._calls, again=True)

    def stored_bytes(self, box: Box) -> int:
        """Bytes in the shard of the chunks that a box touches."""
        return self._advise(box, (0,) * len(self._calls), again=False)

    def _advise(self, box: Box, calls: tuple[int, ...], *, again: bool) -> int:
        if any(first >= end for first, end in box):
            return 0
        flat = (*box[0], *box[1], *box[2])
        advise = self._kernels.advise_box
        return int(advise(self._address, self._ranges, self._state, self._held, flat, self._facts, calls, int(again)))


def _scratch_address(size: int) -> int:
    """Address of this thread's room for one decoded chunk."""
    room: npt.NDArray[np.uint8] | None = getattr(_scratch, "room", None)
    if room is None or room.size < size:
        room = _scratch.room = np.empty(size, dtype=np.uint8)
        _scratch.address = room.ctypes.data
    address: int = _scratch.address
    return address
