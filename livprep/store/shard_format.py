"""The subset of Zarr v3 arrays that this package writes, and that is read without zarr."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAX_CHUNK_BYTES, _MAX_CHUNKS = 1 << 28, 1 << 20
_FORMATS = {"lz4": 1, "lz4hc": 1, "zstd": 4}
"""Blosc format of a codec name; lz4hc writes what lz4 reads (c-blosc, README_CHUNK_FORMAT.rst)."""


@dataclass(frozen=True)
class ShardFormat:
    """An array of the subset that is read directly.

    Parameters
    ----------
    shape_zyx
        Voxels of the array.
    dtype
        Type of a voxel.
    chunk_zyx
        Voxels of an inner chunk.
    blosc_format
        Format of the Blosc chunks, None where they are not compressed.
    """

    shape_zyx: tuple[int, int, int]
    dtype: np.dtype[Any]
    chunk_zyx: tuple[int, int, int]
    blosc_format: int | None

    @property
    def grid_zyx(self) -> tuple[int, int, int]:
        """Chunks along each axis."""
        z, y, x = (-(-size // chunk) for size, chunk in zip(self.shape_zyx, self.chunk_zyx, strict=True))
        return z, y, x

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        z, y, x = self.chunk_zyx
        return z * y * x * self.dtype.itemsize


def read_shard_format(folder: Path) -> ShardFormat | None:
    """The format of an array in a folder; None as in `shard_format`, or where its metadata cannot be read."""
    try:
        return shard_format(json.loads((folder / "zarr.json").read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None


def shard_format(node: Any) -> ShardFormat | None:
    """The format of an array by its zarr.json; None for anything but the subset that this package writes."""
    try:
        dtype = np.dtype({"uint8": "u1", "int16": "<i2", "uint16": "<u2"}[node["data_type"]])
        outer = node["codecs"][0]["configuration"]
        shape_zyx, chunk_zyx = _triple(node["shape"]), _triple(outer["chunk_shape"])
        blosc = next((codec["configuration"] for codec in outer["codecs"] if codec["name"] == "blosc"), None)
        found = ShardFormat(shape_zyx, dtype, chunk_zyx, None if blosc is None else _FORMATS[blosc["cname"]])
        small = found.chunk_bytes <= _MAX_CHUNK_BYTES and math.prod(found.grid_zyx) <= _MAX_CHUNKS
        if not small or _expected(found, blosc) != {
            key: value for key, value in node.items() if key not in {"attributes", "dimension_names", "shape"}
        }:
            return None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    return found


def _triple(values: Any) -> tuple[int, int, int]:
    z, y, x = (value for value in values if type(value) is int and value > 0)
    return z, y, x


def _expected(found: ShardFormat, blosc: dict[str, Any] | None) -> dict[str, Any]:
    """The metadata, but for shape, names and attributes, that an array of that format has."""
    item = found.dtype.itemsize
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    crc = {"name": "crc32c"}
    inner: list[Any] = [little if item > 1 else {"name": "bytes"}, crc]
    if blosc is not None:
        kept = {key: blosc[key] for key in ("cname", "clevel", "blocksize")}
        shuffle = blosc["shuffle"] if blosc["shuffle"] in {"shuffle", "noshuffle"} else None
        inner.insert(1, {"name": "blosc", "configuration": {**kept, "typesize": item, "shuffle": shuffle}})
    shard = [count * chunk for count, chunk in zip(found.grid_zyx, found.chunk_zyx, strict=True)]
    sharding = {
        "chunk_shape": list(found.chunk_zyx),
        "codecs": inner,
        "index_codecs": [little, crc],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": found.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "storage_transformers": [],
    }
