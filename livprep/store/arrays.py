"""One volume of a case: read directly where this package wrote it, by zarr-python otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from livprep.store.chunk_cache import ChunkCache
from livprep.store.direct import Box, Check, DirectArray, open_direct

Region = tuple[slice, slice, slice]
WHOLE: Region = (slice(None), slice(None), slice(None))


class VolumeArray:
    """A `(z, y, x)` array on disk; several threads may read it at once.

    Raises
    ------
    Exception
        Almost anything, where its metadata or its shard are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._direct: DirectArray | None = open_direct(folder)
        self._plain: zarr.Array[Any] | None = None
        if self._direct is None:
            self._zarr()

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self._direct.form.shape_zyx if self._direct else self._zarr().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self._direct.form.dtype if self._direct else self._zarr().dtype

    @property
    def is_direct(self) -> bool:
        """Whether it is read without zarr-python."""
        return self._direct is not None

    def _zarr(self) -> zarr.Array[Any]:
        if self._plain is None:
            self._plain = zarr.open_array(self._folder, mode="r")
        return self._plain

    def read(self, region: Region, out: npt.NDArray[Any] | None, check: Check) -> npt.NDArray[Any]:
        """Read a region, into `out` where given: an array of its shape and type.

        Raises
        ------
        OSError, ValueError, RuntimeError
            It cannot be decoded.
        """
        box = box_of(region, self.shape)
        if self._direct is None or box is None:
            values = np.asarray(self._zarr()[region])
            if out is None:
                return values
            out[...] = values
            return out
        if out is None:
            out = np.empty(box_shape(box), dtype=self.dtype)
        if out.strides[-1] == out.itemsize:
            self._direct.read(box, out, check)
        else:
            values = np.empty(out.shape, dtype=self.dtype)
            self._direct.read(box, values, check)
            out[...] = values
        return out

    def will_need(self, region: Region) -> None:
        """Ask the system to read the chunks of a region from disk ahead of their use."""
        box = box_of(region, self.shape)
        if self._direct is not None and box is not None:
            self._direct.will_need(box)

    def stored_bytes(self, region: Region) -> int | None:
        """Bytes on disk of the chunks that a region touches; None where only zarr-python knows the chunks."""
        box = box_of(region, self.shape)
        return None if self._direct is None or box is None else self._direct.stored_bytes(box)

    def use_cache(self, cache: ChunkCache | None) -> None:
        """Keep decoded chunks in `cache`."""
        if self._direct is not None:
            self._direct.use_cache(cache)


def box_of(region: Region, shape: tuple[int, ...]) -> Box | None:
    """First and end voxel of a region's slices along z, y, x; None for steps and for what is no slice."""
    if len(shape) != 3 or not isinstance(region, tuple) or len(region) != 3:
        return None
    box = []
    for part, size in zip(region, shape, strict=True):
        if not isinstance(part, slice) or part.step not in (None, 1):
            return None
        first, end, _ = part.indices(size)
        box.append((first, max(first, end)))
    return box[0], box[1], box[2]


def box_shape(box: Box) -> tuple[int, int, int]:
    """Voxels of a box along z, y, x."""
    z, y, x = (end - first for first, end in box)
    return z, y, x
