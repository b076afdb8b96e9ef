"""Implicit shapes: functions that are negative inside, in about mm.

Only sums, products and square roots: they are exact in IEEE 754, so a phantom does not depend on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from livprep.geometry import Triple
from livprep.phantom.field import Box, FloatArray, Slab

Rotation = npt.NDArray[np.float64]


def smooth_max(a: FloatArray, b: FloatArray, width_mm: float) -> FloatArray:
    """Intersection of two shapes with an edge rounded over `width_mm`."""
    h = np.maximum(np.float32(width_mm) - np.abs(a - b), 0)
    result: FloatArray = np.maximum(a, b) + h * h * np.float32(0.25 / width_mm)
    return result


def rotation(about_x: float = 0.0, about_y: float = 0.0, about_z: float = 0.0) -> Rotation:
    """Rotation matrix of small angles in degrees about the three body axes, applied x first."""
    result = np.eye(3)
    for axis, degrees in ((0, about_x), (1, about_y), (2, about_z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
        result = turn @ result
    return result


def ellipsoid(
    slab: Slab, center_xyz: Triple, radii_xyz: Triple, turn: Rotation | None = None, margin_mm: float = 0.0
) -> tuple[Box, FloatArray] | None:
    """Ellipsoid: its index box and values there; None if the slab does not touch it."""
    reach = max(radii_xyz) if turn is not None else 0.0
    extent = [max(r, reach) + margin_mm for r in radii_xyz]
    low = tuple(c - e for c, e in zip(center_xyz, extent, strict=True))
    high = tuple(c + e for c, e in zip(center_xyz, extent, strict=True))
    box = slab.box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    if box is None:
        return None
    matrix = np.eye(3) if turn is None else turn
    dx, dy, dz = (field[box] - np.float32(c) for field, c in zip((slab.x, slab.y, slab.z), center_xyz, strict=True))
    total: FloatArray | None = None
    for row, radius in zip(matrix, radii_xyz, strict=True):
        a, b, c = (np.float32(value / radius) for value in row)
        along = a * dx + b * dy + c * dz if turn is not None else _scaled(row, radius, dx, dy, dz)
        total = along * along if total is None else total + along * along
    assert total is not None
    mean_radius = np.float32(float(np.prod(radii_xyz)) ** (1 / 3))
    return box, (np.sqrt(total) - np.float32(1)) * mean_radius


def _scaled(row: npt.NDArray[np.float64], radius: float, *deltas: FloatArray) -> FloatArray:
    return deltas[int(np.argmax(row))] * np.float32(1 / radius)


def tube(
    slab: Slab, points_xyz: Sequence[Triple], radius_mm: float, end_radius_mm: float | None = None
) -> list[tuple[Box, FloatArray]]:
    """Rounded tube along a polyline: one index box with values for each segment that the slab touches.

    The radius falls linearly from `radius_mm` at the first to `end_radius_mm` at the last point.
    """
    end = radius_mm if end_radius_mm is None else end_radius_mm
    radii = np.linspace(radius_mm, end, len(points_xyz))
    parts = []
    for a, b, ra, rb in zip(points_xyz[:-1], points_xyz[1:], radii[:-1], radii[1:], strict=True):
        widest = max(ra, rb)
        low = [min(p, q) - widest for p, q in zip(a, b, strict=True)]
        high = [max(p, q) + widest for p, q in zip(a, b, strict=True)]
        box = slab.box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        if box is not None:
            parts.append((box, _segment(slab, box, a, b, float(ra), float(rb))))
    return parts


def _segment(slab: Slab, box: Box, a: Triple, b: Triple, ra: float, rb: float) -> FloatArray:
    along = np.subtract(b, a)
    length2 = max(float(along @ along), 1e-6)
    d = [field[box] - np.float32(c) for field, c in zip((slab.x, slab.y, slab.z), a, strict=True)]
    t = sum(delta * np.float32(w / length2) for delta, w in zip(d, along, strict=True))
    t = np.clip(np.asarray(t, dtype=np.float32), 0, 1)
    distance2 = np.zeros_like(t)
    for delta, w in zip(d, along, strict=True):
        rest = delta - t * np.float32(w)
        distance2 += rest * rest
    result: FloatArray = np.sqrt(distance2) - (np.float32(ra) + t * np.float32(rb - ra))
    return result
