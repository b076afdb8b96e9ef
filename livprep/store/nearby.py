"""Sample points of the surroundings of the liver: outside it, within `NEAR_MM` of it.

What a network takes for liver and is none lies there. A mask of all such voxels is never made: candidates are drawn
from the box around the liver and kept where the distance, Euclidean in mm between voxel centers, is small enough.
That costs about 0.1 CPU s a case, where a distance transform of the box takes seconds and 20 bytes a voxel.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from livprep.geometry import Triple
from livprep.labels import Label, LabelArray
from livprep.schema import INDEX_POINTS

NEAR_MM = 20.0
NEAR_STREAM = len(Label)
"""Number of this sample's random stream; those of the labels are their values."""
_ROUND = 2 * INDEX_POINTS
_MOST_CANDIDATES = 256 * INDEX_POINTS
"""Bound of the work where the box is large and the liver in it is not; fewer points are kept then."""
_TOLERANCE = 1 + 1e-9
"""A voxel exactly at the distance counts, whatever its coordinates' last bit is."""

Points = npt.NDArray[np.int64]
Box = tuple[slice, slice, slice]


def near_points(case_id: str, labels: LabelArray, spacing_mm: Triple) -> npt.NDArray[np.int16]:
    """Coordinates `(n, 3)` (z, y, x) that the sampling index of a case holds of the liver's surroundings.

    Up to `INDEX_POINTS` voxels of label 0 within `NEAR_MM` of a voxel of another label, uniform without replacement,
    in array order; empty where the case has no liver.

    Parameters
    ----------
    labels
        `(z, y, x)` uint8 labels.
    spacing_mm
        Voxel distances (zyx, mm).
    """
    surroundings = Surroundings.of(labels, spacing_mm)
    if surroundings is None:
        return np.empty((0, 3), dtype=np.int16)
    digest = hashlib.sha256(case_id.encode()).digest()
    rng = np.random.default_rng([int.from_bytes(digest[:8], "little"), NEAR_STREAM])
    return surroundings.sample(rng)


class Surroundings:
    """The voxels outside of the liver and within `NEAR_MM` of it, known by membership.

    Parameters
    ----------
    labels
        `(z, y, x)` uint8 labels.
    spacing_mm
        Voxel distances (zyx, mm).
    box
        Smallest box that holds the liver.
    """

    def __init__(self, labels: LabelArray, spacing_mm: Triple, box: Box) -> None:
        self._labels, self._spacing = labels, np.array(spacing_mm)
        self._tree = cKDTree(_surface(labels, box) * self._spacing, balanced_tree=False, compact_nodes=False)
        reach = [math.floor(NEAR_MM * _TOLERANCE / step) for step in spacing_mm]
        self._low = np.array([max(s.start - r, 0) for s, r in zip(box, reach, strict=True)])
        high = [min(s.stop + r, n) for s, r, n in zip(box, reach, labels.shape, strict=True)]
        self._shape = tuple(int(n) for n in high - self._low)

    @classmethod
    def of(cls, labels: LabelArray, spacing_mm: Triple) -> Surroundings | None:
        """The surroundings in a label map; None where it holds no liver."""
        z = np.flatnonzero([section.any() for section in labels])
        if not len(z):
            return None
        flat = labels[z[0] : z[-1] + 1].max(axis=0)
        y, x = (np.flatnonzero(flat.any(axis=axis)) for axis in (1, 0))
        return cls(labels, spacing_mm, (_span(z), _span(y), _span(x)))

    def contain(self, points: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which voxels `(n, 3)` of the volume belong to the surroundings."""
        z, y, x = points.T
        inside: npt.NDArray[np.bool_] = self._labels[z, y, x] == Label.BACKGROUND
        limit = NEAR_MM * _TOLERANCE
        distance, _ = self._tree.query(points[inside] * self._spacing, distance_upper_bound=limit)
        inside[inside] = np.isfinite(distance)
        return inside

    def sample(self, rng: np.random.Generator) -> npt.NDArray[np.int16]:
        """Draw up to `INDEX_POINTS` of them.

        Voxels of the box in random order, each at most once, of which the first that belong are kept, are a uniform
        sample without replacement.
        """
        total = math.prod(self._shape)
        few = total <= _MOST_CANDIDATES
        order = rng.permutation(total) if few else rng.integers(0, total, _MOST_CANDIDATES)
        kept = np.empty(0, dtype=np.int64)
        for start in range(0, len(order), _ROUND):
            drawn = order[start : start + _ROUND]
            kept = np.concatenate([kept, drawn[self.contain(self._voxels(drawn))]])
            _, first = np.unique(kept, return_index=True)  # a voxel that was drawn twice counts once
            kept = kept[np.sort(first)][:INDEX_POINTS]
            if len(kept) == INDEX_POINTS:
                break
        return self._voxels(np.sort(kept)).astype(np.int16)

    def _voxels(self, flat: Points) -> Points:
        """Voxels `(n, 3)` of the volume, of positions in the box."""
        voxels: Points = np.stack(np.unravel_index(flat, self._shape), axis=1) + self._low
        return voxels


def _span(hits: npt.NDArray[np.intp]) -> slice:
    return slice(int(hits[0]), int(hits[-1]) + 1)


def _surface(labels: LabelArray, box: Box) -> Points:
    """Liver voxels `(n, 3)` with a neighbor along an axis that is none or lies outside of the box.

    The voxel of the liver nearest to one outside is among them: one step from it toward that voxel along any axis
    comes nearer, so it leaves the liver.
    """
    liver = labels[box] != Label.BACKGROUND
    inner = liver.copy()
    for axis in range(3):
        low = (*(slice(None),) * axis, slice(None, -1))
        high = (*(slice(None),) * axis, slice(1, None))
        inner[low] &= liver[high]
        inner[high] &= liver[low]
        for end in (0, -1):
            inner[(*(slice(None),) * axis, end)] = False
    flat = np.flatnonzero(liver ^ inner)
    surface: Points = np.stack(np.unravel_index(flat, liver.shape), axis=1) + [s.start for s in box]
    return surface
