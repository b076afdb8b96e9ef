"""Decoded chunks kept in memory, for cohorts that fit there compressed but not decoded, or decoded too."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

Key = tuple[Any, ...]


class ChunkCache:
    """Decoded chunks of any number of arrays, up to a budget; filled once and then static.

    Patches are drawn at random, so that every chunk is as likely to be wanted next as any other: throwing one out for
    another costs a decode and gains nothing. Chunks that are stored without compression are not kept: the system
    holds their pages already. All methods may be called from several threads.

    Parameters
    ----------
    budget_bytes
        Most bytes of decoded chunks.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._reserved_bytes = 0
        self._used_bytes = 0
        self._addresses: dict[Key, npt.NDArray[np.int64]] = {}
        self._chunks: dict[tuple[Key, int], npt.NDArray[np.uint8]] = {}

    @property
    def bytes_used(self) -> int:
        """Bytes of the decoded chunks that are held."""
        return self._used_bytes

    @property
    def full(self) -> bool:
        """Whether nothing more is taken in."""
        return self._reserved_bytes >= self.budget_bytes

    def addresses(self, key: Key, chunks: int) -> npt.NDArray[np.int64]:
        """Where each chunk of an array lies, 0 where it is not held; changes as the cache fills."""
        with self._lock:
            return self._addresses.setdefault(key, np.zeros(chunks, dtype=np.int64))

    def reserve(self, key: Key, chunk: int, size: int) -> npt.NDArray[np.uint8] | None:
        """Room for one chunk; None where it is held, being decoded by another thread, or beyond the budget."""
        with self._lock:
            if (key, chunk) in self._chunks:
                return None
            if self._reserved_bytes + size > self.budget_bytes:
                self._reserved_bytes = self.budget_bytes  # static from now on
                return None
            self._reserved_bytes += size
            room = np.empty(size, dtype=np.uint8)
            self._chunks[key, chunk] = room
            return room

    def publish(self, key: Key, chunk: int) -> None:
        """Make a chunk, now decoded into the room reserved for it, visible to readers."""
        with self._lock:
            room = self._chunks[key, chunk]
            self._used_bytes += room.nbytes
            self._addresses[key][chunk] = room.ctypes.data

    def cancel(self, key: Key, chunk: int) -> None:
        """Give room back that was reserved for a chunk that could not be decoded."""
        with self._lock:
            self._reserved_bytes -= self._chunks.pop((key, chunk)).nbytes
