"""A file mapped into memory without keeping it open.

`mmap.mmap` keeps a copy of the file descriptor (until Python 3.13), and a cohort has more arrays than a process may
open files: 1024 by default.
"""

from __future__ import annotations

import ctypes
import errno
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

    Parameters
    ----------
    path
        The file.
    tail_bytes
        Bytes at its end that are read at once into `tail`: a page that is missing from a map is read with 128 KiB
        around it, these bytes alone.

    Raises
    ------
    OSError
        It cannot be opened or mapped.
    ValueError
        It has fewer bytes than that.
    """

    def __init__(self, path: Path, tail_bytes: int) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            facts = os.fstat(handle)
            self.size = facts.st_size
            self.identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            """Differs from that of any file that has another content."""
            if self.size < max(1, tail_bytes):
                raise ValueError(f"the shard has {self.size} bytes, expected at least {tail_bytes}")
            self.tail = os.pread(handle, tail_bytes, self.size - tail_bytes)
            if len(self.tail) != tail_bytes:
                raise OSError(errno.EIO, "the end of the shard cannot be read")
            libc = _libc()
            address = libc.mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        finally:
            os.close(handle)
        if address is None or address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"the shard cannot be mapped: {os.strerror(number)}")
        self.address: int = address
        weakref.finalize(self, libc.munmap, address, self.size).atexit = False
