"""What happens to masks after the network: components, holes, margins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from livprep.geometry import Triple

BoolArray = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]

_CACHED_VOXELS = 1 << 18


def dilate_mm(mask_ZYX: Tensor, spacing_mm: Triple, radius_mm: float) -> Tensor:
    """Mark every voxel whose center lies within `radius_mm` of a marked voxel's center.

    Exact Euclidean balls on anisotropic grids, on any device: the squared distance separates by axes,
    d2(v) = min over offsets k of f(v + k) + (k * spacing)^2, and offsets beyond the radius cannot matter.

    Parameters
    ----------
    mask_ZYX
        Bool tensor.
    spacing_mm
        Voxel distances, zyx, mm.
    """
    limit = radius_mm * radius_mm * (1 + 1e-6)  # a voxel exactly at the radius stays inside in float32
    distance2 = torch.where(mask_ZYX.bool(), 0.0, limit * 2 + 1).to(torch.float32)
    for axis, step_mm in enumerate(spacing_mm):
        reach = min(math.floor(radius_mm / step_mm + 1e-6), distance2.shape[axis] - 1)
        if distance2.device.type != "cpu":
            _lower_envelope(distance2, axis, step_mm, reach, torch.minimum)
            continue
        # The lines of an axis are independent, and pieces that fit the cache go several times as fast.
        pieces = np.array_split(distance2.numpy(), distance2.numel() // _CACHED_VOXELS + 1, axis=int(axis == 0))
        for piece in pieces:
            _lower_envelope(piece, axis, step_mm, reach, np.minimum)
    return distance2 <= limit


def surroundings(mask: BoolArray, spacing_mm: Triple, radius_mm: float) -> BoolArray:
    """`dilate_mm` of a `(z, y, x)` mask on the CPU, computed where it can mark anything at all."""
    near = mask.copy()
    box = bounding_box(mask)
    if box is not None:
        z, y, x = (int(radius_mm // step) + 1 for step in spacing_mm)
        box = grow_box(box, (z, y, x), (mask.shape[0], mask.shape[1], mask.shape[2]))
        near[box] = dilate_mm(torch.from_numpy(mask[box]), spacing_mm, radius_mm).numpy()
    return near


def _lower_envelope(distance2: Any, axis: int, step_mm: float, reach: int, minimum: Callable[..., Any]) -> None:
    """Replace each value by the least f(v + k) + (k * step)^2 over offsets |k| <= reach along an axis.

    `distance2` is a tensor or an array, with its `minimum(a, b, out=...)`.
    """
    source, before = distance2 + 0, (slice(None),) * axis
    for k in range(1, reach + 1):
        shifted = source + (k * step_mm) ** 2
        low, high = (*before, slice(None, -k)), (*before, slice(k, None))
        minimum(distance2[low], shifted[high], out=distance2[low])
        minimum(distance2[high], shifted[low], out=distance2[high])


def bounding_box(mask: BoolArray) -> Box | None:
    """Smallest box that holds all marked voxels of a `(z, y, x)` mask, or None if there are none."""
    slices = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        slices.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return slices[0], slices[1], slices[2]


def grow_box(box: Box, margin_zyx: tuple[int, int, int], shape_zyx: tuple[int, int, int]) -> Box:
    """Widen a box by voxels on both sides, within the volume."""
    z, y, x = (
        slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(box, margin_zyx, shape_zyx, strict=True)
    )
    return z, y, x


def largest_component(mask: BoolArray) -> BoolArray:
    """Keep the largest 6-connected component of a `(z, y, x)` mask (the first of equals)."""
    kept = np.zeros_like(mask)
    box = bounding_box(mask)
    if box is not None:
        components, count = ndimage.label(mask[box])
        sizes = _sizes(components, count)
        sizes[0] = 0
        kept[box] = components == int(sizes.argmax())
    return kept


def _sizes(components: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """Voxels of each component, slice by slice: bincount turns what it counts into int64."""
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in components:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return sizes


def fill_holes(mask: BoolArray) -> BoolArray:
    """Mark every background voxel of a `(z, y, x)` mask that no 6-connected path leads out of the volume."""
    filled = mask.copy()
    box = bounding_box(mask)
    if box is not None:
        # One component of the background surrounds the box; labelling is faster than scipy's iterated dilation.
        background, _ = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
        filled[box] = background[1:-1, 1:-1, 1:-1] != background[0, 0, 0]
    return filled


def drop_small(mask: BoolArray, voxel_volume_ml: float, min_ml: float) -> BoolArray:
    """Remove 6-connected components below `min_ml` milliliters."""
    if min_ml <= 0:
        return mask.copy()
    components, count = ndimage.label(mask)
    sizes_ml = _sizes(components, count) * voxel_volume_ml
    keep = sizes_ml >= min_ml * (1 - 1e-9)
    keep[0] = False
    kept: BoolArray = keep[components]
    return kept


def box_at_least(box: Box, size_zyx: tuple[int, int, int], shape_zyx: tuple[int, ...]) -> Box:
    """Widen a box about its center to at least `size_zyx` voxels, as far as the volume reaches."""
    slices = []
    for s, wanted, length in zip(box, size_zyx, shape_zyx, strict=True):
        lack = max(min(wanted, length) - (s.stop - s.start), 0)
        start = min(max(s.start - lack // 2, 0), length - (s.stop - s.start) - lack)
        slices.append(slice(start, start + (s.stop - s.start) + lack))
    return slices[0], slices[1], slices[2]
