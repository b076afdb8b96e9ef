"""Where the voxels of a changed patch come from: matrices in voxels, displacement, and the margin to read."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from livprep.geometry import Triple
from livtrain.augment.draws import GeometryDraw, Matrix
from livtrain.augment.moving import moved
from livtrain.augment_config import AugmentSettings

Shape = tuple[int, int, int]

_SLACK = 1e-3
"""Voxels by which a margin exceeds what exact arithmetic needs; float32 positions are off by less than 1e-4."""
_EXACT = 1e-9


def voxel_matrix(draw: GeometryDraw, spacing_mm: Triple) -> Matrix:
    """Offset from the center in voxels of the result -> of the source (zyx): the turn happens in mm, mirroring first.

    A patch of thick slices is therefore turned and not sheared.
    """
    steps = np.array(spacing_mm)
    matrix = np.eye(3) if draw.matrix_mm is None else draw.matrix_mm * steps[None, :] / steps[:, None]
    signs = np.array([-1.0 if axis in draw.flips else 1.0 for axis in range(3)])
    mirrored: Matrix = matrix * signs[None, :]
    return mirrored


def needed_margin(draw: GeometryDraw, patch_zyx: Shape, spacing_mm: Triple) -> Shape:
    """Voxels to read around a patch so that no interpolated value comes from outside of what was read.

    0 along every axis for patches that are not resampled.
    """
    if not draw.resamples:
        return (0, 0, 0)
    half = (np.array(patch_zyx) - 1) / 2
    reach = np.abs(voxel_matrix(draw, spacing_mm)) @ half
    if draw.elastic is not None:
        reach += np.array(draw.elastic.shift_mm) / np.array(spacing_mm)
    # at offset `reach` the two voxels that enclose it are read, so the margin is the distance rounded up
    return _rounded_up(reach - half)


def largest_margin(settings: AugmentSettings, patch_zyx: Shape, spacing_mm: Triple) -> Shape:
    """Upper bound of `needed_margin` over all draws, for who wants to allocate once.

    A source offset is at most as long as (1 + 2 shear) x the largest field of view x the patch's half diagonal.
    """
    if not settings.moves:
        return (0, 0, 0)
    flat, steps = settings.flat(patch_zyx), np.array(spacing_mm)
    half_mm = (np.array(patch_zyx) - 1) / 2 * steps
    field = max(settings.scaling.field[1], 1.0) if settings.scaling.p > 0 else 1.0
    shear = 1 + 2 * settings.shear.max if settings.shear.p > 0 else 1.0
    turning = half_mm[1:] if flat else half_mm
    reach_mm = np.full(3, field * shear * float(np.linalg.norm(turning)))
    shift_mm = settings.elastic.shift_mm[1] if settings.elastic.p > 0 else 0.0
    reach_mm += shift_mm
    if flat:
        reach_mm[0] = half_mm[0]
    return _rounded_up((reach_mm - half_mm) / steps)


def _rounded_up(excess: npt.NDArray[np.float64]) -> Shape:
    """Whole voxels; 0 where nothing is exceeded, as along z in a flat patch, whose positions are exact."""
    z, y, x = (math.ceil(value + _SLACK) if value > _EXACT else 0 for value in excess)
    return (z, y, x)


def displacement(draw: GeometryDraw, patch_zyx: Shape, spacing_mm: Triple, device: torch.device) -> Tensor | None:
    """Displacement `(3, z, y, x)` of each voxel of the patch in source voxels (zyx), float32; None without one.

    A cubic B-spline of the lattice, so it is at most as large as the lattice's own shifts.
    """
    if draw.elastic is None:
        return None
    weights = [_spline(n, s / draw.elastic.step_mm) for n, s in zip(patch_zyx, spacing_mm, strict=True)]
    points = draw.elastic.points((weights[0].shape[1], weights[1].shape[1], weights[2].shape[1]))
    points /= np.array(spacing_mm, dtype=np.float32)[:, None, None, None]
    z, y, x = (moved(weight, device) for weight in weights)
    along_yx = y @ (moved(points, device) @ x.T)
    field: Tensor = (z @ along_yx.flatten(2)).view(3, *patch_zyx)
    return field


def _spline(size: int, step: float) -> npt.NDArray[np.float32]:
    """Weights `(size, points)` of lattice points for voxels that lie `step` of the lattice's distance apart."""
    at = np.arange(size) * step
    cell = np.floor(at).astype(np.intp)
    t = at - cell
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((size, int(cell[-1]) + 4), dtype=np.float32)
    for k, value in enumerate(basis):
        weights[np.arange(size), cell + k] = value / 6
    return weights
