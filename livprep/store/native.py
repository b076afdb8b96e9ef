"""Addresses of the C functions that the compiled reader calls: Blosc, crc32c, page advice.

They are called by address from compiled code that holds no GIL, so nothing of Python stands between a patch and
its bytes. The libraries are those inside the installed wheels; neither `blosc2` itself (half a second) nor any
compiler is needed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import mmap
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Native:
    """Addresses; 0 where there is no such function here.

    Parameters
    ----------
    getitem
        `int blosc2_getitem(const void *source, int32_t source_bytes, int start, int items, void *target,
        int32_t target_bytes)`; thread-safe, it has no state (c-blosc2, blosc2.h).
    lz4
        `int LZ4_decompress_safe(const char *source, char *target, int source_bytes, int target_bytes)`.
    crc32c
        `uint32_t crc32c_extend(uint32_t crc, const uint8_t *data, size_t count)` of google/crc32c.
    madvise
        `int madvise(void *start, size_t bytes, int advice)`.
    """

    getitem: int
    lz4: int
    crc32c: int
    madvise: int


@functools.cache
def native() -> Native:
    """Look the functions up, once a process."""
    blosc2 = _blosc2()
    return Native(
        getitem=_address(blosc2, "blosc2_getitem"),
        lz4=_address(blosc2, "LZ4_decompress_safe"),
        crc32c=_address(_crc32c(), "crc32c_extend"),
        madvise=_address(_library(None), "madvise") if hasattr(mmap, "MADV_WILLNEED") else 0,
    )


def _blosc2() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("blosc2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    # Wheels carry the library in lib/; elsewhere the extension module links to one of the system.
    for pattern in ("lib/*blosc2*", "*blosc2_ext*", "../blosc2.libs/*blosc2*"):
        for path in sorted(folder.glob(pattern)):
            if path.suffix not in {".pyx", ".py"} and (library := _library(path)) is not None:
                return library
    return None


def _crc32c() -> ctypes.CDLL | None:
    try:
        extension = importlib.import_module("google_crc32c._crc32c")
    except ImportError:
        return None
    # The extension links to the library; its handle finds the symbols of what it links to.
    return _library(Path(extension.__file__)) if extension.__file__ else None


def _library(path: Path | None) -> ctypes.CDLL | None:
    if path is None and sys.platform == "win32":
        return None
    try:
        return ctypes.CDLL(None if path is None else str(path))
    except OSError:
        return None


def _address(library: ctypes.CDLL | None, name: str) -> int:
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0
