"""Read the small coordinate arrays of the index without zarr, which takes longer than a patch.

A run over many cases opens the index of each once, beside a handful of patches. Accepted is what this package writes
now: one chunk of int16, little-endian, uncompressed, crc32c. Anything else is read by zarr-python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.store.direct import compiled
from livprep.store.native import native

_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_CRC_BYTES = 4


def read_points(folder: Path) -> npt.NDArray[np.int16] | None:
    """Coordinates `(n, 3)` of an array of the index; None where zarr-python has to read it.

    Raises
    ------
    ValueError, OSError
        The chunk is damaged: what is wrong is in the text.
    """
    try:
        node = json.loads((folder / "zarr.json").read_bytes())
        count = _count(node)
    except (OSError, ValueError, RecursionError):
        return None
    kernels, functions = compiled(), native()
    if count is None or kernels is None or sys.byteorder != "little":
        return None
    data = np.fromfile(folder / "c" / "0" / "0", dtype=np.uint8)
    size = count * 3 * 2
    if data.size != size + _CRC_BYTES:
        raise ValueError(f"the chunk has {data.size} bytes, expected {size + _CRC_BYTES}")
    stated = int.from_bytes(data[size:].tobytes(), "little")
    if kernels.crc32c(data.ctypes.data, size, functions.crc32c) != stated:
        raise ValueError("the crc32c of the chunk is not that of its bytes")
    return data[:size].view(np.int16).reshape(count, 3)


def _count(node: Any) -> int | None:
    """Points of an array by its zarr.json; None for another format, or for an array without a chunk."""
    try:
        count, axes = node["shape"]
        one_chunk = {"name": "regular", "configuration": {"chunk_shape": [count, axes]}}
        known = (
            axes == 3
            and type(count) is int
            and count > 0
            and node["data_type"] == "int16"
            and node["codecs"] == _CODECS
            and node["chunk_grid"] == one_chunk
            and node["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and node["zarr_format"] == 3
            and not node.get("storage_transformers")
        )
    except (KeyError, TypeError, ValueError):
        return None
    return count if known else None
