"""Distances between the surfaces of two masks, in mm.

A surface voxel is a voxel of the mask that an erosion with the full 18-neighborhood element removes; beyond
the array is background. Distances are Euclidean, between voxel centers, from each surface voxel of one mask
to the nearest of the other (Heimann et al. 2009, IEEE TMI 28:1251; the definition of medpy and of the LiTS
scorer).

They come from an exact Euclidean distance transform, separated by axis (Felzenszwalb and Huttenlocher 2012, Theory
of Computing 8:415): along z by counting, along y by the lower envelope of parabolas, along x by a search that stops
where no nearer voxel can lie - and that only at the surface voxels of the other mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.compiled import compiled
from livprep.geometry import Triple

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Points = npt.NDArray[np.int32]

SURFACE_TOLERANCE_MM = 2.0
"""Distance within which a surface voxel counts as met in `surface_dice`."""
_WINDOW = 8
"""Voxels around a point that are looked at first."""
ROUNDING_MM = 1e-6
"""By so much a distance may exceed the tolerance: 5 steps of 0.4 mm count as 2 mm, however they are added."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances of the surface voxels of two masks that both hold a voxel.

    Parameters
    ----------
    to_reference_mm, to_prediction_mm
        One float64 for each surface voxel of the prediction, and of the reference.
    """

    to_reference_mm: FloatArray
    to_prediction_mm: FloatArray

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: both sums over both counts."""
        return float((self.to_reference_mm.sum() + self.to_prediction_mm.sum()) / self._count)

    @property
    def rmsd(self) -> float:
        """Root of the mean square over both sets."""
        squares = (self.to_reference_mm**2).sum() + (self.to_prediction_mm**2).sum()
        return float(np.sqrt(squares / self._count))

    @property
    def msd(self) -> float:
        """Maximum symmetric surface distance (Hausdorff)."""
        return float(max(self.to_reference_mm.max(), self.to_prediction_mm.max()))

    @property
    def hd95(self) -> float:
        """Larger of the two directed 95th percentiles (Maier-Hein et al. 2024, Metrics Reloaded)."""
        return float(max(np.percentile(self.to_reference_mm, 95), np.percentile(self.to_prediction_mm, 95)))

    def surface_dice(self, tolerance_mm: float = SURFACE_TOLERANCE_MM) -> float:
        """Share of the surface voxels of both masks that lie within the tolerance of the other surface."""
        limit = tolerance_mm + ROUNDING_MM
        met = (self.to_reference_mm <= limit).sum() + (self.to_prediction_mm <= limit).sum()
        return float(met / self._count)

    @property
    def _count(self) -> int:
        return self.to_reference_mm.size + self.to_prediction_mm.size


def surface_mask(mask: BoolArray) -> BoolArray:
    """The surface voxels of a `(z, y, x)` mask."""
    surface = np.zeros(mask.shape, dtype=np.bool_)
    _mark_surface(np.ascontiguousarray(mask), surface)
    return surface


def surface_distances(prediction: BoolArray, reference: BoolArray, spacing_mm: Triple) -> SurfaceDistances | None:
    """Measure two masks `(z, y, x)` with spacing zyx in mm; None where one of them is empty.

    Time follows the size of the arrays, so crop them to their common box first; memory is 4 bytes a voxel.
    """
    surface_p, surface_r = surface_mask(prediction), surface_mask(reference)
    points_p, points_r = _points(surface_p), _points(surface_r)
    if not len(points_p) or not len(points_r):
        return None
    return SurfaceDistances(_distances(surface_r, points_p, spacing_mm), _distances(surface_p, points_r, spacing_mm))


def _points(surface: BoolArray) -> Points:
    return np.argwhere(surface).astype(np.int32)


def _distances(surface: BoolArray, points: Points, spacing_mm: Triple) -> FloatArray:
    """Distance in mm from each point `(n, 3)` (z, y, x; ordered by z) to the nearest voxel of a surface."""
    along_z = np.empty(surface.shape, dtype=np.uint16)
    _count_along_z(surface, along_z)
    squares = np.empty(len(points), dtype=np.float64)
    z_mm, y_mm, x_mm = (float(mm) for mm in spacing_mm)
    _search(along_z, points, z_mm, y_mm, x_mm, squares)
    return np.sqrt(squares)


@compiled
def _mark_surface(mask, surface):  # type: ignore[no-untyped-def]
    depth, height, width = mask.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if not mask[z, y, x]:
                    continue
                if z == 0 or y == 0 or x == 0 or z == depth - 1 or y == height - 1 or x == width - 1:
                    surface[z, y, x] = True
                    continue
                surface[z, y, x] = not (
                    mask[z, y, x - 1] and mask[z, y, x + 1]
                    and mask[z, y - 1, x] and mask[z, y - 1, x - 1] and mask[z, y - 1, x + 1]
                    and mask[z, y + 1, x] and mask[z, y + 1, x - 1] and mask[z, y + 1, x + 1]
                    and mask[z - 1, y, x] and mask[z - 1, y, x - 1] and mask[z - 1, y, x + 1]
                    and mask[z - 1, y - 1, x] and mask[z - 1, y + 1, x]
                    and mask[z + 1, y, x] and mask[z + 1, y, x - 1] and mask[z + 1, y, x + 1]
                    and mask[z + 1, y - 1, x] and mask[z + 1, y + 1, x]
                )  # fmt: skip


@compiled
def _count_along_z(surface, steps):  # type: ignore[no-untyped-def]
    """Voxels to the nearest surface voxel of the same column; 65535 where the column holds none."""
    depth, height, width = surface.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if surface[z, y, x]:
                    steps[z, y, x] = 0
                elif z > 0 and steps[z - 1, y, x] < 65535:
                    steps[z, y, x] = steps[z - 1, y, x] + 1
                else:
                    steps[z, y, x] = 65535
    for z in range(depth - 2, -1, -1):
        for y in range(height):
            for x in range(width):
                if steps[z + 1, y, x] < 65535 and steps[z + 1, y, x] + 1 < steps[z, y, x]:
                    steps[z, y, x] = steps[z + 1, y, x] + 1


@compiled
def _search(steps, points, z_mm, y_mm, x_mm, squares):  # type: ignore[no-untyped-def]
    """Squared distances of points that are ordered by z.

    A point whose neighbor is near, as most are, is settled in a small window; for the others the slice is transformed
    along y, once.
    """
    height, width = steps.shape[1:]
    plane = np.empty((height, width), dtype=np.float64)
    site = np.empty(height, dtype=np.int64)  # rows whose parabolas form the envelope, and from where each is lowest
    start = np.empty(height, dtype=np.float64)
    settled = ((_WINDOW + 1) * min(y_mm, x_mm)) ** 2  # nothing outside the window is nearer
    at = -1
    for k in range(len(points)):
        z, y, x = points[k, 0], points[k, 1], points[k, 2]
        best = np.inf
        for down in range(_WINDOW + 1):
            far_y = (down * y_mm) ** 2
            if far_y >= best:
                break
            for side in range(_WINDOW + 1):
                far = far_y + (side * x_mm) ** 2
                if far >= best:
                    break
                for row in (y - down, y + down):
                    for column in (x - side, x + side):
                        if 0 <= row < height and 0 <= column < width and steps[z, row, column] < 65535:
                            best = min(best, (steps[z, row, column] * z_mm) ** 2 + far)
        if best <= settled:
            squares[k] = best
            continue
        if z != at:
            at = z
            for column in range(width):
                last = -1
                for row in range(height):
                    if steps[z, row, column] == 65535:
                        continue
                    own = (steps[z, row, column] * z_mm) ** 2 + (row * y_mm) ** 2
                    cut = -np.inf
                    while last >= 0:
                        other = site[last]
                        theirs = (steps[z, other, column] * z_mm) ** 2 + (other * y_mm) ** 2
                        cut = (own - theirs) / (2 * y_mm * y_mm * (row - other))
                        if cut > start[last]:
                            break
                        last -= 1
                        cut = -np.inf
                    last += 1
                    site[last], start[last] = row, cut
                if last < 0:
                    plane[:, column] = np.inf
                    continue
                part = 0
                for row in range(height):
                    while part < last and start[part + 1] < row:
                        part += 1
                    lowest = site[part]
                    plane[row, column] = (steps[z, lowest, column] * z_mm) ** 2 + ((row - lowest) * y_mm) ** 2
        best = min(best, plane[y, x])
        for move in range(1, width):
            far = (move * x_mm) ** 2
            if far >= best:
                break
            if x - move >= 0:
                best = min(best, plane[y, x - move] + far)
            if x + move < width:
                best = min(best, plane[y, x + move] + far)
        squares[k] = best
