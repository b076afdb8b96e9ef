"""A file mapped into memory without keeping it open.

`mmap.mmap` keeps a copy of the file descriptor (until Python 3.13), and a cohort has more arrays than a process may
open files: 1024 by default.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from pathlib import Path

_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class MappedFile:
    """A file's bytes at `address`, to be read only; unmapped with the last reference to this object.

    Raises
    ------
    OSError
        It cannot be opened or mapped.
    ValueError
        It is empty.
    """

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            facts = os.fstat(handle)
            self.size = facts.st_size
            self.identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            """Differs from that of any file that has another content."""
            if self.size == 0:
                raise ValueError("the shard is empty")
            libc = _libc()
            address = libc.mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        finally:
            os.close(handle)
        if address is None or address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"the shard cannot be mapped: {os.strerror(number)}")
        self.address: int = address
        weakref.finalize(self, libc.munmap, address, self.size).atexit = False

    def tail(self, size: int) -> bytes:
        """The last `size` bytes."""
        return ctypes.string_at(self.address + self.size - size, size)
