"""Resampling of packed patches on the CPU, compiled: HU and label in one pass over the result.

torch's grid_sample works on any device but needs three numbers of position a voxel, floats for the labels, and two
calls; the loop below computes positions as it goes and reads each packed voxel once for both (figures:
benchmarks/results/augment.md). Importing this module imports numba. It compiles at the first call, about a second,
or loads the machine code from numba's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import int32, njit, uint32

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """Compile without the GIL; cached on disk where numba finds a place for it. Sums keep their written order."""
    try:
        made: _Function = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache can be written
        made = njit(nogil=True)(function)
    return made


@_compiled
def _value(packed: Any, shape: Any, z: Any, y: Any, x: Any) -> Any:
    """HU bits of a voxel as float32; 0, which is -1024 HU, outside."""
    if 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]:
        return np.float32(packed[(z * shape[1] + y) * shape[2] + x] & np.uint16(0xFFF))
    return np.float32(0)


@_compiled
def _label(packed: Any, shape: Any, z: Any, y: Any, x: Any) -> Any:
    """Label of a voxel; background outside."""
    if 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]:
        return np.uint8(packed[(z * shape[1] + y) * shape[2] + x] >> np.uint16(12))
    return np.uint8(0)


@_compiled
def _anywhere(packed: Any, shape: Any, cz: Any, cy: Any, cx: Any) -> Any:
    """Trilinear value and nearest label at a position that may lie outside."""
    z, y, x = int32(np.floor(cz)), int32(np.floor(cy)), int32(np.floor(cx))
    fz, fy, fx = cz - np.float32(z), cy - np.float32(y), cx - np.float32(x)
    near = np.float32(0)
    far = np.float32(0)
    for dz in range(2):
        rows = np.float32(0)
        for dy in range(2):
            a = _value(packed, shape, z + dz, y + dy, x)
            b = _value(packed, shape, z + dz, y + dy, x + 1)
            row = a + fx * (b - a)
            rows = rows + fy * (row - rows) if dy else row
        if dz:
            far = rows
        else:
            near = rows
    half = np.float32(0.5)
    label = _label(packed, shape, z + int32(fz >= half), y + int32(fy >= half), x + int32(fx >= half))
    return near + fz * (far - near), label


@_compiled
def _inside(shape: Any, cz: Any, cy: Any, cx: Any) -> Any:
    """Whether all eight voxels around a position exist."""
    return (
        cz >= 0 and cy >= 0 and cx >= 0
        and cz < np.float32(shape[0] - 1) and cy < np.float32(shape[1] - 1) and cx < np.float32(shape[2] - 1)
    )  # fmt: skip


@_compiled
def _within(packed: Any, plane: Any, line: Any, cz: Any, cy: Any, cx: Any) -> Any:
    """Trilinear value and nearest label at a position whose eight voxels exist; unsigned indices spare numba's
    test for negative ones."""
    z, y, x = int32(cz), int32(cy), int32(cx)
    fz, fy, fx = cz - np.float32(z), cy - np.float32(y), cx - np.float32(x)
    bits, one = np.uint16(0xFFF), uint32(1)
    at = uint32(uint32(z) * plane + uint32(y) * line + uint32(x))
    a = np.float32(packed[at] & bits)
    a += fx * (np.float32(packed[uint32(at + one)] & bits) - a)
    i = uint32(at + line)
    b = np.float32(packed[i] & bits)
    b += fx * (np.float32(packed[uint32(i + one)] & bits) - b)
    i = uint32(at + plane)
    c = np.float32(packed[i] & bits)
    c += fx * (np.float32(packed[uint32(i + one)] & bits) - c)
    i = uint32(i + line)
    d = np.float32(packed[i] & bits)
    d += fx * (np.float32(packed[uint32(i + one)] & bits) - d)
    a += fy * (b - a)
    c += fy * (d - c)
    half = np.float32(0.5)
    if fz >= half:
        at = uint32(at + plane)
    if fy >= half:
        at = uint32(at + line)
    if fx >= half:
        at = uint32(at + one)
    return a + fz * (c - a), packed[at] >> np.uint16(12)


@_compiled
def resample(
    packed: Any, shape: Any, matrix: Any, origin: Any, shift: Any, values: Any, labels: Any, first: int, stop: int
) -> None:
    """Fill planes `first` to `stop` of `values` (float32 HU + 1024) and `labels` (uint8).

    Parameters
    ----------
    packed
        uint16 voxels in one dimension, of a region of `shape` (3 int64, zyx).
    matrix, origin
        Voxel p of the result lies at `matrix @ p + origin` of the region; float32, zyx.
    shift
        `(3, z, y, x)` float32 voxels to add, or of size 0.
    """
    plane, line = uint32(shape[1] * shape[2]), uint32(shape[2])
    mz, my, mx = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    elastic = shift.size > 0
    width = labels.shape[2]
    last = np.float32(width - 1)
    for z in range(first, stop):
        for y in range(labels.shape[1]):
            bz = matrix[0, 0] * np.float32(z) + matrix[0, 1] * np.float32(y) + origin[0]
            by = matrix[1, 0] * np.float32(z) + matrix[1, 1] * np.float32(y) + origin[1]
            bx = matrix[2, 0] * np.float32(z) + matrix[2, 1] * np.float32(y) + origin[2]
            row, marks = values[z, y], labels[z, y]
            ends = _inside(shape, bz, by, bx) and _inside(shape, bz + mz * last, by + my * last, bx + mx * last)
            if ends and not elastic:  # positions between the ends lie between theirs, rounding included
                for x in range(width):
                    k = np.float32(x)
                    row[x], marks[x] = _within(packed, plane, line, bz + mz * k, by + my * k, bx + mx * k)
            else:
                for x in range(width):
                    k = np.float32(x)
                    cz, cy, cx = bz + mz * k, by + my * k, bx + mx * k
                    if elastic:
                        cz, cy, cx = cz + shift[0, z, y, x], cy + shift[1, z, y, x], cx + shift[2, z, y, x]
                    if _inside(shape, cz, cy, cx):
                        row[x], marks[x] = _within(packed, plane, line, cz, cy, cx)
                    else:
                        row[x], marks[x] = _anywhere(packed, shape, cz, cy, cx)
